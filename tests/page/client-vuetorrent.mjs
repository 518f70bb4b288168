// VueTorrent: a page for qBittorrent's Web API, served at `/`, with a login of its own.

import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { until } from './programs.mjs';

export const vuetorrent = {
  name: 'vuetorrent',
  browser: () => ({}),
  mayFail: [
    [/^\/api\/v2\/app\/version: 403/, 'how the page finds out that nobody is logged in'],
    [/^\/backend\/ping: 404/, 'a server of its own that it does without'],
    [/sw\.js/, 'only a release has a service worker'],
  ],
  steps({ page, daemon, swarm, password, shot }) {
    const { films, recording, data } = swarm;
    const row = ({ hash }) => page.locator(`[id="torrent-${hash}"]`);
    const says = (torrent, words, options) => row(torrent).getByText(words).first().waitFor(options);
    const same = (torrent) => torrent.files.every((name) => readFileSync(join(data, name)).equals(readFileSync(join(daemon.downloads, name))));
    const dialog = () => page.locator('.v-dialog .v-card:visible').last();
    const menu = async (torrent, icon) => {
      await row(torrent).click({ button: 'right' });
      await page.locator(`.v-menu button:has(.${icon}):visible`).click();
    };
    const open = async () => {
      await page.locator('button:has(.mdi-plus)').first().click();
      await dialog().getByText('Add Torrents', { exact: false }).first().waitFor();
    };
    const add = async () => {
      await dialog().locator('button[type=submit]').click();
      await dialog().waitFor({ state: 'detached' });
    };
    return [
      ['the login opens the list', async () => {
        await page.goto(daemon.url);
        await page.fill('#username', 'op');
        await page.fill('#password', password);
        await page.keyboard.press('Enter');
        await page.locator('button:has(.mdi-plus)').first().waitFor();
      }],
      ['a file is added and fetched', async () => {
        await open();
        await page.setInputFiles('.v-dialog input[type=file]', films.file);
        await add();
        await says(films, 'Open films');
        await shot('downloading');
        await says(films, /(Seeding|Uploading)$/, { timeout: 90000 });
        assert.ok(same(films));
      }],
      ['it is stopped and started', async () => {
        await menu(films, 'mdi-pause');
        await says(films, /Done$/);
        await until('the daemon has stopped it', async () => (await daemon.rpc('torrent-get', { ids: [films.hash], fields: ['status'] })).torrents[0].status === 0);
        await menu(films, 'mdi-play');
        await until('the daemon has started it', async () => (await daemon.rpc('torrent-get', { ids: [films.hash], fields: ['status'] })).torrents[0].status === 6);
      }],
      ['its details show files, trackers and pieces', async () => {
        await row(films).dblclick();
        for (const [tab, words] of [['Overview', films.hash], ['Trackers', swarm.announce], ['Content', 'Sintel.mkv']]) {
          await page.getByRole('tab', { name: tab }).click();
          await page.getByText(words).first().waitFor();
          await shot(`details-${tab.toLowerCase()}`);
        }
        await page.goBack();
        await row(films).waitFor();
      }],
      ['a magnet link is added and fetched', async () => {
        await open();
        await dialog().locator('textarea').first().fill(recording.magnet);
        await add();
        await says(recording, /(Seeding|Uploading)$/, { timeout: 90000 });
        assert.ok(same(recording));
        await shot('list');
      }],
      ['one is removed, the other with its data', async () => {
        for (const [torrent, isWhole] of [[recording, false], [films, true]]) {
          await menu(torrent, 'mdi-delete-forever');
          const box = dialog().locator('input[type=checkbox]').first();
          await box.setChecked(isWhole);
          await dialog().getByRole('button', { name: 'Delete' }).click();
          await row(torrent).waitFor({ state: 'detached' });
        }
        assert.ok(existsSync(join(daemon.downloads, recording.name)));
        await until('the data is gone', () => !existsSync(join(daemon.downloads, films.name)));
      }],
    ];
  },
};
