// The cases about looking: order, filters, selection, keys, speed, a lost connection, accessibility and screenshots.

import assert from 'node:assert/strict';
import { join } from 'node:path';

/** Tries to measure frames: other programs on the machine take some of them. */
const ATTEMPTS = 8;

/** Scrolls through the whole table for a while; resolves to the longest gap between frames in milliseconds. */
function longestGap(page) {
  return page.evaluate(() => new Promise((resolve) => {
    const grid = document.querySelector('#grid');
    const started = performance.now();
    let last = started, longest = 0, step = 0;
    const frame = (now) => {
      if (step > 0) longest = Math.max(longest, now - last);
      last = now;
      step += 1;
      const way = (now - started) / 3000;
      if (way >= 1) { resolve(longest); return; }
      grid.scrollTop = (grid.scrollHeight - grid.clientHeight) * (way < 0.5 ? way * 2 : 2 - way * 2);
      requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }));
}

/** The whole table scrolls with no frame of `mostMs` or more, in one of some tries. */
export async function assertSmooth(page, mostMs) {
  const gaps = [];
  for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
    gaps.push(Math.round(await longestGap(page)));
    if (gaps.at(-1) < mostMs) break;
  }
  console.log(`     longest gap between frames: ${gaps.join(', ')} ms`);
  assert.ok(gaps.at(-1) < mostMs, `${gaps} ms`);
}

const shownNames = (page) => page.evaluate(() => [...document.querySelectorAll('.row:not([hidden])')]
  .sort((a, b) => a.ariaRowIndex - b.ariaRowIndex).map((row) => row.querySelector('.name').textContent));

