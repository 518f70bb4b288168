// What can be done with torrents: buttons, the menu, and keys all come to `Actions.run`.

import { $, h, icon, kept } from './dom.js';
import { openLabels, openMove, openRemove } from './dialogs.js';
import * as format from './format.js';
import { callFor, getTorrent } from './rpc.js';
import { openLimits } from './settings.js';

const MENU = [
  ['start', 'Start', 'start', 'S'], ['stop', 'Stop', 'stop', 'P'], ['verify', 'Verify data', 'verify', 'V'],
  ['reannounce', 'Reannounce', 'announce', 'R'], null,
  ['labels', 'Labels…', 'label', 'L'], ['limits', 'Limits…', 'limit', 'K'], ['move', 'Change folder…', 'folder', 'M'], null,
  ['top', 'To the top of the queue', 'top', ''], ['bottom', 'To the end of the queue', 'bottom', ''], null,
  ['open', 'Details', 'info', 'Enter'], ['remove', 'Remove…', 'remove', 'Del'],
];
/** For the help dialog: keys and what they do. */
const KEYS = [
  [['A'], 'Add torrents'], [['/'], 'Search'], [['↑', '↓', 'PgUp', 'PgDn'], 'Move; with Shift select a range, with Ctrl move alone'],
  [['Space'], 'Select or unselect'], [['Ctrl', 'A'], 'Select all that are shown'], [['Enter'], 'Open details'], [['S', 'P'], 'Start, stop'],
  [['V', 'R'], 'Verify, reannounce'], [['L', 'K', 'M'], 'Labels, limits, folder'], [['Delete'], 'Remove; with Shift including the files'],
  [['1', '6'], 'First to last tab of the details'], [['T'], 'Light, dark or as the system'], [[','], 'Settings'],
  [['Esc'], 'Close the details, then unselect'], [['?'], 'This list'],
];
const SIMPLE = {
  start: ['torrent-start', 'Started'], stop: ['torrent-stop', 'Stopped'], verify: ['torrent-verify', 'Verifying'],
  reannounce: ['torrent-reannounce', 'Asked the trackers of'], top: ['queue-move-top', 'Moved to the top:'], bottom: ['queue-move-bottom', 'Moved to the end:'],
};

export class Actions {
  /** `parts`: `store, table, details, notices, addDialog, page` with `page.settings()`, `page.theme()`, `page.refreshSession()`. */
  constructor(parts) {
    Object.assign(this, parts);
    document.addEventListener('click', (event) => {
      const act = event.target.closest('[data-act]')?.dataset.act;
      if (act) this.run(act);
    });
    this.#wireMenu();
    $('help-keys').tBodies[0].append(...KEYS.map(([keys, words]) => h('tr', {},
      h('td', {}, keys.flatMap((key) => [h('kbd', {}, key), ' '])), h('td', {}, words))));
    const single = $('help-single');
    single.checked = kept.get('single-keys', true);
    single.addEventListener('change', () => kept.set('single-keys', single.checked));
    document.addEventListener('keydown', (event) => this.#onKey(event));
  }

  /** What the next action is about: the selection, or else what the details show. */
  targets() {
    const { selected } = this.table;
    const ids = selected.size ? [...selected] : this.details.id !== null ? [this.details.id] : [];
    return ids.map((id) => this.store.torrents.get(id)).filter(Boolean);
  }

  async run(act, torrents = this.targets(), extra = false) {
    if (act === 'add') { this.addDialog.open(); return; }
    if (!torrents.length) return;
    const refresh = () => this.details.refresh();
    try {
      if (act in SIMPLE) await this.#simple(act, torrents);
      else if (act === 'labels') openLabels(torrents, this.store.labels(), () => { this.notices.say(`Labels saved for ${named(torrents)}.`); refresh(); });
      else if (act === 'limits') await openLimits(torrents, () => { this.notices.say(`Limits saved for ${named(torrents)}.`); refresh(); });
      else if (act === 'move') await this.#move(torrents, refresh);
      else if (act === 'remove') openRemove(torrents, extra, () => this.#removed(torrents));
      else if (act === 'open') this.details.open(torrents[0].id);
    } catch (error) { this.notices.fail(error); }
  }

  async #simple(act, torrents) {
    const [method, words] = SIMPLE[act];
    await callFor(torrents, method);
    this.notices.say(`${words} ${named(torrents)}.`);
    this.details.refresh();
  }

  async #move(torrents, refresh) {
    const known = await getTorrent(torrents[0].id, ['id', 'downloadDir']);
    openMove(torrents, known?.downloadDir || '', (folder, moves) => {
      // Copies take their time: the status column tells how far they are.
      this.notices.say(moves ? `Moving ${named(torrents)} to ${format.safe(folder)}.` : `Folder of ${named(torrents)} is now ${format.safe(folder)}.`);
      refresh();
    });
  }

