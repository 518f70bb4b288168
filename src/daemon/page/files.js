// The tab Files: which files are wanted, and how urgently.

import { h, setText } from './dom.js';
import * as format from './format.js';
import { call } from './rpc.js';

/** Files drawn at first, and more with each press of the button. */
const FILES_STEP = 200;
const PRIORITIES = [[1, 'High'], [0, 'Normal'], [-1, 'Low']];

export class FilesTab {
  fields = ['files', 'fileStats', 'status', 'percentDone'];
  #rows = [];
  #torrent = null;
  #limit = FILES_STEP;
  #pending = new Map();

  constructor(fail, start) {
    this.fail = fail;
    this.search = h('input', { type: 'search', placeholder: 'Filter files', 'aria-label': 'Filter files', oninput: () => this.#draw() });
    this.summary = h('span', { class: 'note' });
    this.start = h('button', { type: 'button', class: 'primary', onclick: () => start(this.#torrent.id) }, 'Start');
    this.bar = h('div', { class: 'bar' }, this.search,
      h('button', { type: 'button', class: 'quiet', onclick: () => this.#want(true) }, 'Want all'),
      h('button', { type: 'button', class: 'quiet', onclick: () => this.#want(false) }, 'Want none'),
      this.start, this.summary);
    this.body = h('tbody');
    this.more = h('button', { type: 'button', class: 'quiet', hidden: true, onclick: () => { this.#limit += FILES_STEP; this.#draw(); } });
    this.table = h('table', { class: 'sheet files' }, h('caption', { class: 'unseen' }, 'Files'),
      h('thead', {}, h('tr', {}, ['Wanted', 'Name', 'Size', 'Progress', 'Priority'].map((title, at) =>
        h('th', { scope: 'col', class: at === 2 || at === 3 ? 'end' : '' }, title)))), this.body);
    this.node = h('div', {}, this.bar, this.table, this.more);
  }

  clear() {
    this.#torrent = null;
    this.#rows = [];
    this.#pending.clear();
    this.#limit = FILES_STEP;
    this.search.value = '';
    this.body.replaceChildren();
    this.bar.hidden = this.table.hidden = true;
  }

  show(torrent) {
    this.#torrent = torrent;
    this.#draw();
  }

  #shown() {
    const needle = this.search.value.trim().toLowerCase();
    const all = (this.#torrent?.files || []).map((file, index) => ({ file, index }));
    return needle ? all.filter(({ file }) => file.name.toLowerCase().includes(needle)) : all;
  }

  #draw() {
    const torrent = this.#torrent;
    if (!torrent) return;
    const shown = this.#shown();
    const page = shown.slice(0, this.#limit);
    this.bar.hidden = false;
    this.table.hidden = !torrent.files?.length;
    this.start.hidden = torrent.status !== 0 || !(torrent.percentDone < 1);
    while (this.#rows.length > page.length) this.#rows.pop().node.remove();
    page.forEach(({ file, index }, at) => this.#row(at, file, index));
    this.more.hidden = shown.length <= page.length;
    this.more.textContent = `Show more (${format.count(shown.length - page.length)} left)`;
    this.#summarise(torrent);
  }

  #summarise(torrent) {
    let wanted = 0, size = 0;
    (torrent.files || []).forEach((file, index) => {
      if (this.#state(index).wanted) { wanted += 1; size += file.length; }
    });
    this.summary.textContent = torrent.files?.length
      ? `${format.count(wanted)} of ${format.plural(torrent.files.length, 'file')}, ${format.bytes(size)}`
      : 'The files are known once the metadata is here.';
  }

  /** What was just chosen counts until the daemon says the same. */
  #state(index) {
    const said = this.#torrent.fileStats?.[index] || { wanted: true, priority: 0 };
    return { ...said, ...this.#pending.get(index) };
  }

  #row(at, file, index) {
    let row = this.#rows[at];
    if (!row) {
      row = this.#rows[at] = this.#make();
      this.body.append(row.node);
    }
    row.index = index;
    const { wanted, priority } = this.#state(index);
    const name = format.safe(file.name);
    const cut = name.lastIndexOf('/') + 1;
    setText(row.folder, name.slice(0, cut));
    setText(row.name, name.slice(cut));
    row.check.setAttribute('aria-label', `Wanted: ${name}`);
    row.select.setAttribute('aria-label', `Priority of ${name}`);
    if (document.activeElement !== row.check) row.check.checked = wanted;
    if (document.activeElement !== row.select) row.select.value = String(priority);
    row.select.disabled = !wanted;
    row.node.classList.toggle('unwanted', !wanted);
    setText(row.size, format.bytes(file.length));
    setText(row.progress, format.percent(file.length ? file.bytesCompleted / file.length : 1));
  }

  #make() {
    const row = {};
    row.check = h('input', { type: 'checkbox', onchange: () => this.#set([row.index], { wanted: row.check.checked }) });
    row.select = h('select', { onchange: () => this.#set([row.index], { priority: Number(row.select.value) }) },
      PRIORITIES.map(([value, title]) => h('option', { value: String(value) }, title)));
    row.folder = h('span', { class: 'folder' });
    row.name = h('span');
    row.size = h('td', { class: 'end' });
    row.progress = h('td', { class: 'end' });
    row.node = h('tr', {}, h('td', {}, row.check), h('td', { class: 'file-name' }, row.folder, row.name), row.size, row.progress, h('td', {}, row.select));
    return row;
  }

  #want(wanted) { this.#set(this.#shown().map(({ index }) => index), { wanted }); }

  async #set(indices, change) {
    if (!indices.length) return;
    const id = this.#torrent.id;
    for (const index of indices) this.#pending.set(index, { ...this.#pending.get(index), ...change });
    this.#draw();
    const key = 'wanted' in change ? (change.wanted ? 'files-wanted' : 'files-unwanted')
      : { 1: 'priority-high', 0: 'priority-normal', '-1': 'priority-low' }[change.priority];
    try {
      await call('torrent-set', { ids: [id], [key]: indices });
      for (const index of indices) {
        const stat = this.#torrent?.id === id && this.#torrent.fileStats?.[index];
        if (stat) Object.assign(stat, change);
      }
    } catch (error) { this.fail(error); }
    for (const index of indices) this.#pending.delete(index);
    this.#draw();
  }
}
