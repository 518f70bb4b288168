// The table of torrents: a grid that draws only the rows in sight, so that 10,000 cost no more than 40.

import { COLUMNS, describe, hiddenColumns, keepHidden } from './columns.js';
import { h } from './dom.js';
import * as format from './format.js';

/** Rows drawn above and below what is in sight: what a fast wheel shows before the next frame. */
const SPARE_ROWS = 8;
const phone = matchMedia('(max-width: 720px)');

export class Table {
  selected = new Set();
  /** The id that the keyboard stands on, and the one a range starts from. */
  cursor = null;
  #anchor = null;
  #rows = [];
  #grid;
  #head;
  #body;
  #store;
  #on;
  #height = 36;
  #frame = 0;
  #hidden = hiddenColumns();
  #columns = COLUMNS;
  #isPicking = false;

  /** `on.select()` after each change of the selection, `on.open(id)`, `on.menu(x, y)`. */
  constructor(grid, store, on) {
    this.#grid = grid;
    this.#store = store;
    this.#on = on;
    this.#head = h('div', { role: 'row', class: 'head' });
    this.#body = h('div', { role: 'rowgroup', class: 'body' });
    grid.append(h('div', { role: 'rowgroup', class: 'head-group' }, this.#head), this.#body);
    store.onChange(() => this.#onChange());
    grid.addEventListener('scroll', () => this.#schedule(), { passive: true });
    grid.addEventListener('keydown', (event) => this.#onKey(event));
    this.#body.addEventListener('click', (event) => this.#onClick(event));
    this.#body.addEventListener('dblclick', (event) => { const id = idOf(event); if (id !== null) on.open(id); });
    this.#body.addEventListener('contextmenu', (event) => this.#onMenu(event));
    new ResizeObserver(() => this.#schedule()).observe(grid);
    phone.addEventListener('change', () => this.#build());
    this.#build();
  }

  get hidden() { return this.#hidden; }
  get isPicking() { return this.#isPicking; }

  setHidden(hidden) {
    this.#hidden = hidden;
    keepHidden(hidden);
    this.#build();
  }

  /** While picking, a tap adds to the selection. */
  setPicking(on) {
    this.#isPicking = on;
    this.#grid.classList.toggle('picking', on);
    if (!on) this.selected.clear();
    this.#changed();
  }

  select(ids, cursor = ids[0] ?? null) {
    this.selected = new Set(ids);
    this.cursor = this.#anchor = cursor;
    this.#changed();
  }

  selectAll() {
    this.selected = new Set(this.#store.view.map((torrent) => torrent.id));
    this.#changed();
  }

  reveal(id) {
    const index = this.#indexOf(id);
    if (index < 0) return;
    const head = this.#head.offsetHeight;
    const top = index * this.#height, view = this.#grid.clientHeight - head;
    if (top < this.#grid.scrollTop) this.#grid.scrollTop = top;
    else if (top + this.#height > this.#grid.scrollTop + view) this.#grid.scrollTop = top + this.#height - view;
    this.#draw();
  }

  focus() { this.#grid.focus({ preventScroll: true }); }

  #build() {
    this.#columns = COLUMNS.filter((column) => phone.matches || !this.#hidden.has(column.key));
    this.#grid.style.setProperty('--columns', this.#columns.map((column) => column.width).join(' '));
    const min = this.#columns.reduce((sum, column) => sum + (column.min || parseInt(column.width, 10)), 24);
    this.#grid.style.setProperty('--width', phone.matches ? '100%' : `${min}px`);
    this.#head.replaceChildren(...this.#columns.map((column) => this.#header(column)));
    this.#grid.setAttribute('aria-colcount', String(this.#columns.length));
    for (const row of this.#rows) row.remove();
    this.#rows = [];
    this.#height = parseFloat(getComputedStyle(this.#grid).getPropertyValue('--row')) || 36;
    this.#onChange();
  }

  #header(column) {
    const button = h('button', { type: 'button', tabIndex: -1, onclick: () => this.#sortBy(column) }, column.title);
    return h('div', { role: 'columnheader', class: `cell c-${column.key}${column.end ? ' end' : ''}`, 'data-key': column.key }, button);
  }

  #sortBy(column) {
    const { sort } = this.#store;
    const isSame = sort.column === column.key;
    this.#store.setSort(column.key, isSame ? !sort.descending : column.first === 'down');
  }

  #onChange() {
    const { view, torrents, sort } = this.#store;
    for (const cell of this.#head.children) {
      const order = cell.dataset.key === sort.column ? (sort.descending ? 'descending' : 'ascending') : 'none';
      if (cell.getAttribute('aria-sort') !== order) cell.setAttribute('aria-sort', order);
    }
    let isLost = false;
    for (const id of this.selected) if (!torrents.has(id)) { this.selected.delete(id); isLost = true; }
    if (this.cursor !== null && !torrents.has(this.cursor)) this.cursor = this.#anchor = null;
    this.#body.style.height = `${view.length * this.#height}px`;
    this.#grid.setAttribute('aria-rowcount', String(view.length + 1));
    if (isLost) this.#on.select();
    this.#schedule();
  }

  #changed() {
    this.#on.select();
    this.#schedule();
  }

  #schedule() {
    if (!this.#frame) this.#frame = requestAnimationFrame(() => { this.#frame = 0; this.#draw(); });
  }

  #draw() {
    const { view } = this.#store;
    const height = this.#height;
    const inSight = Math.ceil(this.#grid.clientHeight / height) + 1;
    const first = Math.max(0, Math.floor(this.#grid.scrollTop / height) - SPARE_ROWS);
    const last = Math.min(view.length, first + inSight + 2 * SPARE_ROWS);
    const wanted = inSight + 2 * SPARE_ROWS;
    while (this.#rows.length < wanted) this.#rows.push(this.#makeRow());
    const size = this.#rows.length;
    const used = new Set();
    for (let index = first; index < last; index += 1) {
      const slot = index % size;
      used.add(slot);
      this.#showRow(this.#rows[slot], view[index], index);
    }
    this.#rows.forEach((row, slot) => { if (!used.has(slot) && !row.hidden) this.#hideRow(row); });
    const active = this.cursor !== null ? `t${this.cursor}` : '';
    if (active && document.getElementById(active)) this.#grid.setAttribute('aria-activedescendant', active);
    else this.#grid.removeAttribute('aria-activedescendant');
  }

  #makeRow() {
    const row = h('div', { role: 'row', class: 'row' });
    row.append(h('span', { class: 'pick', 'aria-hidden': 'true' }));
    row.cells = this.#columns.map((column) => {
      const cell = h('div', { role: 'gridcell', class: `cell c-${column.key}${column.end ? ' end' : ''}` }, column.make());
      row.append(cell);
      return cell;
    });
    row.hidden = true;
    this.#body.append(row);
    return row;
  }

  #hideRow(row) {
    row.hidden = true;
    row.removeAttribute('id');
    row.isSelected = false;
    row.setAttribute('aria-selected', 'false');
  }

  #showRow(row, torrent, index) {
    if (row.hidden) row.hidden = false;
    if (row.index !== index) {
      row.index = index;
      row.style.transform = `translateY(${index * this.#height}px)`;
      row.setAttribute('aria-rowindex', String(index + 2));
      row.classList.toggle('odd', index % 2 === 1);
    }
    const isSelected = this.selected.has(torrent.id);
    if (row.isSelected !== isSelected) {
      row.isSelected = isSelected;
      row.setAttribute('aria-selected', String(isSelected));
    }
    const isCursor = torrent.id === this.cursor;
    if (row.isCursor !== isCursor) { row.isCursor = isCursor; row.classList.toggle('cursor', isCursor); }
    const id = `t${torrent.id}`;
    if (row.id !== id) row.id = id;
    if (row.torrent === torrent && row.version === torrent.version) return;
    row.torrent = torrent;
    row.version = torrent.version;
    const { tone } = describe(torrent);
    if (row.dataset.tone !== tone) row.dataset.tone = tone;
    this.#columns.forEach((column, at) => column.show(row.cells[at], torrent));
  }

  #indexOf(id) { return this.#store.view.findIndex((torrent) => torrent.id === id); }

  #onClick(event) {
    const id = idOf(event);
    if (id === null) return;
    if (event.shiftKey) this.#range(id, event.ctrlKey || event.metaKey);
    else if (event.ctrlKey || event.metaKey || this.#isPicking) this.#toggle(id);
    else {
      this.select([id]);
      if (phone.matches) this.#on.open(id);
    }
  }

  #onMenu(event) {
    const id = idOf(event);
    if (id === null) return;
    event.preventDefault();
    if (phone.matches) {
      if (!this.#isPicking) { this.selected.clear(); this.setPicking(true); }
      this.#toggle(id);
      return;
    }
    if (!this.selected.has(id)) this.select([id]);
    this.#on.menu(event.clientX, event.clientY);
  }

  #toggle(id) {
    if (!this.selected.delete(id)) this.selected.add(id);
    this.cursor = this.#anchor = id;
    this.#changed();
  }

  /** From the anchor to the given one. */
  #range(id, keep) {
    const { view } = this.#store;
    const to = this.#indexOf(id);
    const from = Math.max(0, this.#anchor === null ? to : this.#indexOf(this.#anchor));
    const ids = view.slice(Math.min(from, to), Math.max(from, to) + 1).map((torrent) => torrent.id);
    this.selected = new Set(keep ? [...this.selected, ...ids] : ids);
    if (this.#anchor === null) this.#anchor = id;
    this.cursor = id;
    this.#changed();
  }

  #onKey(event) {
    if (event.target !== this.#grid || event.altKey) return;
    const { view } = this.#store;
    const page = Math.max(1, Math.floor(this.#grid.clientHeight / this.#height) - 2);
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.key in steps && view.length) {
      const at = this.cursor === null ? -1 : this.#indexOf(this.cursor);
      const step = steps[event.key];
      const next = at < 0 && Number.isFinite(step) ? 0 : Math.min(view.length - 1, Math.max(0, at + step));
      this.#moveTo(view[next].id, event);
    } else if (event.key === ' ' && this.cursor !== null) this.#toggle(this.cursor);
    else if (event.key === 'Enter' && this.cursor !== null) this.#on.open(this.cursor);
    else if (event.key.toLowerCase() === 'a' && (event.ctrlKey || event.metaKey)) this.selectAll();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #moveTo(id, event) {
    if (event.shiftKey) this.#range(id, event.ctrlKey);
    else if (event.ctrlKey || event.metaKey) { this.cursor = id; this.#schedule(); } else this.select([id]);
    this.reveal(id);
  }

  /** What a screen reader says of the selection. */
  summary() {
    const n = this.selected.size;
    return n === 0 ? '' : `${format.plural(n, 'torrent')} selected`;
  }
}

function idOf(event) {
  const row = event.target.closest('.row');
  return row?.torrent ? row.torrent.id : null;
}
