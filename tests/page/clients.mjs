// Drives the pages of other programs on daemons that serve them (`--web-ui`), with a seeder that they download from. Each
// request to the API is watched: one that is refused, or answered with less than was asked for, fails its page unless the
// page's list says why it may be. Ends with "N passed, N failed, N skipped". Started by `clients`.

import { createRequire } from 'node:module';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { transmission } from './client-transmission.mjs';
import { vuetorrent } from './client-vuetorrent.mjs';
import { startDaemon, startSwarm } from './programs.mjs';
import { watch } from './watch.mjs';

const { values: options } = parseArgs({ options: {
  modules: { type: 'string' }, chromium: { type: 'string' }, out: { type: 'string' }, daemon: { type: 'string' }, skipped: { type: 'string', default: '0' },
  transmission: { type: 'string' }, vuetorrent: { type: 'string' }, verbose: { type: 'boolean', default: false },
} });
const PASSWORD = 'another secret';
const STEP_MAX_MS = 180000;
const { chromium } = createRequire(join(options.modules, 'package.json'))('playwright-core');
mkdirSync(options.out, { recursive: true });

let passed = 0, failed = 0;
const count = (name, error) => {
  if (!error) { passed += 1; console.log(`ok   ${name}`); return; }
  failed += 1;
  console.log(`FAIL ${name}\n     ${String(error.stack || error).split('\n').slice(0, 12).join('\n     ')}`);
};

async function step(name, run) {
  let timer;
  const late = new Promise((_, reject) => { timer = setTimeout(() => reject(new Error(`took longer than ${STEP_MAX_MS} ms`)), STEP_MAX_MS); });
  try { await Promise.race([run(), late]); count(name); return true; } catch (error) { count(name, error); return false; } finally { clearTimeout(timer); }
}

/** One client from its first page to its last; what follows a step that failed is not tried. */
async function drive(client, folder, swarm) {
  const daemon = await startDaemon(options.daemon, { args: ['--web-ui', folder], password: PASSWORD });
  const profile = mkdtempSync(join(tmpdir(), 'gyre-client-'));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath: options.chromium, headless: true, viewport: { width: 1280, height: 860 }, locale: 'en-GB', timezoneId: 'UTC', ...client.browser({ user: 'op', password: PASSWORD }),
    args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
  });
  const api = watch(context, daemon.url);
  const page = await context.newPage();
  page.setDefaultTimeout(30000);
  page.on('pageerror', (error) => api.complain(`${error.message}`));
  const kit = { page, daemon, swarm, password: PASSWORD, shot: (name) => page.screenshot({ path: join(options.out, `${client.name}-${name}.png`) }) };
  for (const [words, run] of client.steps(kit)) {
    if (!await step(`${client.name}: ${words}`, run)) { await kit.shot('failed').catch(() => {}); break; }
  }
  await step(`${client.name}: every request is answered with what was asked for, and none leaves the host`, async () => {
    const { unexpected, expected, asked } = await api.end(client.mayFail);
    if (options.verbose) console.log(`     asked: ${asked.join(', ')}`);
    for (const each of expected) console.log(`     as expected: ${each}`);
    if (unexpected.length) throw new Error(unexpected.join('\n'));
  });
  await context.close();
  rmSync(profile, { recursive: true, force: true });
  await step(`${client.name}: the daemon ends in order`, async () => { if (await daemon.end() !== 0) throw new Error('it did not'); });
}

const swarm = await startSwarm(options.daemon);
try {
  for (const client of [transmission, vuetorrent]) if (options[client.name]) await drive(client, options[client.name], swarm);
} finally { await swarm.end(); }
console.log(`${passed} passed, ${failed} failed, ${options.skipped} skipped`);
process.exit(failed ? 1 : 0);
