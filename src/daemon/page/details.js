// The panel below the table: one torrent in six tabs, asked for anew while it is open.

import { $, h, kept } from './dom.js';
import { drawRates } from './graph.js';
import { getTorrent } from './rpc.js';
import { HISTORY_SECONDS } from './store.js';
import { safe } from './format.js';
import { FilesTab } from './files.js';
import { GeneralTab, PeersTab, PiecesTab, TrackersTab } from './tabs.js';

const REFRESH_MS = 2000;
const HEIGHT_MIN = 140;

class SpeedTab {
  fields = ['id'];
  constructor(store) {
    this.store = store;
    this.canvas = h('canvas', { role: 'img', class: 'speed-graph', 'aria-label': 'Rates of this torrent in the last ten minutes' });
    this.empty = h('p', { class: 'note' });
    this.node = h('div', { class: 'speed' },
      h('p', { class: 'legend' }, h('span', { class: 'key down' }, 'Down'), h('span', { class: 'key up' }, 'Up (dashed)'), this.empty), this.canvas);
  }
  clear() {}
  show(torrent) {
    const history = this.store.histories.get(torrent.id);
    this.empty.textContent = history ? '' : 'Nothing has moved since this page was opened.';
    const held = history ? history.down.length : 0;
    drawRates(this.canvas, history, Math.min(HISTORY_SECONDS, Math.max(120, Math.ceil(held / 60) * 60)), true);
  }
}

export class Details {
  id = null;
  #store;
  #tabs;
  #tab = kept.get('tab', 'general');
  #timer = 0;
  #turn = 0;
  #panel = $('details');
  #on;

  /** `on.close()`, `on.act(action, id)` for buttons within. */
  constructor(store, on) {
    this.#store = store;
    this.#on = on;
    this.#tabs = {
      general: new GeneralTab(), files: new FilesTab((error) => this.#fail(error), (id) => on.act('start', id)),
      peers: new PeersTab(), trackers: new TrackersTab((id) => on.act('reannounce', id)),
      pieces: new PiecesTab(), speed: new SpeedTab(store),
    };
    if (!(this.#tab in this.#tabs)) this.#tab = 'general';
    for (const [name, tab] of Object.entries(this.#tabs)) $(`panel-${name}`).append(tab.node);
    const list = $('tabs');
    list.addEventListener('click', (event) => { const tab = event.target.closest('[role=tab]'); if (tab) this.openTab(tab.dataset.tab); });
    list.addEventListener('keydown', (event) => this.#onKey(event));
    $('details-close').addEventListener('click', () => on.close());
    this.#grip($('details-grip'));
    store.onChange(() => { if (this.id !== null && this.#tab === 'speed') this.#tabs.speed.show(this.#store.torrents.get(this.id) || {}); });
    new ResizeObserver(() => this.#draw()).observe($('panels'));
    this.#mark();
  }

  get isOpen() { return !this.#panel.hidden; }

  open(id, tab = this.#tab) {
    const isOther = id !== this.id;
    this.id = this.#store.watched = id;
    this.#panel.hidden = false;
    document.body.classList.add('has-details');
    if (isOther) {
      this.last = null;
      for (const each of Object.values(this.#tabs)) each.clear();
    }
    this.openTab(tab);
  }

  close() {
    this.id = this.#store.watched = null;
    this.#panel.hidden = true;
    document.body.classList.remove('has-details');
    clearTimeout(this.#timer);
    this.#turn += 1;
  }

  openTab(name) {
    this.#tab = name;
    kept.set('tab', name);
    this.#mark();
    this.refresh();
  }

  /** Asks now; an answer that comes after the user went elsewhere is dropped. */
  async refresh() {
    clearTimeout(this.#timer);
    if (this.id === null) return;
    const turn = this.#turn += 1;
    const known = this.#store.torrents.get(this.id);
    $('details-title').textContent = safe(known?.name || this.last?.name || '');
    const tab = this.#tabs[this.#tab];
    try {
      const torrent = await getTorrent(this.id, ['id', 'name', ...tab.fields]);
      if (turn !== this.#turn) return;
      if (!torrent) { this.#on.close(); return; }
      $('details-error').hidden = true;
      this.last = torrent;
      tab.show(torrent);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.#fail(error);
    }
    this.#timer = setTimeout(() => this.refresh(), document.hidden ? 5 * REFRESH_MS : REFRESH_MS);
  }

  #fail(error) {
    const line = $('details-error');
    line.hidden = false;
    line.textContent = `${error.message} ${error.hint || ''}`;
  }

  #draw() {
    if (this.last && (this.#tab === 'pieces' || this.#tab === 'speed')) this.#tabs[this.#tab].show(this.last);
  }

  #mark() {
    for (const button of $('tabs').children) {
      const isOpen = button.dataset.tab === this.#tab;
      button.setAttribute('aria-selected', String(isOpen));
      button.tabIndex = isOpen ? 0 : -1;
      $(`panel-${button.dataset.tab}`).hidden = !isOpen;
    }
  }

  #onKey(event) {
    const all = [...$('tabs').children];
    const at = all.findIndex((tab) => tab.dataset.tab === this.#tab);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const tab = all[(to + all.length) % all.length];
    this.openTab(tab.dataset.tab);
    tab.focus();
  }

  /** The bar that makes the panel taller: by pointer and by keys. */
  #grip(grip) {
    const set = (height) => {
      const most = Math.max(HEIGHT_MIN, innerHeight - 260);
      const fit = Math.round(Math.min(most, Math.max(HEIGHT_MIN, height)));
      this.#panel.style.setProperty('--height', `${fit}px`);
      grip.setAttribute('aria-valuenow', String(fit));
      grip.setAttribute('aria-valuemax', String(most));
      kept.set('details', fit);
      return fit;
    };
    let height = set(kept.get('details', 300));
    grip.addEventListener('pointerdown', (event) => { grip.setPointerCapture(event.pointerId); event.preventDefault(); });
    grip.addEventListener('pointermove', (event) => {
      if (grip.hasPointerCapture(event.pointerId)) height = set(this.#panel.getBoundingClientRect().bottom - event.clientY);
    });
    grip.addEventListener('keydown', (event) => {
      const step = { ArrowUp: 24, ArrowDown: -24 }[event.key];
      if (step) { height = set(height + step); event.preventDefault(); }
    });
  }
}