  #removed(torrents) {
    if (torrents.some((torrent) => torrent.id === this.details.id)) this.details.close();
    this.table.select([]);
    this.notices.say(`Removed ${named(torrents)}.`);
    this.table.focus();
  }

  #wireMenu() {
    const menu = $('menu');
    menu.append(...MENU.map((entry) => (entry
      ? h('button', { type: 'button', role: 'menuitem', tabIndex: -1, onclick: () => { this.closeMenu(); this.run(entry[0]); } },
        icon(entry[2]), entry[1], entry[3] ? h('kbd', { 'aria-hidden': 'true' }, entry[3]) : null)
      : h('hr', { role: 'separator' }))));
    $('more').addEventListener('click', (event) => {
      event.stopPropagation();
      const box = $('more').getBoundingClientRect();
      if (menu.hidden) this.openMenu(box.left, box.bottom + 4, box.top - 4); else this.closeMenu();
    });
    document.addEventListener('pointerdown', (event) => { if (!menu.contains(event.target) && !$('more').contains(event.target)) this.closeMenu(false); });
    menu.addEventListener('keydown', (event) => this.#onMenuKey(event));
  }

  /** At the point, or ending at `above` where there is no room below. */
  openMenu(x, y, above = y) {
    const menu = $('menu');
    menu.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = menu;
    menu.style.left = `${Math.max(6, Math.min(x, innerWidth - width - 6))}px`;
    menu.style.top = `${y + height + 6 <= innerHeight ? y : Math.max(6, above - height)}px`;
    $('more').setAttribute('aria-expanded', 'true');
    menu.querySelector('button').focus();
  }

  closeMenu(refocus = true) {
    if ($('menu').hidden) return;
    $('menu').hidden = true;
    $('more').setAttribute('aria-expanded', 'false');
    if (refocus) this.table.focus();
  }

  #onMenuKey(event) {
    const entries = [...$('menu').querySelectorAll('button')];
    const at = entries.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: entries.length - 1 }[event.key];
    if (to !== undefined) entries[(to + entries.length) % entries.length].focus();
    else if (event.key === 'Escape' || event.key === 'Tab') this.closeMenu();
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  #onKey(event) {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (document.querySelector('dialog[open]') || !$('menu').hidden) return;
    if (event.target.matches('input:not([type=checkbox]), textarea, select')) {
      if (event.key === 'Escape') { event.target.blur(); this.table.focus(); }
      return;
    }
    if (event.key === 'Escape') this.#escape();
    else if (event.key === 'Delete') this.run('remove', this.targets(), event.shiftKey);
    else if (!kept.get('single-keys', true) || !this.#single(event.key)) return;
    event.preventDefault();
  }

  #escape() {
    if (this.details.isOpen) this.details.close();
    else if (this.table.isPicking) this.page.pick(false);
    else this.table.select([]);
    this.table.focus();
  }

  #single(key) {
    const acts = { a: 'add', s: 'start', p: 'stop', v: 'verify', r: 'reannounce', l: 'labels', k: 'limits', m: 'move' };
    if (key.toLowerCase() in acts) this.run(acts[key.toLowerCase()]);
    else if (key === '/') $('search').focus();
    else if (key === '?') $('open-help').click();
    else if (key === ',') this.page.settings();
    else if (key.toLowerCase() === 't') this.page.theme();
    else if (/^[1-6]$/.test(key) && this.details.isOpen) this.details.openTab($('tabs').children[Number(key) - 1].dataset.tab);
    else return false;
    return true;
  }
}

function named(torrents) {
  return torrents.length === 1 ? `“${format.safe(torrents[0].name)}”` : format.plural(torrents.length, 'torrent');
}
