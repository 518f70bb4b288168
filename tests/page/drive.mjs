// Drives the page in headless Chromium: against the mock by default, against a real daemon with `--url URL [--token T]`.
// With `--daemon PATH` the real one is started on a free port and ended with SIGTERM, which must give exit code 0.
// Ends with "N passed, N failed, N skipped".

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { createRequire } from 'node:module';
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { startMock } from './mock.mjs';
import { cases } from './cases.mjs';

const { values: options } = parseArgs({ options: {
  url: { type: 'string' }, daemon: { type: 'string' }, token: { type: 'string', default: '' }, modules: { type: 'string' }, out: { type: 'string' },
  chromium: { type: 'string', default: '/usr/bin/chromium' }, only: { type: 'string', default: '' },
} });
const CASE_MAX_MS = 90000;
const require = createRequire(join(options.modules, 'package.json'));
const { chromium } = require('playwright-core');
const axe = require.resolve('axe-core/axe.min.js');
const out = options.out;
mkdirSync(out, { recursive: true });

/** A daemon with an empty state folder, once its page answers. */
async function startDaemon(program) {
  const folder = mkdtempSync(join(tmpdir(), 'gyre-daemon-'));
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  await once(probe, 'close');
  const child = spawn(program, ['daemon', '--state', join(folder, 'state'), '--downloads', join(folder, 'data'), '--port', '0', '--api', `127.0.0.1:${port}`],
    { stdio: ['ignore', 'ignore', 'inherit'], env: { ...process.env, GYRE_NO_DHT: '1', GYRE_NO_LSD: '1', GYRE_NO_PORT_MAP: '1' } });
  const ended = once(child, 'exit');
  const base = `http://127.0.0.1:${port}/`;
  for (let tries = 0; !(await fetch(base).then(() => true, () => false)); tries += 1) {
    if (tries >= 100 || child.exitCode !== null) { child.kill('SIGKILL'); throw new Error('the daemon does not answer'); }
    await new Promise((wake) => { setTimeout(wake, 100); });
  }
  return {
    url: base,
    token: readFileSync(join(folder, 'state', 'control.token'), 'utf8').trim(),
    /** Ends it in order; resolves to its exit code, `null` if it had to be killed. */
    async end() {
      const timer = setTimeout(() => child.kill('SIGKILL'), 20000);
      child.kill('SIGTERM');
      const [code] = await ended;
      clearTimeout(timer);
      rmSync(folder, { recursive: true, force: true });
      return code;
    },
  };
}

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
const kit = {
  open, launch, out, mock, url, token, requests, complaints, axe, context, startMock,
  /** Ends a case that this run cannot do. */
  skip(reason) { throw Object.assign(new Error(reason), { isSkip: true }); },
};
for (const [name, run] of cases) {
  if (options.only && !name.includes(options.only)) continue;
  let timer;
  try {
    const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`took longer than ${CASE_MAX_MS} ms`)), CASE_MAX_MS); });
    await Promise.race([run(kit), late]);
    passed += 1;
    console.log(`ok   ${name}`);
  } catch (error) {
    if (error.isSkip) { skipped += 1; console.log(`skip ${name}: ${error.message}`); } else {
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
if (daemon) {
  const code = await daemon.end();
  const name = 'SIGTERM ends the daemon with exit code 0';
  if (code === 0) { passed += 1; console.log(`ok   ${name}`); } else { failed += 1; console.log(`FAIL ${name}: ${code}`); }
}
for (const profile of profiles) rmSync(profile, { recursive: true, force: true });
console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exit(failed ? 1 : 0);
