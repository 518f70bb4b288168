// The page: puts its parts together, and shows the state of the session and of the connection.

import { Actions } from './actions.js';
import { COLUMNS } from './columns.js';
import { Details } from './details.js';
import { AddDialog, openDialog, wireDialogs } from './dialogs.js';
import { $, h, icon, kept, setText } from './dom.js';
import { Events } from './events.js';
import { Filters } from './filters.js';
import * as format from './format.js';
import { drawRates } from './graph.js';
import { call, setToken, takeToken } from './rpc.js';
import { offerPolicies, openPolicies } from './policies.js';
import { openLimits, openSettings } from './settings.js';
import { HISTORY_SECONDS, Store } from './store.js';
import { Table } from './table.js';

/** Notices in sight; older ones leave. */
const NOTICES_MAX = 3;
const NOTICE_MS = 6000;
const THEMES = { auto: 'as the system', light: 'light', dark: 'dark' };

/** Lines above the table: what was done, and what went wrong and what to do about it. */
const notices = {
  say(text) { this.put(text, false); },
  fail(error) { this.put(`${error.message || error} ${error.hint || ''}`, true); },
  put(text, isBad) {
    const holder = $('notices');
    const notice = h('div', { class: `notice${isBad ? ' bad' : ''}`, role: isBad ? 'alert' : null },
      icon(isBad ? 'warning' : 'done'), h('p', {}, text),
      h('button', { type: 'button', class: 'square', onclick: () => notice.remove() }, icon('close'), h('span', { class: 'unseen' }, 'Dismiss')));
    holder.append(notice);
    while (holder.children.length > NOTICES_MAX) holder.firstChild.remove();
    // What went wrong stays until it was read.
    if (!isBad) setTimeout(() => notice.remove(), NOTICE_MS);
  },
};

const store = new Store();
let sessionSettings = {};

const page = {
  settings() { openSettings(() => { notices.say('Settings saved.'); page.refreshSession(); }).catch((error) => notices.fail(error)); },
  theme() {
    const names = Object.keys(THEMES);
    page.setTheme(names[(names.indexOf(kept.get('theme', 'auto')) + 1) % names.length]);
  },
  setTheme(theme) {
    kept.set('theme', theme);
    document.documentElement.dataset.theme = theme;
    $('theme-text').textContent = `Theme: ${THEMES[theme]}. Change`;
    $('switch-theme').title = `Theme: ${THEMES[theme]} (T)`;
    drawAll();
  },
  pick(on) {
    $('pick').setAttribute('aria-pressed', String(on));
    table.setPicking(on);
  },
  async refreshSession() {
    try { sessionSettings = await call('session-get'); } catch { return; }
    offerPolicies();
    showLimits();
  },
};

const table = new Table($('grid'), store, {
  select: () => showSelection(),
  open: (id) => details.open(id),
  menu: (x, y) => actions.openMenu(x, y),
});
const details = new Details(store, {
  close: () => { details.close(); showSelection(); },
  act: (act, id) => actions.run(act, [store.torrents.get(id)].filter(Boolean)),
});
new Filters(store);
const addDialog = new AddDialog({ folder: () => sessionSettings['download-dir'] || store.session.download_dir || '', done: onAdded });
const actions = new Actions({ store, table, details, notices, addDialog, page });

function onAdded(added, duplicates, wantsFiles) {
  if (added.length) notices.say(added.length === 1 ? `Added “${format.safe(added[0].name)}”.` : `Added ${format.plural(added.length, 'torrent')}.`);
  if (duplicates.length) {
    notices.say(duplicates.length === 1 ? `“${format.safe(duplicates[0].name)}” is here already; nothing was changed.`
      : `${format.plural(duplicates.length, 'torrent')} are here already; nothing was changed.`);
  }
  const first = added[0] || duplicates[0];
  if (!first) return;
  table.select([first.id]);
  whenHere(first.id, () => { table.select([first.id]); table.reveal(first.id); if (wantsFiles && added.length) details.open(first.id, 'files'); });
}

/** A torrent that was added is in the table with the next delta. */
function whenHere(id, then, tries = 20) {
  if (store.torrents.has(id)) then();
  else if (tries > 0) setTimeout(() => whenHere(id, then, tries - 1), 200);
}

