// The cases, in order: each opens a page of its own and asserts what a user would see.

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { browsing } from './browsing.mjs';
import { real } from './real.mjs';

const PHONE = { width: 390, height: 844 };
const MAGNET = 'magnet:?xt=urn:btih:0123456789abcdef0123456789abcdef01234567&dn=Sintel+4k';
/** Longer gaps between frames are felt as a stutter. */
const FRAME_MAX_MS = 100;

/** Bytes of a piece of the .torrent files made here. */
const PIECE = 4194304;

/** A .torrent file of one file of this size, as a string of bytes. */
function torrentFile(name, length) {
  const pieces = 'x'.repeat(20 * Math.ceil(length / PIECE));
  return `d8:announce29:http://127.0.0.1:1/announce.x4:infod6:lengthi${length}e4:name${name.length}:${name}12:piece lengthi${PIECE}e6:pieces${pieces.length}:${pieces}ee`;
}

/** Drops files on the page as a file manager would: `[name, text or bytes]` each. */
async function drop(page, files) {
  const data = await page.evaluateHandle((list) => {
    const transfer = new DataTransfer();
    for (const [name, text] of list) {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      transfer.items.add(new File([bytes], name, { type: 'application/x-bittorrent' }));
    }
    return transfer;
  }, files.map(([name, bytes]) => [name, Buffer.from(bytes).toString('base64')]));
  await page.dispatchEvent('body', 'dragenter', { dataTransfer: data });
  await page.locator('#drop').waitFor();
  await page.dispatchEvent('body', 'drop', { dataTransfer: data });
}

async function find(page, text) {
  await page.fill('#search', text);
  const row = page.locator('.row:not([hidden])', { hasText: text }).first();
  await row.waitFor();
  return row;
}

function needsMock(kit) { if (!kit.mock) kit.skip('needs the mock daemon'); }

/** The faults that axe finds, in one line each; only those that keep people out. */
async function faults(page, kit) {
  // As text: the page's policy forbids scripts that are not its own.
  await page.evaluate(await readFile(kit.axe, 'utf8'));
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ['violations'] }));
  return violations.filter(({ impact }) => impact === 'serious' || impact === 'critical')
    .flatMap(({ id, nodes }) => nodes.slice(0, 4).map((node) => `${id}: ${node.html.slice(0, 140)} ${node.failureSummary.split('\n').slice(1, 3).join(' ')}`));
}

