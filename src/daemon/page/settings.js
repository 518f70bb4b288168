// Limits and session settings: forms made from lists of fields, of which those show that the daemon knows.

import { $, h } from './dom.js';
import * as format from './format.js';
import { openDialog } from './dialogs.js';
import { call, callFor } from './rpc.js';

/** `[key, words, kind, { on?: key of its switch, unit?, min?, max?, step?, options? }]`; the switch is a checkbox before the words. */
const SESSION_LIMITS = ['Speed', [
  ['speed-limit-down', 'Limit down', 'number', { on: 'speed-limit-down-enabled', unit: 'kB/s', min: 0 }],
  ['speed-limit-up', 'Limit up', 'number', { on: 'speed-limit-up-enabled', unit: 'kB/s', min: 0 }],
  ['alt-speed-enabled', 'Use the slow limits now', 'bool', {}],
  ['alt-speed-down', 'Slow limit down', 'number', { unit: 'kB/s', min: 0 }],
  ['alt-speed-up', 'Slow limit up', 'number', { unit: 'kB/s', min: 0 }],
]];
const ENCRYPTION = [['required', 'Hidden only'], ['preferred', 'Prefer hidden'], ['tolerated', 'Plain, hidden if asked']];
const SETTINGS = [
  ['Adding', [
    ['download-dir', 'Folder', 'path', {}],
    ['incomplete-dir', 'Keep unfinished files elsewhere', 'path', { on: 'incomplete-dir-enabled' }],
    ['start-added-torrents', 'Start what is added', 'bool', {}],
  ]],
  SESSION_LIMITS,
  ['Queue and seeding', [
    ['download-queue-size', 'Downloads at once', 'number', { on: 'download-queue-enabled', min: 1 }],
    ['seed-queue-size', 'Seeding at once', 'number', { on: 'seed-queue-enabled', min: 1 }],
    ['queue-stalled-minutes', 'Keep no place in it when idle for', 'number', { on: 'queue-stalled-enabled', unit: 'min', min: 1 }],
    ['seedRatioLimit', 'Stop seeding at ratio', 'number', { on: 'seedRatioLimited', min: 0, step: 0.01 }],
    ['idle-seeding-limit', 'Stop seeding when idle for', 'number', { on: 'idle-seeding-limit-enabled', unit: 'min', min: 1 }],
  ]],
  ['Network', [
    ['peer-port', 'Port', 'number', { min: 1, max: 65535 }],
    ['encryption', 'Connections', 'choice', { options: ENCRYPTION }],
    ['peer-limit-global', 'Peers in all', 'number', { min: 1 }],
    ['peer-limit-per-torrent', 'Peers for each torrent', 'number', { min: 1 }],
    ['dht-enabled', 'Find peers by the DHT', 'bool', {}],
    ['pex-enabled', 'Find peers by other peers', 'bool', {}],
    ['lpd-enabled', 'Find peers on the local network', 'bool', {}],
  ]],
];
const INHERIT = [['0', 'As in settings'], ['1', 'This ratio'], ['2', 'Never']];
const INHERIT_TIME = [['0', 'As in settings'], ['1', 'This time'], ['2', 'Never']];
const TORRENT_LIMITS = [['', [
  ['downloadLimit', 'Limit down', 'number', { on: 'downloadLimited', unit: 'kB/s', min: 0 }],
  ['uploadLimit', 'Limit up', 'number', { on: 'uploadLimited', unit: 'kB/s', min: 0 }],
  ['seedRatioMode', 'Stop seeding at', 'choice', { options: INHERIT, isNumber: true }],
  ['seedRatioLimit', 'Ratio', 'number', { min: 0, step: 0.01 }],
  ['seedIdleMode', 'Stop seeding when idle for', 'choice', { options: INHERIT_TIME, isNumber: true }],
  ['seedIdleLimit', 'Time', 'number', { unit: 'min', min: 0, step: 0.1 }],
  ['bandwidthPriority', 'Priority', 'choice', { options: [['1', 'High'], ['0', 'Normal'], ['-1', 'Low']], isNumber: true }],
  ['superSeeding', 'Show each peer one piece at a time (super-seeding)', 'bool', {}],
  ['honorsSessionLimits', 'Keep to the limits of the session', 'bool', {}],
]]];

