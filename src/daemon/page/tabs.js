// The tabs General, Peers, Trackers and Pieces of the details panel. Each names the fields it asks for.

import { h, icon, setText } from './dom.js';
import * as format from './format.js';
import { bitsOf, drawPieces } from './pieces.js';

/** Rows of one table in the panel; more are counted, not drawn. */
const ROWS_MAX = 300;

/** A table whose rows are built anew only when their text changes. */
export function sheet(caption, columns) {
  const body = h('tbody');
  const node = h('table', { class: 'sheet' }, h('caption', { class: 'unseen' }, caption),
    h('thead', {}, h('tr', {}, columns.map(([title, end]) => h('th', { scope: 'col', class: end ? 'end' : '' }, title)))), body);
  const show = (rows) => {
    while (body.children.length > rows.length) body.lastChild.remove();
    rows.forEach((cells, index) => {
      let row = body.children[index];
      if (!row) { row = h('tr', {}, columns.map(([, end]) => h('td', { class: end ? 'end' : '' }))); body.append(row); }
      cells.forEach((text, at) => setText(row.children[at], text));
    });
  };
  return { node, show };
}

export class GeneralTab {
  fields = ['hashString', 'downloadDir', 'totalSize', 'sizeWhenDone', 'leftUntilDone', 'haveValid', 'downloadedEver', 'uploadedEver', 'corruptEver',
    'uploadRatio', 'pieceCount', 'pieceSize', 'addedDate', 'doneDate', 'activityDate', 'comment', 'creator', 'dateCreated', 'isPrivate',
    'error', 'errorString', 'secondsDownloading', 'secondsSeeding', 'labels', 'downloadLimit', 'downloadLimited', 'uploadLimit', 'uploadLimited', 'movedShare', 'policies'];

  constructor() {
    this.problem = h('p', { class: 'problem', hidden: true, role: 'status' });
    this.lists = h('div', { class: 'facts' });
    this.node = h('div', {}, this.problem, this.lists);
    this.cells = new Map();
  }

  clear() { this.lists.replaceChildren(); this.cells.clear(); this.problem.hidden = true; }

  show(t) {
    this.problem.hidden = !t.errorString;
    if (t.errorString) {
      this.problem.replaceChildren(icon('warning'), h('span', {}, h('strong', {}, format.safe(t.errorString)), ` ${adviceFor(t.error)}`));
    }
    const limits = [t.downloadLimited && `${format.rate(t.downloadLimit * 1000)} down`, t.uploadLimited && `${format.rate(t.uploadLimit * 1000)} up`];
    this.#group('Transfer', [
      ['Downloaded', format.bytes(t.downloadedEver)], ['Uploaded', format.bytes(t.uploadedEver)], ['Ratio', format.ratio(t.uploadRatio)],
      ['Remaining', format.bytes(t.leftUntilDone)], ['Discarded', format.bytes(t.corruptEver || 0)],
      ['Limits', limits.filter(Boolean).join(', ') || 'None of its own'],
      ['Time seeding', t.secondsSeeding > 0 ? format.duration(t.secondsSeeding) : '–'],
    ]);
    this.#group('Torrent', [
      ['Folder', folderOf(t)], ['Size', sizeOf(t)],
      ['Pieces', t.pieceCount ? `${format.count(t.pieceCount)} of ${format.bytes(t.pieceSize)}` : '–'],
      ['Info hash', t.hashString], ['Privacy', t.isPrivate ? 'Private: its trackers only' : 'Public'],
      ['Policies', t.policies ? t.policies.map(format.safe).join(', ') || 'None' : '–'],
      ['Labels', (t.labels || []).map(format.safe).join(', ') || '–'],
    ]);
    this.#group('History', [
      ['Added', format.dateTime(t.addedDate)], ['Finished', format.dateTime(t.doneDate)], ['Last active', format.dateTime(t.activityDate)],
      ['Created', format.dateTime(t.dateCreated)], ['Created by', format.safe(t.creator) || '–'], ['Comment', format.safe(t.comment) || '–'],
    ]);
  }

  #group(title, facts) {
    let cells = this.cells.get(title);
    if (!cells) {
      cells = new Map(facts.map(([name]) => [name, h('dd', { class: name === 'Info hash' ? 'hash' : '' })]));
      this.cells.set(title, cells);
      this.lists.append(h('section', {}, h('h3', {}, title), h('dl', {}, [...cells].map(([name, cell]) => h('div', {}, h('dt', {}, name), cell)))));
    }
    for (const [name, value] of facts) setText(cells.get(name), value ?? '–');
  }
}

/** It is the old one until all files are at the new one. */
function folderOf(t) {
  const folder = format.safe(t.downloadDir);
  return t.movedShare >= 0 ? `${folder} (${format.wholePercent(t.movedShare)} moved to another)` : folder;
}

function sizeOf(t) {
  if (!(t.totalSize > 0)) return 'Not known yet';
  return t.sizeWhenDone < t.totalSize ? `${format.bytes(t.sizeWhenDone)} chosen of ${format.bytes(t.totalSize)}` : format.bytes(t.totalSize);
}

/** 1 and 2 come from trackers, 3 from this machine. */
function adviceFor(error) {
  if (error === 3) return 'Check the disk and the folder, then verify and start again.';
  return 'Peers found otherwise are used meanwhile. Reannounce to ask the tracker again now.';
}

