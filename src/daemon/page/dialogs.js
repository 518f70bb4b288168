// The dialogs: each fills its form, calls the daemon, and shows what went wrong inside itself.

import { $, h } from './dom.js';
import * as format from './format.js';
import { base64, call, callFor } from './rpc.js';

/** A .torrent file is small; what is larger is something else. */
const TORRENT_FILE_MAX = 64 * 1024 * 1024;
/** Names listed in the question whether to remove. */
const NAMES_MAX = 5;

/** Opens a dialog; `submit` returns when it is done, or throws what is then shown in it. */
export function openDialog(name, submit) {
  const dialog = $(`dialog-${name}`);
  const form = dialog.querySelector('form');
  const problem = dialog.querySelector('[role=alert]');
  const go = form.querySelector('[type=submit]');
  if (problem) problem.hidden = true;
  form.onsubmit = async (event) => {
    event.preventDefault();
    if (go.disabled) return;
    go.disabled = true;
    if (problem) problem.hidden = true;
    try {
      if ((await submit?.()) !== false) dialog.close();
    } catch (error) {
      problem.hidden = false;
      problem.textContent = `${error.message} ${error.hint || ''}`;
      problem.scrollIntoView({ block: 'nearest' });
    } finally { go.disabled = false; }
  };
  if (!dialog.open) dialog.showModal();
  return dialog;
}

export function wireDialogs() {
  for (const dialog of document.querySelectorAll('dialog')) {
    dialog.addEventListener('click', (event) => {
      if (event.target.closest('[data-close]')) dialog.close();
      // The backdrop is the dialog itself, outside its form.
      else if (event.target === dialog && event.detail > 0) dialog.close();
    });
  }
}

export function labelsOf(text) {
  return [...new Set(text.split(',').map((label) => label.trim()).filter(Boolean))];
}

const chosen = (name) => document.querySelector(`[name=${name}]:checked`).value;
const choose = (name, value) => { document.querySelector(`[name=${name}][value=${value}]`).checked = true; };

/** Adding: links from the text, files from the field and from drops. */
export class AddDialog {
  #files = [];
  #context;

  /** `context.folder()`, `context.done(added, duplicates, wantsFiles)`. */
  constructor(context) {
    this.#context = context;
    $('add-files').addEventListener('change', (event) => { this.#take(event.target.files); event.target.value = ''; });
  }

  open(files = [], links = '') {
    if (!$('dialog-add').open) {
      this.#files = [];
      $('add-links').value = '';
      $('add-folder').value = this.#context.folder();
      $('add-labels').value = '';
      choose('add-start', 'start');
    }
    if (links) $('add-links').value = [$('add-links').value.trim(), links].filter(Boolean).join('\n');
    this.#take(files);
    openDialog('add', () => this.#submit());
    if (this.#files.length || links) $('add-go').focus(); else $('add-links').focus();
  }

  #take(files) {
    for (const file of files) {
      const fault = file.size > TORRENT_FILE_MAX ? 'Too large for a .torrent file' : file.size === 0 ? 'The file is empty' : '';
      this.#files.push({ file, fault });
    }
    this.#list();
  }

  #list() {
    $('add-list').replaceChildren(...this.#files.map(({ file, fault }) => h('li', { class: fault ? 'bad' : '' },
      h('span', {}, format.safe(file.name)), h('span', { class: 'note' }, fault || format.bytes(file.size)))));
  }

