// The cases with real data: a daemon (`--daemon`) that fetches from a seeder on this machine, is limited, moves files, and
// holds a thousand torrents. What a case leaves on disk is compared with what the seeder has.

import assert from 'node:assert/strict';
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { emptyTorrent, pause, until } from './programs.mjs';
import { assertSmooth } from './browsing.mjs';

/** What a case with a swarm may take: half of it are limits that are waited for. */
const SWARM_CASE_MAX_MS = 300000;
/** Figures in a row that are near a limit until it counts as kept, half a second apart. */
const NEAR_COUNT = 4;
/** Beyond the first of them what is measured is the burst that a limiter lets through. */
const NEAR_TRIES_MAX = 150;
/** Calls under way at once while rows are added. */
const ADDERS = 8;
const TABS = ['general', 'files', 'peers', 'trackers', 'pieces', 'speed'];

const UNITS = { B: 1, kB: 1e3, MB: 1e6, GB: 1e9 };

/** Bytes a second of a rate as the page writes it, 0 for none. */
function rateOf(text) {
  const [, figure, unit] = /([\d.,]+) ([kMG]?B)\/s/.exec(text) || [];
  return figure ? Number(figure.replace(',', '')) * UNITS[unit] : 0;
}

/** Waits until the row's rate stays near the limit. */
async function follows(row, limit) {
  const seen = [];
  for (let near = 0; near < NEAR_COUNT;) {
    assert.ok(seen.length < NEAR_TRIES_MAX, `${limit} B/s were never kept: ${seen}`);
    await pause(500);
    const rate = rateOf(await row.locator('.c-rate_down').textContent());
    seen.push(rate);
    near = rate > 0.5 * limit && rate < 1.25 * limit ? near + 1 : 0;
  }
}

/** Pieces here and in all, as the legend of the map says. */
async function piecesOf(page) {
  const text = await page.locator('#panel-pieces .legend .note').textContent();
  const [, have, all] = /([\d,]+) of ([\d,]+) pieces/.exec(text) || [];
  return { have: Number(have?.replace(',', '')), all: Number(all?.replace(',', '')) };
}

/** Pixels of the map in the colour of what is here. */
function inked(page) {
  return page.evaluate(() => {
    const canvas = document.querySelector('.piece-map');
    const ink = getComputedStyle(document.documentElement).getPropertyValue('--have').trim();
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(ink.slice(at, at + 2), 16));
    const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let at = 0; at < data.length; at += 4) if (data[at] === r && data[at + 1] === g && data[at + 2] === b) count += 1;
    return count;
  });
}

/** Sets one limit in the dialog that is open; `null` takes it off. */
async function limit(page, name, kilobytes) {
  await page.locator('#dialog-limits[open]').waitFor();
  const key = name === 'downloadLimit' ? 'downloadLimited' : `${name}-enabled`;
  await page.setChecked(`#set-${key}`, kilobytes !== null);
  if (kilobytes !== null) await page.fill(`#set-${name}`, String(kilobytes));
  await page.click('#dialog-limits [type=submit]');
  await page.locator('#dialog-limits').waitFor({ state: 'hidden' });
}

/** Fails unless each file is there, byte for byte. */
function assertSame(files, from, to) {
  for (const name of files) assert.ok(readFileSync(join(from, name)).equals(readFileSync(join(to, name))), `${name} differs`);
}