/** Fills `holder`; returns a function that tells what was changed. */
function form(holder, groups, values) {
  const readers = [];
  const sections = groups.map(([title, fields]) => {
    const rows = fields.filter(([key]) => key in values).map((field) => row(field, values, readers));
    return rows.length ? h('section', {}, title ? h('h3', {}, title) : null, rows) : null;
  });
  holder.replaceChildren(...sections.filter(Boolean));
  return () => {
    const changed = {};
    for (const [key, read] of readers) {
      const value = read();
      if (value !== values[key]) changed[key] = value;
    }
    return changed;
  };
}

function row([key, words, kind, options], values, readers) {
  const id = `set-${key}`;
  if (kind === 'bool') {
    const input = h('input', { type: 'checkbox', id, checked: values[key] });
    readers.push([key, () => input.checked]);
    return h('div', { class: 'setting' }, h('label', { for: id }, input, words));
  }
  const input = control(id, key, kind, options, values);
  readers.push([key, () => read(input, kind, options)]);
  let label = h('label', { for: id }, words);
  if (options.on && options.on in values) {
    const check = h('input', { type: 'checkbox', id: `set-${options.on}`, checked: values[options.on], onchange: () => mark() });
    const mark = () => { input.disabled = !check.checked; };
    mark();
    readers.push([options.on, () => check.checked]);
    label = h('label', { for: check.id }, check, words);
    input.setAttribute('aria-label', options.unit ? `${words}, ${options.unit}` : words);
  }
  return h('div', { class: 'setting' }, label, input, kind !== 'path' ? h('span', { class: 'unit' }, options.unit || '') : null);
}

function control(id, key, kind, options, values) {
  if (kind === 'choice') {
    const select = h('select', { id }, options.options.map(([value, words]) => h('option', { value }, words)));
    select.value = String(values[key]);
    return select;
  }
  if (kind === 'path') return h('input', { id, type: 'text', class: 'path', value: values[key], spellcheck: false });
  return h('input', { id, type: 'number', inputMode: 'decimal', required: true, min: String(options.min ?? 0), max: String(options.max ?? ''), step: String(options.step ?? 1), value: String(values[key]) });
}

function read(input, kind, options) {
  if (kind === 'number' || options.isNumber) return Number(input.value);
  return input.value;
}

async function save(method, args) { if (Object.keys(args).length) await call(method, args); }

/** Limits of the session, or of the torrents given. */
export async function openLimits(torrents, done) {
  if (!torrents.length) {
    const values = await call('session-get');
    $('limits-title').textContent = 'Speed limits';
    $('limits-note').textContent = 'For all torrents together.';
    const changes = form($('limits-fields'), [['', SESSION_LIMITS[1]]], values);
    openDialog('limits', async () => { await save('session-set', changes()); done('session'); });
    return;
  }
  const fields = TORRENT_LIMITS[0][1].flatMap(([key, , , options]) => [key, options.on].filter(Boolean));
  const answer = await call('torrent-get', { ids: [torrents[0].id], fields });
  const values = answer.torrents?.[0] || {};
  $('limits-title').textContent = torrents.length === 1 ? 'Limits' : `Limits of ${format.plural(torrents.length, 'torrent')}`;
  $('limits-note').textContent = torrents.length === 1
    ? format.safe(torrents[0].name) : `Shown are those of ${format.safe(torrents[0].name)}; what you change is set for all.`;
  const changes = form($('limits-fields'), TORRENT_LIMITS, values);
  openDialog('limits', async () => {
    const changed = changes();
    if (Object.keys(changed).length) await callFor(torrents, 'torrent-set', changed);
    done('torrents');
  });
}

export async function openSettings(done) {
  const [values, stats] = await Promise.all([call('session-get'), call('session-stats').catch(() => ({}))]);
  const changes = form($('settings-fields'), SETTINGS, values);
  const total = stats['cumulative-stats'];
  $('settings-about').textContent = [values.version && `Gyre ${format.safe(values.version)}`,
    total && `${format.bytes(total.downloadedBytes)} down and ${format.bytes(total.uploadedBytes)} up in all`].filter(Boolean).join('. ');
  openDialog('settings', async () => { await save('session-set', changes()); done(); });
}