export const cases = [
  ['a token in the fragment signs in and leaves the address bar', async ({ open }) => {
    const page = await open();
    assert.ok(!page.url().includes('token'), page.url());
    await page.reload();
    await page.locator('#live[data-kind=live]').waitFor();
  }],

  ['a wrong token asks for another, and the right one opens the table', async (kit) => {
    if (!kit.token) kit.skip('the daemon has no token');
    const page = await kit.open({ key: 'wrong', wait: false });
    await page.fill('#token', kit.token);
    await page.click('#login button');
    await page.locator('#live[data-kind=live]').waitFor();
  }],

  ['the login of the browser itself opens the table', async (kit) => {
    needsMock(kit);
    const mock = await kit.startMock({ torrents: 3, basic: 'op:secret' });
    const browser = await kit.launch({ httpCredentials: { username: 'op', password: 'secret' } });
    try {
      const page = await browser.newPage();
      await page.goto(mock.url);
      await page.locator('#live[data-kind=live]').waitFor({ timeout: 20000 });
      await page.locator('.row:not([hidden])').nth(2).waitFor();
      await page.locator('#limit-up', { hasText: 'MB/s' }).waitFor();
    } finally {
      await browser.close();
      await mock.close();
    }
  }],

  ['a dropped .torrent file is added and completes', async ({ open, mock }) => {
    const page = await open();
    const name = `dropped-${Date.now()}.bin`;
    await drop(page, [[`${name}.torrent`, torrentFile(name, 20000000)]]);
    await page.locator('#add-list li', { hasText: name }).waitFor();
    await page.click('#add-go');
    await page.locator('#dialog-add').waitFor({ state: 'hidden' });
    await page.locator('#notices', { hasText: name }).waitFor();
    const row = await find(page, name);
    if (mock) {
      await row.locator('.c-status', { hasText: 'Seeding' }).waitFor({ timeout: 30000 });
      assert.equal(await row.locator('.value').textContent(), '100%');
    }
    await remove(page, row);
  }],

  ['a magnet link is added stopped with files to choose, then limited, labelled, started, stopped and removed', async (kit) => {
    const page = await kit.open();
    await page.click('[data-act=add]');
    await page.fill('#add-links', MAGNET);
    await page.fill('#add-labels', 'films, short');
    await page.check('[name=add-start][value=files]');
    await page.click('#add-go');
    const row = await find(page, 'Sintel 4k');
    await page.locator('#details:not([hidden])').waitFor();
    assert.equal(await page.getAttribute('#tab-files', 'aria-selected'), 'true');
    await row.locator('.chip', { hasText: 'short' }).waitFor();
    await row.click();
    // The daemon has no limits of single torrents yet.
    if (kit.mock) {
      await page.click('#selection-tools [data-act=limits]');
      await page.locator('#dialog-limits[open]').waitFor();
      await page.check('#set-downloadLimited');
      await page.fill('#set-downloadLimit', '2500');
      await page.click('#dialog-limits [type=submit]');
      await page.locator('#dialog-limits').waitFor({ state: 'hidden' });
      await page.click('#tab-general');
      await page.locator('#panel-general', { hasText: '2.50 MB/s down' }).waitFor();
    }
    await page.click('#selection-tools [data-act=labels]');
    await page.fill('#labels-text', 'kept');
    await page.click('#dialog-labels [type=submit]');
    await row.locator('.chip', { hasText: 'kept' }).waitFor();
    await page.click('#selection-tools [data-act=start]');
    await row.locator('.c-status', { hasText: /Downloading|Metadata|Waiting/ }).waitFor();
    await page.click('#selection-tools [data-act=stop]');
    await row.locator('.c-status', { hasText: 'Stopped' }).waitFor();
    await remove(page, row);
  }],

  ['adding the same torrent twice says that it is here already', async (kit) => {
    const page = await kit.open();
    const name = `twice-${Date.now()}`;
    for (const said of ['Added', 'here already']) {
      await drop(page, [[`${name}.torrent`, torrentFile(name, 5000000)]]);
      await page.click('#add-go');
      await page.locator('#notices', { hasText: said }).waitFor();
    }
    await remove(page, await find(page, name));
  }],

  ['what cannot be added stays in the dialog with the reason', async ({ open }) => {
    const page = await open();
    await drop(page, [['broken.torrent', 'this is no torrent']]);
    await page.click('#add-go');
    const problem = page.locator('#dialog-add [role=alert]');
    await problem.waitFor();
    assert.match(await problem.textContent(), /torrent/i);
    assert.equal(await page.locator('#add-list li').count(), 1);
  }],

  ['a refused call is told in place with what to do', async (kit) => {
    needsMock(kit);
    const page = await kit.open();
    kit.mock.faults.failNext = { method: 'torrent-stop', result: 'the disk does not answer' };
    await page.locator('.row').first().click();
    await page.keyboard.press('p');
    await page.locator('.notice.bad', { hasText: 'The disk does not answer. Nothing was changed.' }).waitFor();
  }],

  ['the piece map shows what is here', async (kit) => {
    needsMock(kit);
    const page = await kit.open();
    await page.click('#filter-states button:has-text("Downloading")');
    await page.locator('.row:not([hidden])').nth(2).dblclick();
    await page.click('#tab-pieces');
    await page.locator('#panel-pieces .legend', { hasText: 'pieces,' }).waitFor();
    const inks = await page.evaluate(() => {
      const canvas = document.querySelector('.piece-map');
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      const seen = new Set();
      for (let at = 0; at < data.length; at += 4) if (data[at + 3]) seen.add(`${data[at]},${data[at + 1]},${data[at + 2]}`);
      return seen.size;
    });
    assert.ok(inks >= 2, `${inks} colours on the map`);
  }],

  ['the speed of the torrent in the details is drawn over time', async (kit) => {
    needsMock(kit);
    const page = await kit.open();
    await page.click('[data-key=rate_down] button');
    await page.locator('.row[aria-rowindex="2"]').dblclick();
    await page.click('#tab-speed');
    // Four seconds of a line and what it fills; a scale alone is grey.
    await page.waitForFunction(() => {
      const canvas = document.querySelector('.speed-graph');
      const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
      let blue = 0;
      for (let at = 0; at < data.length; at += 4) if (data[at + 3] && data[at + 2] > data[at] + 60) blue += 1;
      return blue > 2000;
    });
  }],

  ['a file that is unwanted stays so', async (kit) => {
    needsMock(kit);
    const page = await kit.open();
    const torrent = [...kit.mock.world.torrents.values()].find((t) => t.id % 2 === 0 && t.status === 4);
    await (await find(page, torrent.name)).dblclick();
    await page.click('#tab-files');
    await page.uncheck('.files tbody tr:nth-child(2) input');
    await page.selectOption('.files tbody tr:nth-child(1) select', '1');
    await page.locator('#panel-files .note', { hasText: '6 of 7 files' }).waitFor();
    await page.waitForFunction(() => true);
    assert.equal(torrent.wanted.get(1), false);
    assert.equal(torrent.priorities.get(0), 1);
  }],

  ['policies are shown with what their torrents do, and a torrent with its policies', async (kit) => {
    needsMock(kit);
    const page = await kit.open();
    await page.locator('#open-policies', { hasText: 'Policies (2)' }).click();
    const rows = page.locator('#dialog-policies tbody tr');
    assert.deepEqual(await rows.nth(0).locator('td').allTextContents(),
      ['disk', 'device /srv/disk1', '1,200', '2.50 MB/s of 10.0 MB/s', '0 B/s', '–', '–', '–', 'Always']);
    assert.deepEqual(await rows.nth(1).locator('td').allTextContents(),
      ['films \ufffd', 'label films', '40 (3 waiting, 2 at the goal)', '0 B/s', '0 B/s', '50.0%', '2 downloads, 8 peers', 'ratio 2.00 or 10 d 0 h, then throttle',
        'mon-fri 08:00-17:30 (not now)']);
    await page.click('#dialog-policies [type=submit]');
    await page.locator('.row:not([hidden])').first().click();
    await page.keyboard.press('Enter');
    await page.locator('#panel-general dd', { hasText: 'disk' }).first().waitFor();
  }],

  ['settings are saved, and a refused one says why', async (kit) => {
    needsMock(kit);
    const page = await kit.open();
    await page.click('#open-settings');
    await page.fill('#set-peer-port', '51999');
    await page.click('#dialog-settings [type=submit]');
    await page.locator('#notices', { hasText: 'Settings saved' }).waitFor();
    assert.equal(kit.mock.world.settings['peer-port'], 51999);
    kit.mock.faults.failNext = { method: 'session-set', result: 'the port is taken' };
    await page.click('#open-settings');
    await page.fill('#set-peer-port', '80');
    await page.click('#dialog-settings [type=submit]');
    await page.locator('#dialog-settings [role=alert]', { hasText: 'The port is taken' }).waitFor();
  }],

  ...browsing({ PHONE, FRAME_MAX_MS, find, needsMock, faults }),

  ...real({ PHONE, FRAME_MAX_MS, find, drop, remove, faults }),

  ['no request left the host, nothing broke the content policy, nothing was thrown', async ({ requests, complaints, url }) => {
    const { host } = new URL(url);
    const strangers = requests.filter((each) => !each.startsWith('blob:') && !['127.0.0.1', host.split(':')[0]].includes(new URL(each).hostname));
    assert.deepEqual(strangers, []);
    assert.ok(requests.length > 20);
    assert.deepEqual(complaints, []);
  }],
];

async function remove(page, row) {
  await row.click();
  await page.click('#selection-tools [data-act=remove]');
  await page.check('[name=remove-data][value=delete]');
  await page.locator('#remove-go', { hasText: 'delete files' }).click();
  await row.waitFor({ state: 'hidden' });
}
