// The filters at the side: states, labels and trackers with their counts.

import { $, h, icon, setText } from './dom.js';
import * as format from './format.js';

/** Trackers and labels listed; the largest come first. */
const ENTRIES_MAX = 200;
const STATE_ROWS = [
  ['all', 'All', 'columns'], ['active', 'Active', 'limit'], ['downloading', 'Downloading', 'down'], ['seeding', 'Seeding', 'up'],
  ['stopped', 'Stopped', 'stop'], ['queued', 'Queued', 'clock'], ['checking', 'Checking', 'verify'], ['error', 'Errors', 'warning'],
];

export class Filters {
  #store;
  #buttons = new Map();
  #lists = {};

  constructor(store) {
    this.#store = store;
    $('filter-states').append(...STATE_ROWS.map(([state, words, shape]) => this.#entry(`state ${state}`, words, shape, { state })));
    store.onChange(() => this.#show());
    $('open-filters').addEventListener('click', () => this.drawer(true));
    $('close-filters').addEventListener('click', () => this.drawer(false));
    $('shade').addEventListener('click', () => this.drawer(false));
    $('side').addEventListener('keydown', (event) => { if (event.key === 'Escape') this.drawer(false); });
  }

  drawer(isOpen) {
    const was = $('side').classList.contains('is-open');
    $('side').classList.toggle('is-open', isOpen);
    $('shade').hidden = !isOpen;
    $('open-filters').setAttribute('aria-expanded', String(isOpen));
    if (isOpen) $('close-filters').focus();
    else if (was) $('open-filters').focus();
  }

  #entry(key, words, shape, filter) {
    const text = h('span', { class: 'text' }, words);
    const count = h('span', { class: 'count' });
    const button = h('button', { type: 'button', onclick: () => this.#choose(filter) }, icon(shape), text, count);
    const item = h('li', {}, button);
    this.#buttons.set(key, { button, count, filter, item });
    return item;
  }

  /** Choosing what is chosen takes it back. */
  #choose(filter) {
    const [[name, value]] = Object.entries(filter);
    const isChosen = this.#store.filter[name] === value;
    this.#store.setFilter(isChosen ? { [name]: name === 'state' ? 'all' : null } : filter);
  }

  #show() {
    const { counts } = this.#store;
    for (const [state] of STATE_ROWS) {
      const { button, count } = this.#buttons.get(`state ${state}`);
      setText(count, format.count(counts.states[state]));
      button.classList.toggle('is-bad', state === 'error' && counts.states.error > 0);
    }
    this.#list('labels', 'label', counts.labels, 'label', () => 'None');
    this.#list('trackers', 'tracker', counts.trackers, 'announce', () => 'No tracker');
    for (const { button, filter } of this.#buttons.values()) {
      const [[name, value]] = Object.entries(filter);
      const isOn = String(this.#store.filter[name] === value);
      if (button.getAttribute('aria-pressed') !== isOn) button.setAttribute('aria-pressed', isOn);
    }
  }

  /** Entries are built anew only when others came or went. */
  #list(name, filter, counts, shape, nameless) {
    const entries = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, ENTRIES_MAX);
    const keys = entries.map(([value]) => value);
    const chosen = this.#store.filter[filter];
    if (chosen !== null && !keys.includes(chosen)) { entries.push([chosen, 0]); keys.push(chosen); }
    // Counts change all the time; the places do not until an entry comes or goes.
    // As JSON: the one entry without a name is not the same as no entry.
    const print = JSON.stringify([...keys].sort());
    if (this.#lists[name] !== print) {
      this.#lists[name] = print;
      for (const key of [...this.#buttons.keys()]) if (key.startsWith(`${filter} `)) this.#buttons.delete(key);
      const items = entries.map(([value]) => this.#entry(`${filter} ${value}`, format.safe(value) || nameless(), shape, { [filter]: value }));
      const list = $(`filter-${name}`);
      list.replaceChildren(...items);
      list.previousElementSibling.hidden = !items.length;
    }
    for (const [value, n] of entries) setText(this.#buttons.get(`${filter} ${value}`).count, format.count(n));
  }
}
