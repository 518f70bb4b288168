// Programs that the tests start on this machine: the daemon, and a swarm for it. What they are told keeps them from the
// DHT, the local network and the gateway, so that nothing leaves the host. Only what was started here is ended here.

import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:net';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { randomFillSync } from 'node:crypto';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';

/** How long a program may take to say that it is there, or to end: other programs keep the machine busy. */
const PATIENCE_MS = 60000;
const MIB = 1024 * 1024;
const ALONE = { GYRE_NO_DHT: '1', GYRE_NO_LSD: '1', GYRE_NO_PORT_MAP: '1' };

export const pause = (ms) => new Promise((wake) => { setTimeout(wake, ms); });

/** Asks `look` until it answers something, which is what comes back. */
export async function until(what, look, everyMs = 100) {
  const end = Date.now() + PATIENCE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`);
    await pause(everyMs);
  }
}

async function freePort() {
  const probe = createServer().listen(0, '127.0.0.1');
  await once(probe, 'listening');
  const { port } = probe.address();
  probe.close();
  await once(probe, 'close');
  return port;
}

/** Ends a program in order; resolves to its exit code, `null` if it had to be killed. */
async function finish(child) {
  if (child.exitCode !== null || child.signalCode) return child.exitCode;
  const ended = once(child, 'exit');
  const timer = setTimeout(() => child.kill('SIGKILL'), PATIENCE_MS);
  child.kill('SIGTERM');
  const [code] = await ended;
  clearTimeout(timer);
  return code;
}

/**
 * A daemon with an empty state folder, once its page answers. `args` are more of its options; with a `password` the API
 * asks for the name `op` and that, else for its token.
 */
export async function startDaemon(program, { args = [], password = '' } = {}) {
  const folder = mkdtempSync(join(tmpdir(), 'gyre-daemon-'));
  const other = mkdtempSync(join(tmpdir(), 'gyre-other-'));
  const port = await freePort();
  const downloads = join(folder, 'data');
  if (password) {
    writeFileSync(join(folder, 'password'), `${password}\n`, { mode: 0o600 });
    args = [...args, '--api-user', 'op', '--api-password-file', join(folder, 'password')];
  }
  const child = spawn(program, ['daemon', '--state', join(folder, 'state'), '--downloads', downloads, '--port', '0', '--api', `127.0.0.1:${port}`,
    '--dht', 'false', '--lsd', 'false', '--port-map', 'false', '--api-roots', other, ...args], { stdio: ['ignore', 'ignore', 'inherit'] });
  const url = `http://127.0.0.1:${port}/`;
  const end = async () => {
    const code = await finish(child);
    for (const each of [folder, other]) rmSync(each, { recursive: true, force: true });
    return code;
  };
  try {
    await until('the daemon answers', async () => {
      if (child.exitCode !== null) throw new Error(`the daemon ended with ${child.exitCode}`);
      return fetch(url).then(() => true, () => false);
    });
  } catch (error) { await end(); throw error; }
  const token = password || readFileSync(join(folder, 'state', 'control.token'), 'utf8').trim();
  return { url, token, downloads, other, end, rpc: rpcOf(url, token) };
}

/** A function for calls past the page. */
function rpcOf(url, token) {
  let session = '';
  return async function call(method, args = {}) {
    const response = await fetch(`${url}transmission/rpc`, {
      method: 'POST', body: JSON.stringify({ method, arguments: args }),
      headers: { 'X-Transmission-Session-Id': session, Authorization: `Basic ${Buffer.from(`op:${token}`).toString('base64')}` },
    });
    if (response.status === 409) { session = response.headers.get('X-Transmission-Session-Id'); return call(method, args); }
    const answer = await response.json();
    if (answer.result !== 'success') throw new Error(`${method}: ${answer.result}`);
    return answer.arguments;
  };
}

