// The columns of the table of torrents: titles, widths, and what a cell shows.

import { h, icon, kept, setIcon, setText } from './dom.js';
import * as format from './format.js';

/** Icon and words for what a torrent does. Each has a shape of its own: colour is never all there is. */
export function describe(torrent) {
  if (torrent.moved_share >= 0) return { icon: 'folder', text: `Moving ${format.wholePercent(torrent.moved_share)}`, tone: 'busy' };
  switch (torrent.state) {
    case 'error': return { icon: 'warning', text: 'Error', tone: 'bad' };
    case 'stopped': return torrent.percent_done >= 1
      ? { icon: 'done', text: 'Finished', tone: 'still' } : { icon: 'stop', text: 'Stopped', tone: 'still' };
    case 'checking': return { icon: 'verify', text: torrent.status === 1 ? 'Check queued' : 'Checking', tone: 'busy' };
    case 'queued': return { icon: 'clock', text: 'Queued', tone: 'still' };
    case 'downloading':
      if (!(torrent.size_wanted > 0)) return { icon: 'magnet', text: 'Metadata', tone: 'busy' };
      return torrent.rate_down > 0
        ? { icon: 'down', text: 'Downloading', tone: 'down' } : { icon: 'down', text: 'Waiting', tone: 'still' };
    default: return torrent.rate_up > 0
      ? { icon: 'up', text: 'Seeding', tone: 'up' } : { icon: 'up', text: 'Seeding', tone: 'still' };
  }
}

const text = (value) => ({ make: () => h('span', { class: 'text' }), show: (cell, torrent) => setText(cell.firstChild, value(torrent)) });

const nameCell = {
  make: () => h('span', { class: 'text name' }),
  show(cell, torrent) {
    const name = format.safe(torrent.name);
    setText(cell.firstChild, name);
    if (cell.title !== name) cell.title = name;
  },
};

const statusCell = {
  make: () => h('span', { class: 'status' }, icon('stop'), h('span', { class: 'text' })),
  show(cell, torrent) {
    const { icon: shape, text: words, tone } = describe(torrent);
    const status = cell.firstChild;
    if (status.dataset.tone !== tone) status.dataset.tone = tone;
    setIcon(status.firstChild, shape);
    setText(status.lastChild, words);
    const title = format.safe(torrent.error);
    if (cell.title !== title) cell.title = title;
  },
};

const progressCell = {
  make: () => h('span', { class: 'progress' }, h('span', { class: 'track' }, h('span', { class: 'fill' })), h('span', { class: 'value' })),
  show(cell, torrent) {
    const [track, value] = cell.firstChild.children;
    const tone = torrent.state === 'error' ? 'bad' : torrent.percent_done >= 1 ? 'done' : torrent.state === 'downloading' ? 'down' : 'still';
    if (track.dataset.tone !== tone) track.dataset.tone = tone;
    track.firstChild.style.transform = `scaleX(${torrent.percent_done || 0})`;
    setText(value, format.percent(torrent.percent_done));
  },
};

const labelsCell = {
  make: () => h('span', { class: 'chips' }),
  show(cell, torrent) {
    if (cell.shown === torrent.labelText) return;
    cell.shown = torrent.labelText;
    cell.firstChild.replaceChildren(...(torrent.labels || []).map((label) => h('span', { class: 'chip' }, format.safe(label))));
  },
};

/** `key` is the name in the live table, by which is sorted too; `width` is a track of the grid. */
export const COLUMNS = [
  { key: 'name', title: 'Name', width: 'minmax(220px, 1fr)', min: 220, fixed: true, ...nameCell },
  { key: 'status', title: 'Status', width: '124px', ...statusCell },
  { key: 'percent_done', title: 'Progress', width: '136px', first: 'down', ...progressCell },
  { key: 'size_wanted', title: 'Size', width: '86px', end: true, first: 'down', ...text((t) => (t.size_wanted > 0 ? format.bytes(t.size_wanted) : '–')) },
  { key: 'rate_down', title: 'Down', width: '92px', end: true, first: 'down', ...text((t) => format.quietRate(t.rate_down)) },
  { key: 'rate_up', title: 'Up', width: '92px', end: true, first: 'down', ...text((t) => format.quietRate(t.rate_up)) },
  { key: 'eta', title: 'Time left', width: '98px', end: true, ...text((t) => (t.percent_done < 1 ? format.eta(t.eta) : '')) },
  { key: 'ratio', title: 'Ratio', width: '68px', end: true, first: 'down', ...text((t) => format.ratio(t.ratio)) },
  { key: 'peers', title: 'Peers', width: '68px', end: true, first: 'down', ...text((t) => (t.peers > 0 ? format.count(t.peers) : '')) },
  { key: 'labels', title: 'Labels', width: '132px', ...labelsCell },
  { key: 'tracker_host', title: 'Tracker', width: '150px', hidden: innerWidth < 1700, ...text((t) => format.safe(t.tracker_host)) },
  { key: 'uploaded_ever', title: 'Uploaded', width: '96px', end: true, first: 'down', hidden: true, ...text((t) => format.bytes(t.uploaded_ever)) },
  { key: 'added', title: 'Added', width: '116px', end: true, first: 'down', hidden: true, ...text((t) => format.date(t.added)) },
  { key: 'queue_position', title: 'Queue', width: '72px', end: true, hidden: true, ...text((t) => format.count(t.queue_position + 1)) },
];

export function hiddenColumns() {
  return new Set(kept.get('hidden', COLUMNS.filter((column) => column.hidden).map((column) => column.key)));
}

export function keepHidden(hidden) { kept.set('hidden', [...hidden]); }
