// VueTorrent: qBittorrent's Web API and its login by cookie.

import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { until } from './programs.mjs';

export const vuetorrent = {
  name: 'vuetorrent',
  browser: () => ({}),
  mayFail: [
    [/^GET app\/version .*: 403/, 'how the page finds out that it has to log in'],
    [/^\/backend\/ping: 404/, 'a helper of the page that need not be there'],
  ],
  steps({ page, daemon, swarm, password, shot }) {
    const { films, recording, data } = swarm;
    const card = (name) => page.locator('#torrentList > .v-list-item', { hasText: name });
    const same = (torrent) => torrent.files.every((name) => readFileSync(join(data, name)).equals(readFileSync(join(daemon.downloads, name))));
    const button = (name) => page.locator(`header .v-btn:has(.mdi-${name})`);
    const dialog = page.locator('.v-overlay--active .v-card').last();
    const torrentOf = async ({ hash }, fields) => (await daemon.rpc('torrent-get', { ids: [hash], fields })).torrents[0];
    /** An entry of the menu of a torrent, and one of the menu behind it. */
    const choose = async (name, entry, inner) => {
      await card(name).click({ button: 'right' });
      await page.locator('.v-list-item:visible', { hasText: entry }).last().click();
      if (inner) await page.locator('.v-list-item:visible', { hasText: inner }).last().click();
    };
    const limit = async (name, kilobytes) => {
      await choose(name, 'Set limits', 'Set download limit');
      await dialog.getByLabel('Speed Limit').fill(String(kilobytes));
      await dialog.getByRole('button', { name: 'Save' }).click();
      await dialog.waitFor({ state: 'hidden' });
    };
    return [
      ['the page asks for the login and shows an empty list', async () => {
        await page.goto(daemon.url);
        await page.fill('#username', 'op');
        await page.fill('#password', password);
        await page.getByRole('button', { name: 'Login' }).click();
        await page.getByText('Nothing to see here').first().waitFor();
        await shot('empty');
      }],
      ['a file is added, stopped, with a category and a tag', async () => {
        await button('plus').click();
        await dialog.locator('input[type=file]').setInputFiles(films.file);
        await dialog.getByLabel('Category').fill('films');
        await dialog.getByLabel('Tags').fill('kept');
        await dialog.getByLabel('Tags').press('Enter');
        await dialog.getByLabel('Don\'t start download').check();
        await shot('add');
        await dialog.getByRole('button', { name: 'Add torrents' }).click();
        await card(films.name).waitFor();
        const { labels, status } = await torrentOf(films, ['labels', 'status']);
        assert.deepEqual([...labels].sort(), ['films', 'kept']);
        assert.equal(status, 0);
      }],
      ['a limit is set and kept while it is fetched', async () => {
        await limit(films.name, 600);
        assert.equal((await torrentOf(films, ['downloadLimit'])).downloadLimit, 600);
        await card(films.name).click({ modifiers: ['Control'] });
        await button('play').click();
        await until('the limit is reached', async () => {
          const { rateDownload } = await torrentOf(films, ['rateDownload']);
          return rateDownload > 300e3 && rateDownload < 750e3;
        }, 500);
        await card(films.name).getByText('Downloading').first().waitFor();
        await page.keyboard.press('Escape');
        await shot('downloading');
      }],
      ['the details tell of pieces, trackers, peers and files', async () => {
        await card(films.name).dblclick();
        for (const [tab, words] of [['Overview', 'Open films'], ['Info', films.hash], ['Trackers', 'announce'], ['Peers', '127.0.0.1'], ['Content', 'storyboard.zip'], ['Tags & Categories', 'kept']]) {
          await page.getByRole('tab', { name: tab }).click();
          await page.locator('.v-window-item--active', { hasText: words }).waitFor();
          await page.waitForTimeout(700);
          await shot(`details-${tab.split(' ')[0].toLowerCase()}`);
        }
        await page.keyboard.press('Escape');
      }],
      ['the limit is lifted, and the download is whole', async () => {
        await limit(films.name, 0);
        await until('it is complete', async () => (await torrentOf(films, ['percentDone'])).percentDone === 1, 500);
        await card(films.name).getByText('Seeding').or(card(films.name).getByText('Uploading')).first().waitFor();
        assert.ok(same(films));
      }],
      ['it is stopped and started', async () => {
        await card(films.name).click({ modifiers: ['Control'] });
        await button('pause').click();
        await until('it is stopped', async () => (await torrentOf(films, ['status'])).status === 0);
        await button('play').click();
        await until('it is started', async () => (await torrentOf(films, ['status'])).status === 6);
        await page.keyboard.press('Escape');
      }],
      ['a magnet link is added and fetched', async () => {
        await button('plus').click();
        await dialog.getByLabel('Links').fill(recording.magnet);
        await dialog.getByRole('button', { name: 'Add torrents' }).click();
        await card(recording.name).waitFor();
        await until('it is complete', async () => (await torrentOf(recording, ['percentDone'])).percentDone === 1, 500);
        assert.ok(same(recording));
      }],
      ['a category and a tag are given to it', async () => {
        await choose(recording.name, 'Set category', 'films');
        await until('the category is there', async () => (await torrentOf(recording, ['labels'])).labels.includes('films'));
        await choose(recording.name, 'Set tags', 'kept');
        await until('the tag is there', async () => (await torrentOf(recording, ['labels'])).labels.includes('kept'));
        await shot('list');
      }],
      ['a limit for all is set', async () => {
        await page.goto(`${daemon.url}#/settings`);
        await page.getByRole('tab', { name: 'Speed' }).click();
        await page.getByLabel('Download').first().fill('2500');
        await shot('settings');
        await page.getByRole('button', { name: 'Save' }).or(page.locator('.v-btn:has(.mdi-content-save)')).first().click();
        await until('the limit is there', async () => (await daemon.rpc('session-get'))['speed-limit-down'] > 2000);
        await page.goto(`${daemon.url}#/`);
      }],
      ['one is removed, the other with its data', async () => {
        for (const [torrent, deletes] of [[recording, false], [films, true]]) {
          await card(torrent.name).click({ modifiers: ['Control'] });
          await button('delete').click();
          await dialog.getByLabel('Delete files with torrent').setChecked(deletes);
          await dialog.getByRole('button', { name: 'Delete' }).click();
          await card(torrent.name).waitFor({ state: 'detached' });
        }
        assert.ok(existsSync(join(daemon.downloads, recording.name)));
        await until('the data is gone', () => !existsSync(join(daemon.downloads, films.name)));
      }],
    ];
  },
};