function showSelection() {
  const n = table.selected.size;
  const has = n > 0 || details.isOpen;
  document.body.classList.toggle('has-selection', n > 0);
  for (const button of document.querySelectorAll('#selection-tools button')) button.disabled = !has;
  setText($('picked'), n > 1 || (n === 1 && table.isPicking) ? table.summary() : '');
  if (n === 1 && details.isOpen && !table.isPicking) {
    const [id] = table.selected;
    if (id !== details.id) details.open(id);
  }
}

function showLimits() {
  const is = (key) => sessionSettings[key];
  const slow = is('alt-speed-enabled');
  const words = (name) => (slow ? `of ${format.rate(is(`alt-speed-${name}`) * 1000)}`
    : is(`speed-limit-${name}-enabled`) ? `of ${format.rate(is(`speed-limit-${name}`) * 1000)}` : '');
  setText($('limit-down'), words('down'));
  setText($('limit-up'), words('up'));
}

function showSession() {
  const { session } = store;
  setText($('rate-down'), format.rate(session.rate_down));
  setText($('rate-up'), format.rate(session.rate_up));
  const parts = [session.free_bytes >= 0 && `${format.bytes(session.free_bytes)} free`, session.peers >= 0 && format.plural(session.peers, 'peer')];
  setText($('free'), parts.filter(Boolean).join(', '));
  const moving = session.rate_down || session.rate_up;
  const title = moving ? `↓ ${format.rate(session.rate_down)} ↑ ${format.rate(session.rate_up)} – Gyre` : 'Gyre';
  if (document.title !== title) document.title = title;
  if (!document.hidden) drawAll();
}

/** The graph begins with two minutes and grows to ten, so that the first ones are not a dot at its edge. */
function drawAll() {
  const seconds = Math.min(HISTORY_SECONDS, Math.max(120, Math.ceil(store.history.down.length / 60) * 60));
  setText($('graph-title'), `Last ${seconds / 60} minutes`);
  drawRates($('graph'), store.history, seconds, false);
}

/** An empty table says what to do first. */
function showEmpty() {
  const empty = $('empty');
  empty.hidden = store.view.length > 0 || (!store.isLoaded && store.torrents.size > 0);
  const kind = !store.isLoaded ? 'loading' : store.torrents.size === 0 ? 'none' : 'filtered';
  if (empty.hidden || empty.dataset.kind === kind) { if (empty.hidden) empty.dataset.kind = ''; return; }
  empty.dataset.kind = kind;
  const mark = icon('gyre');
  mark.setAttribute('class', 'mark');
  const button = (words, run, look = 'quiet') => h('button', { type: 'button', class: look, onclick: run }, words);
  if (kind === 'loading') empty.replaceChildren(mark, h('p', {}, 'Asking the daemon for its torrents…'));
  else if (kind === 'none') {
    empty.replaceChildren(mark, h('h2', {}, 'No torrents yet'),
      h('p', {}, 'Drop .torrent files anywhere on this page, paste a magnet link, or choose files. They download to the folder in settings.'),
      h('div', { class: 'buttons' }, button('Add torrents', () => addDialog.open(), 'primary'), button('Settings', () => page.settings())));
  } else {
    empty.replaceChildren(h('h2', {}, 'No torrents match'), h('p', {}, 'None of the torrents fit the search and the filters that are set.'),
      h('div', { class: 'buttons' }, button('Show all torrents', () => {
        $('search').value = '';
        store.setFilter({ state: 'all', label: null, tracker: null, search: '' });
      })));
  }
}

store.onChange(() => { showSession(); showEmpty(); });

let retryAt = 0;
let wasLive = false;
const events = new Events({
  all: (event) => store.all(event),
  delta: (event) => store.delta(event),
  state: (state) => onState(state),
});

function onState({ kind, retryAt: at = 0 }) {
  retryAt = at;
  $('live').dataset.kind = kind;
  setText($('live-text'), { connecting: 'Connecting', live: 'Live', waiting: 'Offline', login: 'Signed out' }[kind]);
  $('login').hidden = kind !== 'login';
  if (kind === 'connecting') store.restart();
  if (kind === 'live') {
    $('banner').hidden = true;
    if (!wasLive) page.refreshSession();
    wasLive = true;
  } else if (kind === 'waiting') {
    wasLive = false;
    $('banner').hidden = false;
    tick();
  } else if (kind === 'login') {
    wasLive = false;
    $('banner').hidden = true;
    $('token').focus();
  }
}

