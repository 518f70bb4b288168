// Drives the page in headless Chromium: against the mock by default, against a real daemon with `--url URL [--token T]`.
// With `--daemon PROGRAM` the real one is started on a free port, with a tracker and a seeder for it, and ended with SIGTERM,
// which must give exit code 0.
// Ends with "N passed, N failed, N skipped".

import { createRequire } from 'node:module';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startMock } from './mock.mjs';
import { cases } from './cases.mjs';
import { startDaemon, startSwarm } from './programs.mjs';

const { values: options } = parseArgs({ options: {
  url: { type: 'string' }, daemon: { type: 'string' }, token: { type: 'string', default: '' }, modules: { type: 'string' }, out: { type: 'string' },
  chromium: { type: 'string', default: '/usr/bin/chromium' }, only: { type: 'string', default: '' }, rows: { type: 'string', default: '1000' },
} });
const CASE_MAX_MS = 90000;
const require = createRequire(join(options.modules, 'package.json'));
const { chromium } = require('playwright-core');
const axe = require.resolve('axe-core/axe.min.js');
// Each kind of run keeps its screenshots.
const out = options.daemon || options.url ? join(options.out, 'daemon') : options.out;
mkdirSync(out, { recursive: true });

const daemon = options.daemon ? await startDaemon(options.daemon) : null;
if (daemon) Object.assign(options, { url: daemon.url, token: daemon.token });
const mock = options.url ? null : await startMock({ torrents: 10000, token: 'a-token' });
const url = options.url || mock.url;
const token = options.url ? options.token : 'a-token';
const profiles = [];

/** A browser of its own with an empty profile; `extra` are options of Playwright. */
function launch(extra = {}) {
  const profile = mkdtempSync(join(tmpdir(), 'gyre-page-'));
  profiles.push(profile);
  return chromium.launchPersistentContext(profile, { ...settings, ...extra });
}
const settings = {
  executablePath: options.chromium, headless: true, viewport: { width: 1440, height: 900 }, locale: 'en-GB', timezoneId: 'UTC',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
};
const context = await launch();
const requests = [], complaints = [];
context.on('request', (request) => requests.push(request.url()));

/** A new page of the daemon, its table filled. `route` is the fragment beside the token. */
async function open({ base = url, key = token, viewport, scheme = 'light', wait = true, touch = false } = {}) {
  const page = await context.newPage();
  page.setDefaultTimeout(20000);
  if (viewport) await page.setViewportSize(viewport);
  await page.emulateMedia({ colorScheme: scheme });
  page.on('pageerror', (error) => complaints.push(error.stack || String(error)));
  page.on('console', (message) => { if (/Content Security Policy/i.test(message.text())) complaints.push(message.text()); });
  await page.goto(key ? `${base}#token=${encodeURIComponent(key)}` : base);
  if (wait) await page.locator('#live[data-kind=live]').waitFor();
  return page;
}

let passed = 0, failed = 0, skipped = 0;
let swarm = null;
const kit = {
  open, launch, out, mock, url, token, requests, complaints, axe, context, startMock,
  daemon, rows: Number(options.rows),
  /** The tracker and the seeder beside the daemon, started when they are first needed. */
  swarm() { swarm ??= startSwarm(options.daemon); return swarm; },
  /** Ends a case that this run cannot do. */
  skip(reason) { throw Object.assign(new Error(reason), { isSkip: true }); },
};
for (const [name, run, mostMs = CASE_MAX_MS] of cases) {
  if (options.only && !name.includes(options.only)) continue;
  let timer;
  try {
    const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`took longer than ${mostMs} ms`)), mostMs); });
    await Promise.race([run(kit), late]);
    passed += 1;
    console.log(`ok   ${name}`);
  } catch (error) {
    if (error.isSkip) { skipped += 1; console.log(`skipped: the page, ${name}: ${error.message}`); } else {
      failed += 1;
      console.log(`FAIL ${name}\n     ${String(error.stack || error).split('\n').slice(0, 12).join('\n     ')}`);
      for (const page of context.pages().slice(-1)) await page.screenshot({ path: join(out, `failed-${failed}.png`) }).catch(() => {});
    }
  }
  clearTimeout(timer);
  // What one case chose is not the next one's to find.
  for (const page of context.pages().slice(1)) await page.evaluate(() => localStorage.clear()).catch(() => {});
  for (const page of context.pages().slice(1)) await page.close().catch(() => {});
}
await context.close();
if (mock) await mock.close();
if (swarm) await (await swarm.catch(() => null))?.end();
if (daemon) {
  const code = await daemon.end();
  const name = 'SIGTERM ends the daemon with exit code 0';
  if (code === 0) { passed += 1; console.log(`ok   ${name}`); } else { failed += 1; console.log(`FAIL ${name}: ${code}`); }
}
for (const profile of profiles) rmSync(profile, { recursive: true, force: true });
console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exit(failed ? 1 : 0);