export function browsing({ PHONE, FRAME_MAX_MS, find, needsMock, faults }) {
  return [
    ['10,000 rows scroll without a frame over 100 ms', async (kit) => {
      needsMock(kit);
      const page = await kit.open();
      await assertSmooth(page, FRAME_MAX_MS);
      assert.ok(await page.locator('.row').count() < 80, 'only rows in sight are drawn');
      assert.ok(Number(await page.getAttribute('#grid', 'aria-rowcount')) > 9900);
    }],

    ['any column sorts both ways', async (kit) => {
      needsMock(kit);
      const page = await kit.open();
      await page.click('[data-key=name] button');
      await page.waitForFunction(() => document.querySelector('[data-key=name]').ariaSort === 'ascending');
      const first = (await shownNames(page))[0];
      assert.match(first, /^alpine-1\./);
      await page.click('[data-key=name] button');
      await page.waitForFunction((was) => ![...document.querySelectorAll('.row:not([hidden]) .name')].some((n) => n.textContent === was), first);
      await page.click('[data-key=size_wanted] button');
      await page.waitForFunction(() => document.querySelector('[data-key=size_wanted]').ariaSort === 'descending');
    }],

    ['filters and search narrow the table, and an empty result says how to get back', async (kit) => {
      needsMock(kit);
      const page = await kit.open();
      const rows = () => page.getAttribute('#grid', 'aria-rowcount').then((n) => Number(n) - 1);
      const all = await rows();
      await page.click('#filter-labels button:has-text("maps")');
      const labelled = await rows();
      assert.ok(labelled > 0 && labelled < all);
      await page.click('#filter-trackers button:has-text("archive.example.net")');
      assert.ok(await rows() < labelled);
      await page.fill('#search', 'no such name');
      await page.locator('#empty', { hasText: 'No torrents match' }).waitFor();
      await page.click('#empty button');
      await page.waitForFunction((n) => Math.abs(document.querySelector('#grid').ariaRowCount - 1 - n) < 5, all);
    }],

    ['rows are selected by click, Ctrl, Shift and keys', async (kit) => {
      needsMock(kit);
      const page = await kit.open();
      const row = (n) => page.locator(`.row[aria-rowindex="${n + 1}"]`);
      const selected = () => page.locator('.row[aria-selected=true]').count();
      await page.click('[data-key=name] button');
      await row(1).click();
      await row(4).click({ modifiers: ['Shift'] });
      await page.locator('#picked', { hasText: '4 torrents' }).waitFor();
      await row(2).click({ modifiers: ['Control'] });
      await page.locator('#picked', { hasText: '3 torrents' }).waitFor();
      await page.keyboard.press('Home');
      await page.keyboard.press('ArrowDown');
      await page.keyboard.press('Shift+ArrowDown');
      await page.keyboard.press('Shift+PageDown');
      await page.waitForFunction(() => Number(/\d+/.exec(document.querySelector('#picked').textContent)?.[0]) > 5);
      await page.keyboard.press('End');
      await page.locator('.row.cursor').waitFor();
      const active = await page.getAttribute('#grid', 'aria-activedescendant');
      assert.equal(await page.locator(`#${active}`).getAttribute('aria-rowindex'), await page.getAttribute('#grid', 'aria-rowcount'));
      await page.keyboard.press('Control+a');
      await page.locator('#picked', { hasText: /[\d,.]{5,} torrents/ }).waitFor();
      await page.keyboard.press('Escape');
      await page.waitForFunction(() => !document.querySelector('.row[aria-selected=true]'));
      assert.equal(await selected(), 0);
    }],

    ['keys open the dialogs, the details and the help', async (kit) => {
      const page = await kit.open();
      await page.focus('#grid');
      await page.keyboard.press('?');
      await page.locator('#dialog-help[open]').waitFor();
      await page.keyboard.press('Escape');
      await page.keyboard.press('a');
      await page.locator('#dialog-add[open]').waitFor();
      await page.keyboard.press('Escape');
      await page.keyboard.press('/');
      assert.equal(await page.evaluate(() => document.activeElement.id), 'search');
      if (!kit.mock) return;
      await page.focus('#grid');
      await page.keyboard.press('ArrowDown');
      await page.keyboard.press('Enter');
      await page.locator('#details:not([hidden])').waitFor();
      await page.keyboard.press('4');
      assert.equal(await page.getAttribute('#tab-trackers', 'aria-selected'), 'true');
      await page.keyboard.press('Delete');
      await page.locator('#dialog-remove[open]').waitFor();
      await page.keyboard.press('Escape');
      await page.keyboard.press('Escape');
      await page.locator('#details').waitFor({ state: 'hidden' });
    }],

    ['names of strangers are text, without marks that turn direction', async (kit) => {
      needsMock(kit);
      const evil = '<img src=x onerror=alert(1)>\u202egnp.exe';
      const torrent = kit.mock.world.add({ name: evil, hash: 'e'.repeat(40), size: 1000, labels: ['<b>'], tracker: '', paused: true });
      const page = await kit.open();
      const row = await find(page, '<img src=x');
      assert.equal(await row.locator('.name').textContent(), '<img src=x onerror=alert(1)>\ufffdgnp.exe');
      assert.equal(await page.locator('.row img').count(), 0);
      kit.mock.world.remove(torrent);
    }],

    ['a lost connection shows a banner, and the page comes back by itself', async (kit) => {
      needsMock(kit);
      const page = await kit.open();
      kit.mock.faults.refuseEvents = true;
      kit.mock.cut();
      await page.locator('#banner', { hasText: 'cannot be reached' }).waitFor();
      await page.screenshot({ path: join(kit.out, 'offline.png') });
      kit.mock.faults.refuseEvents = false;
      await page.click('#banner-retry');
      await page.locator('#live[data-kind=live]').waitFor();
      await page.locator('#banner').waitFor({ state: 'hidden' });
    }],

    ['the theme can be chosen and is kept', async (kit) => {
      const page = await kit.open();
      const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
      const light = await ground();
      await page.click('#switch-theme');
      await page.click('#switch-theme');
      assert.notEqual(await ground(), light);
      await page.reload();
      assert.notEqual(await ground(), light);
      await page.evaluate(() => localStorage.clear());
    }],

    ['an empty daemon says what to do first', async (kit) => {
      needsMock(kit);
      const bare = await kit.startMock({ torrents: 0 });
      try {
        const page = await kit.open({ base: bare.url, key: '' });
        await page.locator('#empty', { hasText: 'No torrents yet' }).waitFor();
        await page.screenshot({ path: join(kit.out, 'empty.png') });
        await page.click('#empty .primary');
        await page.locator('#dialog-add[open]').waitFor();
        await page.close();
      } finally { await bare.close(); }
    }],

    ['a phone gets cards, a drawer of filters and actions at the thumb', async (kit) => {
      needsMock(kit);
      const page = await kit.open({ viewport: PHONE });
      await page.waitForTimeout(2500);
      await page.screenshot({ path: join(kit.out, 'phone.png') });
      assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth), 'nothing sticks out');
      await page.click('#open-filters');
      await page.locator('#side.is-open').waitFor();
      await page.waitForTimeout(300);
      await page.screenshot({ path: join(kit.out, 'phone-filters.png') });
      await page.click('#side button:has-text("Downloading")');
      await page.click('#close-filters');
      await page.click('#pick');
      await page.locator('.row:not([hidden])').nth(1).click();
      await page.locator('.row:not([hidden])').nth(3).click();
      await page.locator('#picked', { hasText: '2 torrents' }).waitFor();
      await page.screenshot({ path: join(kit.out, 'phone-pick.png') });
      await page.click('#pick');
      await page.locator('.row:not([hidden])').nth(1).click();
      await page.locator('#details:not([hidden])').waitFor();
      await page.locator('.facts dd').first().waitFor();
      await page.screenshot({ path: join(kit.out, 'phone-details.png') });
      assert.deepEqual(await faults(page, kit), []);
      await page.click('#tab-pieces');
      await page.locator('#panel-pieces .legend', { hasText: 'pieces,' }).waitFor();
      await page.screenshot({ path: join(kit.out, 'phone-pieces.png') });
      await page.click('#details-close');
      await page.click('[data-act=add]');
      await page.screenshot({ path: join(kit.out, 'phone-add.png') });
    }],

    ...['light', 'dark'].map((scheme) => [`axe finds nothing serious, and screenshots are taken: ${scheme}`, async (kit) => {
      const page = await kit.open({ scheme });
      const found = [];
      const look = async (name) => {
        await page.screenshot({ path: join(kit.out, `${scheme}-${name}.png`) });
        found.push(...(await faults(page, kit)).map((fault) => `${name}: ${fault}`));
      };
      if (kit.mock) {
        await page.click('[data-key=rate_down] button');
        await page.waitForTimeout(6000);
        await page.locator('.row[aria-rowindex="5"]').click();
      }
      await look('table');
      if (kit.mock) {
        await page.keyboard.press('Enter');
        for (const tab of ['general', 'files', 'peers', 'trackers', 'pieces', 'speed']) {
          await page.click(`#tab-${tab}`);
          await page.waitForTimeout(400);
          await look(`details-${tab}`);
        }
        await page.click('#details-close');
        await page.locator('.row[aria-rowindex="7"]').click({ button: 'right' });
        await look('menu');
        await page.keyboard.press('Escape');
        for (const act of ['remove', 'move', 'labels', 'limits']) {
          await page.focus('#grid');
          await page.keyboard.press({ remove: 'Delete', move: 'm', labels: 'l', limits: 'k' }[act]);
          await page.locator(`#dialog-${act}[open]`).waitFor();
          await look(act);
          await page.keyboard.press('Escape');
        }
      }
      for (const [button, name] of [['[data-act=add]', 'add'], ['#open-settings', 'settings'], ['#open-help', 'help'], ['#open-view', 'view'], ['#open-limits', 'limits'], ['#open-policies', 'policies']]) {
        await page.click(button);
        await page.locator(`#dialog-${name}[open]`).waitFor();
        await look(name === 'limits' ? 'session-limits' : name);
        await page.keyboard.press('Escape');
      }
      assert.deepEqual(found, []);
    }]),
  ];
}
