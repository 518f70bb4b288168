// What the page knows of the session: every torrent, the filters, the order, and the rates of the last minutes.

import { kept } from './dom.js';
import { sortKey } from './format.js';

/** Seconds of rates kept, for the session and for each torrent that moves. */
export const HISTORY_SECONDS = 600;
/** Torrents whose rates are kept: 10 MB. Beyond that only the one in the details is taken in. */
const HISTORIES_MAX = 1000;
export const STATES = ['all', 'active', 'downloading', 'seeding', 'stopped', 'queued', 'checking', 'error'];

/** Rates of the last minutes, newest last. */
export class History {
  down = [];
  up = [];
  /** Seconds without anything. */
  silence = 0;
  push(down, up) {
    this.silence = down > 0 || up > 0 ? 0 : this.silence + 1;
    this.down.push(down);
    this.up.push(up);
    if (this.down.length > HISTORY_SECONDS) { this.down.shift(); this.up.shift(); }
  }
}

/** The one word for what a torrent does; `status` is that of Transmission. */
export function stateOf(torrent) {
  if (torrent.error) return 'error';
  switch (torrent.status) {
    case 0: return 'stopped';
    case 2: return 'checking';
    case 1: case 3: case 5: return 'queued';
    case 4: return 'downloading';
    default: return 'seeding';
  }
}

export class Store {
  torrents = new Map();
  session = {};
  /** The torrents that are shown, in their order. */
  view = [];
  counts = { states: {}, labels: new Map(), trackers: new Map() };
  history = new History();
  histories = new Map();
  isLoaded = false;
  /** The id that the details show. */
  watched = null;
  filter = { state: 'all', label: null, tracker: null, search: '' };
  sort = kept.get('sort', { column: 'added', descending: true });
  #columns = [];
  #incoming = null;
  #needle = '';
  #listeners = [];

  onChange(listener) { this.#listeners.push(listener); }

  /** A connection began: what follows is a whole list. */
  restart() { this.#incoming = null; }

  /** One part of the whole list; the last one takes effect at once, earlier ones while there is nothing else to show. */
  all(event) {
    if (event.columns) this.#columns = event.columns;
    if (event.session) Object.assign(this.session, event.session);
    if (!this.#incoming) this.#incoming = new Map();
    for (const row of event.torrents || []) {
      const id = row[this.#columns.indexOf('id')];
      this.#incoming.set(id, this.#read(row, this.torrents.get(id)));
    }
    if (!this.isLoaded || !event.more) this.torrents = this.#incoming;
    if (!event.more) { this.#incoming = null; this.isLoaded = true; }
    this.refresh();
  }

  delta(event) {
    if (event.session) {
      Object.assign(this.session, event.session);
      this.history.push(this.session.rate_down || 0, this.session.rate_up || 0);
    }
    const at = this.#columns.indexOf('id');
    for (const row of event.changed || []) {
      const id = row[at];
      this.torrents.set(id, this.#read(row, this.torrents.get(id)));
    }
    for (const id of event.removed || []) { this.torrents.delete(id); this.histories.delete(id); }
    this.#remember();
    this.refresh();
  }

  /** Filters, counts and sorts again: a few milliseconds for 10,000 torrents. */
  refresh() {
    this.#count();
    const shown = [];
    for (const torrent of this.torrents.values()) if (this.#fits(torrent)) shown.push(torrent);
    this.view = shown.sort(this.#order());
    // A fault in what shows one part must neither keep the others old nor end the stream that is read.
    for (const listener of this.#listeners) { try { listener(); } catch (error) { reportError(error); } }
  }

  setFilter(change) {
    Object.assign(this.filter, change);
    this.#needle = this.filter.search.trim().toLowerCase();
    this.refresh();
  }

  setSort(column, descending) {
    this.sort = { column, descending };
    kept.set('sort', this.sort);
    this.refresh();
  }

  labels() { return [...this.counts.labels.keys()].sort(); }

  #read(row, known) {
    const torrent = known || { version: 0 };
    const name = torrent.name;
    this.#columns.forEach((column, index) => { torrent[column] = row[index]; });
    if (torrent.name !== name || !torrent.key) torrent.key = sortKey(torrent.name);
    torrent.state = stateOf(torrent);
    torrent.labelText = (torrent.labels || []).join(', ');
    torrent.version += 1;
    return torrent;
  }

  #remember() {
    for (const torrent of this.torrents.values()) {
      const held = this.histories.get(torrent.id);
      const moves = torrent.rate_down > 0 || torrent.rate_up > 0;
      if (held) {
        held.push(torrent.rate_down, torrent.rate_up);
        if (held.silence >= HISTORY_SECONDS) this.histories.delete(torrent.id);
      } else if (moves && (this.histories.size < HISTORIES_MAX || torrent.id === this.watched)) {
        const fresh = new History();
        fresh.push(torrent.rate_down, torrent.rate_up);
        this.histories.set(torrent.id, fresh);
      }
    }
  }

  #count() {
    const states = Object.fromEntries(STATES.map((state) => [state, 0]));
    const labels = new Map(), trackers = new Map();
    for (const torrent of this.torrents.values()) {
      states.all += 1;
      states[torrent.state] += 1;
      if (torrent.rate_down > 0 || torrent.rate_up > 0) states.active += 1;
      for (const label of torrent.labels || []) labels.set(label, (labels.get(label) || 0) + 1);
      const host = torrent.tracker_host || '';
      trackers.set(host, (trackers.get(host) || 0) + 1);
    }
    this.counts = { states, labels, trackers };
  }

  #fits(torrent) {
    const { state, label, tracker } = this.filter;
    if (state === 'active' ? !(torrent.rate_down > 0 || torrent.rate_up > 0) : state !== 'all' && torrent.state !== state) return false;
    if (label !== null && !(label === '' ? !torrent.labels?.length : torrent.labels?.includes(label))) return false;
    if (tracker !== null && (torrent.tracker_host || '') !== tracker) return false;
    if (!this.#needle) return true;
    return torrent.name.toLowerCase().includes(this.#needle) || torrent.hash === this.#needle;
  }

  #order() {
    const { column, descending } = this.sort;
    const sign = descending ? -1 : 1;
    const value = valueOf(column);
    return (a, b) => {
      const x = value(a), y = value(b);
      if (x < y) return -sign;
      if (x > y) return sign;
      return a.id - b.id;
    };
  }
}

function valueOf(column) {
  switch (column) {
    case 'name': return (torrent) => torrent.key;
    case 'labels': return (torrent) => torrent.labelText;
    case 'tracker_host': return (torrent) => torrent.tracker_host || '';
    // Those that never finish come last.
    case 'eta': return (torrent) => (torrent.eta >= 0 ? torrent.eta : Infinity);
    case 'status': return (torrent) => STATES.indexOf(torrent.state);
    default: return (torrent) => torrent[column] ?? 0;
  }
}