function tick() {
  if ($('banner').hidden || !retryAt) return;
  const seconds = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
  const shown = store.isLoaded ? 'What is shown may be old.' : 'Check that it runs and that this device is on its network.';
  setText($('banner-text'), `The daemon cannot be reached. ${shown} Next try in ${seconds} s.`);
}
setInterval(tick, 1000);

function wireLogin() {
  $('login').addEventListener('submit', (event) => {
    event.preventDefault();
    setToken($('token').value.trim());
    $('token').value = '';
    events.retry();
  });
  window.addEventListener('hashchange', () => { if (location.hash.includes('token=')) { takeToken(); events.retry(); } });
}

function wireView() {
  $('view-sort').append(...COLUMNS.map((column) => h('option', { value: column.key }, column.title)));
  const sort = () => store.setSort($('view-sort').value, $('view-descending').checked);
  $('view-sort').addEventListener('change', sort);
  $('view-descending').addEventListener('change', sort);
  $('view-columns').append(...COLUMNS.filter((column) => !column.fixed).map((column) => h('label', { class: 'choice' },
    h('input', {
      type: 'checkbox', checked: !table.hidden.has(column.key),
      onchange: (event) => {
        const hidden = new Set(table.hidden);
        if (event.target.checked) hidden.delete(column.key); else hidden.add(column.key);
        table.setHidden(hidden);
      },
    }), column.title)));
  $('open-view').addEventListener('click', () => {
    $('view-sort').value = store.sort.column;
    $('view-descending').checked = store.sort.descending;
    openDialog('view');
  });
}

/** Files and links dropped or pasted anywhere open the dialog with them in it. */
function wireDrop() {
  let depth = 0;
  const isWanted = (event) => ['Files', 'text/uri-list', 'text/plain'].some((type) => event.dataTransfer?.types.includes(type));
  const show = (on) => { $('drop').hidden = !on; };
  window.addEventListener('dragenter', (event) => { if (isWanted(event)) { depth += 1; show(true); event.preventDefault(); } });
  window.addEventListener('dragover', (event) => { if (isWanted(event)) event.preventDefault(); });
  window.addEventListener('dragleave', () => { depth = Math.max(0, depth - 1); if (!depth) show(false); });
  window.addEventListener('drop', (event) => {
    depth = 0;
    show(false);
    if (!isWanted(event)) return;
    event.preventDefault();
    offer([...event.dataTransfer.files], event.dataTransfer.getData('text/plain'));
  });
  document.addEventListener('paste', (event) => {
    if (event.target.matches('input, textarea') || document.querySelector('dialog[open]')) return;
    offer([...event.clipboardData.files], event.clipboardData.getData('text/plain'));
  });
  const offer = (files, text) => {
    const links = text.split(/\s+/).filter((word) => /^magnet:\?/i.test(word)).join('\n');
    if (files.length || links) addDialog.open(files, links);
  };
}

function wire() {
  wireDialogs();
  wireLogin();
  wireView();
  wireDrop();
  $('switch-theme').addEventListener('click', () => page.theme());
  $('open-settings').addEventListener('click', () => page.settings());
  $('open-policies').addEventListener('click', () => openPolicies().catch((error) => notices.fail(error)));
  $('open-help').addEventListener('click', () => openDialog('help'));
  $('open-limits').addEventListener('click', () => openLimits([], () => { notices.say('Limits saved.'); page.refreshSession(); }).catch((error) => notices.fail(error)));
  $('banner-retry').addEventListener('click', () => events.retry());
  $('pick').addEventListener('click', () => page.pick($('pick').getAttribute('aria-pressed') !== 'true'));
  let pause = 0;
  $('search').addEventListener('input', (event) => {
    clearTimeout(pause);
    pause = setTimeout(() => { $('grid').scrollTop = 0; store.setFilter({ search: event.target.value }); }, 120);
  });
  $('search').addEventListener('keydown', (event) => { if (event.key === 'ArrowDown' || event.key === 'Enter') { event.preventDefault(); table.focus(); } });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', drawAll);
  new ResizeObserver(drawAll).observe($('graph'));
  store.onChange(() => fillLists());
}

let listed = '';
function fillLists() {
  const labels = store.labels();
  if (labels.join('\n') === listed) return;
  listed = labels.join('\n');
  $('known-labels').replaceChildren(...labels.map((value) => h('option', { value })));
}

takeToken();
wire();
page.setTheme(document.documentElement.dataset.theme);
showSelection();
showEmpty();
events.retry();