  async #submit() {
    const links = $('add-links').value.split(/\s+/).filter(Boolean);
    const waiting = [...this.#files.map((entry) => ({ entry })), ...links.map((link) => ({ link }))];
    if (!waiting.length) throw { message: 'There is nothing to add yet.', hint: 'Paste a magnet link or choose a .torrent file.' };
    const start = chosen('add-start');
    const common = { paused: start !== 'start', labels: labelsOf($('add-labels').value) };
    const folder = $('add-folder').value.trim();
    if (folder) common['download-dir'] = folder;
    const added = [], duplicates = [], failed = [];
    for (const { entry, link } of waiting) {
      try {
        if (entry?.fault) throw { message: entry.fault };
        const what = entry ? { metainfo: base64(await entry.file.arrayBuffer()) } : { filename: link };
        const answer = await call('torrent-add', { ...common, ...what });
        if (answer['torrent-added']) added.push(answer['torrent-added']);
        if (answer['torrent-duplicate']) duplicates.push(answer['torrent-duplicate']);
      } catch (error) {
        if (entry) entry.fault = error.message;
        failed.push({ entry, link, error });
      }
    }
    this.#context.done(added, duplicates, start === 'files');
    if (!failed.length) return true;
    // What worked is gone from the form; what did not stays to be corrected.
    this.#files = failed.filter(({ entry }) => entry).map(({ entry }) => entry);
    $('add-links').value = failed.filter(({ link }) => link).map(({ link }) => link).join('\n');
    this.#list();
    const { message, hint } = failed[0].error;
    const error = { message: failed.length === 1 ? message : `${failed.length} were not added. ${message}`, hint };
    for (const { entry } of failed) if (entry && entry.file.size > 0 && entry.file.size <= TORRENT_FILE_MAX) entry.fault = '';
    throw error;
  }
}

export function openRemove(torrents, deletes, done) {
  const names = torrents.slice(0, NAMES_MAX).map((torrent) => h('li', {}, format.safe(torrent.name)));
  if (torrents.length > NAMES_MAX) names.push(h('li', { class: 'note' }, `and ${format.count(torrents.length - NAMES_MAX)} more`));
  $('remove-title').textContent = `Remove ${format.plural(torrents.length, 'torrent')}?`;
  $('remove-names').replaceChildren(...names);
  choose('remove-data', deletes ? 'delete' : 'keep');
  const mark = () => { $('remove-go').textContent = chosen('remove-data') === 'delete' ? 'Remove and delete files' : 'Remove'; };
  for (const input of document.querySelectorAll('[name=remove-data]')) input.onchange = mark;
  mark();
  openDialog('remove', async () => {
    await callFor(torrents, 'torrent-remove', { 'delete-local-data': chosen('remove-data') === 'delete' });
    done();
  });
}

export function openMove(torrents, folder, done) {
  $('move-title').textContent = torrents.length === 1 ? 'Change folder' : `Change folder of ${format.plural(torrents.length, 'torrent')}`;
  $('move-folder').value = folder;
  choose('move-data', 'move');
  openDialog('move', async () => {
    const location = $('move-folder').value.trim();
    const moves = chosen('move-data') === 'move';
    await callFor(torrents, 'torrent-set-location', { location, move: moves });
    done(location, moves);
  });
  $('move-folder').select();
}

export function openLabels(torrents, known, done) {
  const common = torrents[0].labels?.filter((label) => torrents.every((torrent) => torrent.labels?.includes(label))) || [];
  const isMixed = torrents.some((torrent) => (torrent.labels?.length || 0) !== common.length);
  $('labels-note').textContent = isMixed
    ? `${format.plural(torrents.length, 'torrent')} with different labels: what you save replaces all of them.`
    : `For ${torrents.length === 1 ? format.safe(torrents[0].name) : format.plural(torrents.length, 'torrent')}.`;
  const input = $('labels-text');
  input.value = common.join(', ');
  const chips = known.map((label) => h('button', {
    type: 'button', class: 'chip', 'data-label': label,
    onclick: () => {
      const now = labelsOf(input.value);
      input.value = (now.includes(label) ? now.filter((each) => each !== label) : [...now, label]).join(', ');
      mark();
    },
  }, format.safe(label)));
  const mark = () => {
    const now = labelsOf(input.value);
    for (const chip of chips) chip.setAttribute('aria-pressed', String(now.includes(chip.dataset.label)));
  };
  $('labels-known').replaceChildren(...chips);
  input.oninput = mark;
  mark();
  openDialog('labels', async () => {
    await callFor(torrents, 'torrent-set', { labels: labelsOf(input.value) });
    done();
  });
  input.focus();
}
