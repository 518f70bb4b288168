// Transmission's own page: `/transmission/web/`, its RPC one folder up, the browser's login.

import assert from 'node:assert/strict';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { until } from './programs.mjs';

export const transmission = {
  name: 'transmission',
  browser: ({ user, password }) => ({ httpCredentials: { username: user, password } }),
  mayFail: [
    [/^port-test /, 'the daemon asks nobody outside'],
  ],
  steps({ page, daemon, swarm, shot }) {
    const { films, recording, data } = swarm;
    const row = (name) => page.locator('#torrent_list > li.torrent', { has: page.locator('.torrent_name', { hasText: name }) });
    const same = (torrent) => torrent.files.every((name) => readFileSync(join(data, name)).equals(readFileSync(join(daemon.downloads, name))));
    const speed = async (kilobytes) => {
      await page.click('#prefs-button');
      await page.click('#prefs-tab-speed a');
      await page.setChecked('#speed-limit-down-enabled', kilobytes !== null);
      if (kilobytes !== null) await page.fill('#speed-limit-down', String(kilobytes));
      await page.locator('#speed-limit-down').blur();
      await until('the limit is the daemon\'s', async () => {
        const now = await daemon.rpc('session-get');
        return now['speed-limit-down-enabled'] === (kilobytes !== null) && (kilobytes === null || now['speed-limit-down'] === kilobytes);
      });
      await page.click('#prefs-button');
      await page.locator('#prefs-dialog').waitFor({ state: 'hidden' });
    };
    return [
      ['the page opens and shows an empty list', async () => {
        await page.goto(`${daemon.url}transmission/web/`);
        await page.locator('#filter-count', { hasText: '0 Transfers' }).waitFor();
      }],
      ['a file is added, paused', async () => {
        await page.click('#toolbar-open');
        await page.setInputFiles('#torrent_upload_file', films.file);
        await page.uncheck('#torrent_auto_start');
        await page.click('#upload_confirm_button');
        await row(films.name).locator('.torrent_peer_details', { hasText: 'Paused' }).waitFor();
      }],
      ['a limit is set and kept while it is fetched', async () => {
        await speed(600);
        await row(films.name).click();
        await page.click('#toolbar-start');
        await row(films.name).locator('.torrent_peer_details', { hasText: 'Downloading from' }).waitFor();
        await until('the limit is reached', async () => {
          const [, figure, unit] = /([\d.]+) (kB|MB|B)\/s/.exec(await page.locator('#speed-dn-label').textContent()) || [];
          const rate = Number(figure) * ({ B: 1, kB: 1e3, MB: 1e6 }[unit] || 0);
          return rate > 300e3 && rate < 750e3;
        }, 500);
        await shot('downloading');
      }],
      ['the inspector tells of peers, trackers and files', async () => {
        await page.click('#toolbar-inspector');
        await page.locator('#inspector-info-location', { hasText: daemon.downloads }).waitFor();
        for (const [tab, list, words] of [['peers', '#inspector_peers_list', 'Gyre'], ['trackers', '#inspector_trackers_list', /got (a list of )?\d+ peer/i], ['files', '#inspector_file_list', 'storyboard']]) {
          await page.click(`#inspector-tab-${tab}`);
          await page.locator(list, { hasText: words }).waitFor();
          await shot(`inspector-${tab}`);
        }
        await page.click('#toolbar-inspector');
      }],
      ['the limit is lifted, and the download is whole', async () => {
        await speed(null);
        await row(films.name).locator('.torrent_peer_details', { hasText: 'Seeding to' }).waitFor({ timeout: 90000 });
        assert.ok(same(films));
      }],
      ['it is stopped and started', async () => {
        await row(films.name).click();
        await page.click('#toolbar-pause');
        await row(films.name).locator('.torrent_peer_details', { hasText: /Paused|Seeding complete/ }).waitFor();
        await row(films.name).click();
        await page.click('#toolbar-start');
        await row(films.name).locator('.torrent_peer_details', { hasText: 'Seeding to' }).waitFor();
      }],
      ['a magnet link is added and fetched', async () => {
        await page.click('#toolbar-open');
        await page.fill('#torrent_upload_url', recording.magnet);
        await page.check('#torrent_auto_start');
        await page.click('#upload_confirm_button');
        await row(recording.name).locator('.torrent_peer_details', { hasText: 'Seeding to' }).waitFor({ timeout: 90000 });
        assert.ok(same(recording));
        await shot('list');
      }],
      ['one is removed, the other with its data', async () => {
        await row(recording.name).click();
        await page.click('#toolbar-remove');
        await page.click('#dialog_confirm_button');
        await row(recording.name).waitFor({ state: 'detached' });
        assert.ok(existsSync(join(daemon.downloads, recording.name)));
        await row(films.name).click({ button: 'right' });
        await page.locator('[data-command=remove_data]:visible').click();
        await page.click('#dialog_confirm_button');
        await row(films.name).waitFor({ state: 'detached' });
        await until('the data is gone', () => !existsSync(join(daemon.downloads, films.name)));
      }],
    ];
  },
};