export function real({ PHONE, FRAME_MAX_MS, find, drop, remove, faults }) {
  const needsDaemon = (kit) => { if (!kit.daemon) kit.skip('needs --daemon'); };

  /** Screenshots of the page as it is, light and dark and on a phone, with what axe finds. */
  async function look(page, kit, name, found) {
    for (const scheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme: scheme });
      await page.waitForTimeout(300);
      await page.screenshot({ path: join(kit.out, `real-${name}-${scheme}.png`) });
      found.push(...(await faults(page, kit)).map((fault) => `${name}, ${scheme}: ${fault}`));
    }
    await page.emulateMedia({ colorScheme: 'light' });
  }

  async function onPhone(page, kit, name, found) {
    const { width, height } = page.viewportSize();
    await page.setViewportSize(PHONE);
    await page.waitForTimeout(600);
    await page.screenshot({ path: join(kit.out, `real-${name}-phone.png`) });
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'nothing sticks out');
    found.push(...(await faults(page, kit)).map((fault) => `${name}, phone: ${fault}`));
    await page.setViewportSize({ width, height });
  }

  return [
    ['a dropped file comes from a seeder: its limits are followed, its pieces fill, and it is whole', async (kit) => {
      needsDaemon(kit);
      const { films, data } = await kit.swarm();
      const page = await kit.open();
      const found = [];
      await drop(page, [['films.torrent', readFileSync(films.file)]]);
      await page.check('[name=add-start][value=stopped]');
      await page.click('#add-go');
      const row = await find(page, films.name);
      await row.locator('.c-status', { hasText: 'Stopped' }).waitFor();
      await row.click();
      await page.click('#selection-tools [data-act=limits]');
      await limit(page, 'downloadLimit', 400);
      await page.click('#selection-tools [data-act=start]');
      await row.locator('.c-status', { hasText: 'Downloading' }).waitFor();
      await follows(row, 400e3);

      await row.dblclick();
      await page.click('#tab-pieces');
      await page.locator('#panel-pieces .legend', { hasText: 'pieces,' }).waitFor();
      const before = await piecesOf(page);
      assert.ok(before.have > 0 && before.have < before.all, JSON.stringify(before));
      const ink = await inked(page);
      assert.ok(ink > 0);
      for (const [tab, words] of [['peers', 'Gyre'], ['trackers', 'Answered'], ['files', 'storyboard.zip'], ['general', '400 kB/s down']]) {
        await page.click(`#tab-${tab}`);
        await page.locator(`#panel-${tab}`, { hasText: words }).waitFor();
      }
      for (const tab of TABS) {
        await page.click(`#tab-${tab}`);
        await page.waitForTimeout(300);
        await look(page, kit, tab, found);
      }
      await page.click('#tab-pieces');
      await onPhone(page, kit, 'pieces', found);
      await page.click('#details-close');
      await onPhone(page, kit, 'table', found);
      await look(page, kit, 'table', found);

      await row.click();
      await page.click('#selection-tools [data-act=limits]');
      await limit(page, 'downloadLimit', 1600);
      await follows(row, 1600e3);
      await page.click('#open-limits');
      await limit(page, 'speed-limit-down', 800);
      await page.locator('#limit-down', { hasText: 'of 800 kB/s' }).waitFor();
      await follows(row, 800e3);
      await page.click('#open-limits');
      await limit(page, 'speed-limit-down', null);
      await page.click('#selection-tools [data-act=limits]');
      await limit(page, 'downloadLimit', null);

      await row.locator('.c-status', { hasText: 'Seeding' }).waitFor({ timeout: 60000 });
      assert.equal(await row.locator('.value').textContent(), '100%');
      await row.dblclick();
      await page.click('#tab-pieces');
      await page.waitForFunction(() => /^([\d,]+) of \1 pieces/.test(document.querySelector('#panel-pieces .legend .note').textContent));
      assert.ok(await inked(page) > ink);
      assertSame(films.files, data, kit.daemon.downloads);
      assert.deepEqual(found, []);
    }, SWARM_CASE_MAX_MS],

    ['what is here is labelled, stopped, started, and removed with its files', async (kit) => {
      needsDaemon(kit);
      const { films } = await kit.swarm();
      if (!existsSync(join(kit.daemon.downloads, films.name))) kit.skip('needs the download before it');
      const page = await kit.open();
      const row = await find(page, films.name);
      await row.click();
      await page.click('#selection-tools [data-act=labels]');
      await page.fill('#labels-text', 'films, kept');
      await page.click('#dialog-labels [type=submit]');
      await row.locator('.chip', { hasText: 'kept' }).waitFor();
      await page.click('#filter-labels button:has-text("kept")');
      await row.waitFor();
      await page.click('#selection-tools [data-act=stop]');
      await row.locator('.c-status', { hasText: 'Finished' }).waitFor();
      await page.click('#selection-tools [data-act=start]');
      await row.locator('.c-status', { hasText: 'Seeding' }).waitFor();
      await remove(page, row);
      await until('the files are deleted', () => !existsSync(join(kit.daemon.downloads, films.name)));
    }],

    ['a magnet link gets its name and its data from the seeder', async (kit) => {
      needsDaemon(kit);
      const { recording, data } = await kit.swarm();
      const page = await kit.open();
      await page.click('[data-act=add]');
      await page.fill('#add-links', recording.magnet.replace(/&dn=[^&]*/, ''));
      await page.click('#add-go');
      const row = await find(page, recording.name);
      await row.locator('.c-status', { hasText: 'Seeding' }).waitFor({ timeout: 60000 });
      assertSame(recording.files, data, kit.daemon.downloads);
    }],

    ['files on their way to another folder say how far they are', async (kit) => {
      const page = await kit.open();
      const torrent = kit.mock && [...kit.mock.world.torrents.values()].find((each) => each.status === 6);
      const name = kit.mock ? torrent.name : (needsDaemon(kit), (await kit.swarm()).recording.name);
      const to = kit.mock ? '/srv/elsewhere' : join(kit.daemon.other, 'moved');
      const row = await find(page, name);
      await row.dblclick();
      await page.click('#tab-general');
      await row.click();
      await page.keyboard.press('m');
      await page.fill('#move-folder', to);
      await page.click('#dialog-move [type=submit]');
      await page.locator('#notices', { hasText: `to ${to}` }).waitFor();
      if (kit.mock) {
        await row.locator('.c-status', { hasText: /Moving [2-9]\d%/ }).waitFor();
        await page.locator('#panel-general', { hasText: 'moved to another' }).waitFor();
        await page.screenshot({ path: join(kit.out, 'moving.png') });
      }
      await page.locator('#panel-general dd', { hasText: new RegExp(`^${to}$`) }).waitFor();
      await row.locator('.c-status', { hasText: 'Seeding' }).waitFor();
      if (!kit.mock) assertSame([name], (await kit.swarm()).data, to);
    }],

    ['many torrents of a daemon scroll without a frame over 100 ms', async (kit) => {
      needsDaemon(kit);
      const { announce } = await kit.swarm();
      const { rows } = kit;
      const started = Date.now();
      let next = 0;
      const adder = async () => {
        for (let index = next++; index < rows; index = next++) {
          const name = `${['linux', 'maps', 'films', 'texts'][index % 4]}-${Math.floor(index / 4)}.${index % 7}.iso`;
          await kit.daemon.rpc('torrent-add', {
            metainfo: emptyTorrent(name, (1 + index % 900) * 7654321, announce).toString('base64'), paused: true, labels: [['linux', 'maps', 'films', 'texts'][index % 4]],
          });
        }
      };
      await Promise.all(Array.from({ length: ADDERS }, adder));
      console.log(`     ${rows} torrents added in ${((Date.now() - started) / 1000).toFixed(1)} s`);
      const page = await kit.open();
      await page.waitForFunction((least) => document.querySelector('#grid').ariaRowCount > least, rows);
      await assertSmooth(page, FRAME_MAX_MS);
      const found = [];
      await look(page, kit, 'many', found);
      await onPhone(page, kit, 'many', found);
      // All of them at once, as one action.
      await page.focus('#grid');
      await page.keyboard.press('Control+a');
      await page.keyboard.press('Delete');
      await page.check('[name=remove-data][value=delete]');
      await page.screenshot({ path: join(kit.out, 'real-remove-many.png') });
      await page.click('#remove-go');
      await page.locator('#empty', { hasText: 'No torrents yet' }).waitFor({ timeout: 120000 });
      assert.deepEqual(found, []);
      await until('no data is left', () => !existsSync(kit.daemon.downloads) || readdirSync(kit.daemon.downloads).length === 0);
    }, SWARM_CASE_MAX_MS],
  ];
}