/** The first line of JSON that fits; what comes later is read and dropped. */
async function firstEvent(child, fits) {
  const lines = createInterface({ input: child.stdout });
  const found = new Promise((resolve) => {
    lines.on('line', (line) => { try { const event = JSON.parse(line); if (fits(event)) resolve(event); } catch { /* no event */ } });
  });
  // Behind the last line, unlike `exit`.
  const ended = once(child, 'close').then(([code]) => { throw new Error(`it ended with ${code}`); });
  ended.catch(() => {});
  const late = pause(PATIENCE_MS).then(() => { throw new Error('it said nothing'); });
  late.catch(() => {});
  return Promise.race([found, ended, late]);
}

/** A file of random bytes. */
function fill(path, size) {
  const bytes = Buffer.allocUnsafe(size);
  randomFillSync(bytes);
  writeFileSync(path, bytes);
}

async function create(program, path, file, tracker) {
  const child = spawn(program, ['create', path, '-o', file, '-a', tracker, '--piece-length', '256KiB', '--json'], { stdio: ['ignore', 'pipe', 'inherit'] });
  const made = await firstEvent(child, (event) => event.info_hash);
  await until('the .torrent is written', () => child.exitCode === 0);
  return { file, hash: made.info_hash, magnet: made.magnet };
}

/** Trackers answer in bencoding; this figure is all that matters. */
async function seeds(tracker, hash) {
  const query = hash.replace(/../g, '%$&');
  const answer = await fetch(tracker.replace(/announce$/, `scrape?info_hash=${query}`)).then((response) => response.text(), () => '');
  return Number(/8:completei(\d+)e/.exec(answer)?.[1] || 0);
}

/**
 * A tracker and a seeder of two torrents: `folder`, of several files and 96 MiB, and `single`, of one file and 12 MiB.
 * Each is `{ name, path, file, hash, magnet, files: [path below the downloads], size }`.
 */
export async function startSwarm(program) {
  const folder = mkdtempSync(join(tmpdir(), 'gyre-swarm-'));
  const data = join(folder, 'data');
  const children = [];
  const end = async () => {
    for (const child of children) await finish(child);
    rmSync(folder, { recursive: true, force: true });
  };
  try {
    mkdirSync(join(data, 'Open films', 'extras'), { recursive: true });
    const files = [['Open films/Sintel.mkv', 56 * MIB], ['Open films/Tears of Steel.mkv', 31 * MIB], ['Open films/extras/storyboard.zip', 9 * MIB - 7], ['Open films/README.txt', 1234]];
    for (const [name, size] of files) fill(join(data, name), size);
    fill(join(data, 'field recording.flac'), 12 * MIB);
    const tracker = spawn(program, ['tracker', '--listen', '127.0.0.1:0', '--json'], { stdio: ['ignore', 'pipe', 'inherit'] });
    children.push(tracker);
    const { addr } = await firstEvent(tracker, (event) => event.event === 'listening' && event.protocol === 'http');
    const announce = `http://${addr}/announce`;
    const made = [];
    for (const name of ['Open films', 'field recording.flac']) made.push({ name, ...await create(program, join(data, name), join(folder, `${name}.torrent`), announce) });
    const seeder = spawn(program, ['seed', ...made.map(({ file }) => file), '--data', data, '--port', '0', '--bind', '127.0.0.1', '--state', join(folder, 'state'), '--json'],
      { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, ...ALONE } });
    children.push(seeder);
    await firstEvent(seeder, (event) => event.event === 'listening');
    for (const { hash } of made) await until('the seeder is announced', () => seeds(announce, hash));
    const [films, recording] = made;
    films.files = files.map(([name]) => name);
    recording.files = ['field recording.flac'];
    return { films, recording, data, announce, end };
  } catch (error) { await end(); throw error; }
}

/** A .torrent file of one file that nobody has, as a buffer. */
export function emptyTorrent(name, length, tracker = 'http://127.0.0.1:1/announce') {
  const piece = 4 * MIB;
  const pieces = 'x'.repeat(20 * Math.ceil(length / piece));
  return Buffer.from(`d8:announce${tracker.length}:${tracker}4:infod6:lengthi${length}e4:name${Buffer.byteLength(name)}:${name}12:piece lengthi${piece}e6:pieces${pieces.length}:${pieces}ee`);
}