export class PeersTab {
  fields = ['peers', 'peersConnected', 'webseedsSendingToUs'];
  constructor() {
    this.table = sheet('Peers', [['Address'], ['Client'], ['Flags'], ['Has', true], ['Down', true], ['Up', true]]);
    this.note = h('p', { class: 'note' });
    this.node = h('div', {}, this.table.node, this.note);
  }
  clear() { this.table.show([]); this.note.textContent = ''; }
  show(t) {
    const peers = [...(t.peers || [])].sort((a, b) => b.rateToClient + b.rateToPeer - a.rateToClient - a.rateToPeer);
    this.table.show(peers.slice(0, ROWS_MAX).map((peer) => [
      peer.address.includes(':') ? `[${peer.address}]:${peer.port}` : `${peer.address}:${peer.port}`,
      format.safe(peer.clientName) || '–', flagsOf(peer), format.percent(peer.progress),
      format.quietRate(peer.rateToClient), format.quietRate(peer.rateToPeer),
    ]));
    this.node.firstChild.hidden = !peers.length;
    const more = peers.length > ROWS_MAX ? `The ${ROWS_MAX} fastest of ${format.count(peers.length)}. ` : '';
    this.note.textContent = peers.length
      ? `${more}Flags: D we download, d we could; U they download, u they could; E hidden connection, I it came in, X from other peers, H from the DHT.`
      : 'No peers are connected. A stopped torrent has none; for one that runs, Trackers says what they answered.';
  }
}

function flagsOf(peer) {
  if (peer.flagStr) return format.safe(peer.flagStr);
  return `${peer.isEncrypted ? 'E' : ''}${peer.isIncoming ? 'I' : ''}`;
}

export class TrackersTab {
  fields = ['trackerStats', 'status'];
  constructor(reannounce) {
    this.table = sheet('Trackers', [['Tier', true], ['Tracker'], ['Last answer'], ['Next announce', true], ['Seeds', true], ['Leechers', true], ['Peers got', true]]);
    this.note = h('p', { class: 'note' });
    this.button = h('button', { type: 'button', class: 'quiet', onclick: () => reannounce(this.id) }, icon('announce'), 'Reannounce now');
    this.node = h('div', {}, this.table.node, this.note, this.button);
  }
  clear() { this.table.show([]); this.note.textContent = ''; }
  show(t) {
    this.id = t.id;
    const trackers = t.trackerStats || [];
    this.table.show(trackers.map((tracker) => [
      format.count(tracker.tier + 1), format.safe(tracker.announce), answerOf(tracker), nextOf(tracker),
      known(tracker.seederCount), known(tracker.leecherCount), known(tracker.lastAnnouncePeerCount),
    ]));
    this.table.node.hidden = !trackers.length;
    this.button.hidden = !trackers.length;
    this.note.textContent = trackers.length ? '' : 'No trackers. Peers come from the DHT, the local network and other peers.';
  }
}

function known(n) { return n >= 0 ? format.count(n) : '–'; }

function answerOf(tracker) {
  if (!tracker.hasAnnounced && !tracker.lastAnnounceTime) return 'Not asked yet';
  const said = tracker.lastAnnounceSucceeded ? 'Answered' : format.safe(tracker.lastAnnounceResult) || 'No answer';
  // The daemon need not know when.
  return tracker.lastAnnounceTime > 0 ? `${said}, ${format.duration(Date.now() / 1000 - tracker.lastAnnounceTime)} ago` : said;
}

function nextOf(tracker) {
  if (tracker.announceState === 3) return 'Asking now';
  if (tracker.announceState === 0) return 'When started';
  if (!(tracker.nextAnnounceTime > 0)) return '–';
  return `in ${format.duration(tracker.nextAnnounceTime - Date.now() / 1000)}`;
}

export class PiecesTab {
  fields = ['pieces', 'pieceCount', 'pieceSize', 'availability'];
  constructor() {
    this.canvas = h('canvas', { role: 'img', class: 'piece-map', 'aria-label': 'Map of pieces' });
    this.summary = h('span', { class: 'note' });
    this.node = h('div', { class: 'pieces' },
      h('p', { class: 'legend' }, h('span', { class: 'key have' }, 'Here'), h('span', { class: 'key missing' }, 'Missing'),
        h('span', { class: 'key few' }, 'One peer has it'), h('span', { class: 'key gone' }, 'Nobody has it'), this.summary),
      this.canvas);
  }
  clear() { this.summary.textContent = ''; }
  show(t) {
    if (!t.pieceCount) { this.summary.textContent = 'The pieces are known once the metadata is here.'; return; }
    const bits = bitsOf(t.pieces, t.pieceCount);
    const have = bits.reduce((sum, bit) => sum + bit, 0);
    const plan = drawPieces(this.canvas, bits, t.availability);
    const words = `${format.count(have)} of ${format.count(t.pieceCount)} pieces, ${format.bytes(t.pieceSize)} each`;
    this.summary.textContent = plan && plan.per > 1 ? `${words}; one square is ${format.count(plan.per)} pieces` : words;
    this.canvas.setAttribute('aria-label', `Map of pieces: ${words}`);
  }
}
