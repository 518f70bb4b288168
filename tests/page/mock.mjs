// A daemon that is not one: serves the page, the live table and the RPC methods for invented torrents, with the faults
// that the page has to live with. By itself: `node mock.mjs [--torrents N] [--token T] [--port P]`.

import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { createHash, randomUUID } from 'node:crypto';
import { fileURLToPath } from 'node:url';
import { answer } from './mock-rpc.mjs';
import { COLUMNS, World, rowOf } from './mock-world.mjs';

const PAGE = fileURLToPath(new URL('../../src/daemon/page/', import.meta.url));
const TYPES = { html: 'text/html; charset=utf-8', js: 'text/javascript; charset=utf-8', css: 'text/css; charset=utf-8', svg: 'image/svg+xml' };
const CSP = "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
const ROWS_AN_EVENT = 2000;

/** Starts on a free port. Returns `{ url, world, faults, close }`; `faults` are switched by tests. */
export async function startMock({ torrents = 10000, token = '', basic = '', port = 0, tickMs = 1000 } = {}) {
  const world = new World(torrents);
  const faults = { refuseEvents: false, failNext: null };
  const sessionId = randomUUID();
  const streams = new Set();
  let eventId = 0;

  const server = createServer(async (request, response) => {
    const path = new URL(request.url, 'http://mock').pathname;
    const login = basic && `Basic ${Buffer.from(basic).toString('base64')}`;
    try {
      if (login && request.headers.authorization !== login) response.writeHead(401, { 'WWW-Authenticate': 'Basic realm="Gyre"' }).end();
      else if (path === '/' || path.startsWith('/page/')) await asset(path, request, response);
      else if (token && request.headers.authorization !== `Bearer ${token}`) response.writeHead(401).end();
      else if (path === '/api/events') events(response);
      else if (path === '/transmission/rpc') await rpc(request, response);
      else response.writeHead(404).end();
    } catch (error) {
      console.error(error);
      if (!response.headersSent) response.writeHead(500);
      response.end();
    }
  });

  async function asset(path, request, response) {
    const name = path === '/' ? 'index.html' : path.slice('/page/'.length);
    if (!/^[a-z-]+\.(html|js|css|svg)$/.test(name)) { response.writeHead(404).end(); return; }
    const bytes = await readFile(PAGE + name);
    const etag = `"${createHash('sha1').update(bytes).digest('hex').slice(0, 16)}"`;
    const headers = { 'Content-Type': TYPES[name.split('.').pop()], ETag: etag, 'Cache-Control': 'no-cache', 'Content-Security-Policy': CSP, 'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer' };
    if (request.headers['if-none-match'] === etag) response.writeHead(304, headers).end();
    else response.writeHead(200, headers).end(bytes);
  }

  function events(response) {
    if (faults.refuseEvents) { response.writeHead(503).end(); return; }
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Cache-Control': 'no-store' });
    const rows = [...world.torrents.values()].map(rowOf);
    let at = 0;
    do {
      const part = rows.slice(at, at + ROWS_AN_EVENT);
      at += ROWS_AN_EVENT;
      send(response, 'all', { columns: COLUMNS, session: world.session(), torrents: part, ...(at < rows.length ? { more: true } : {}) });
    } while (at < rows.length);
    streams.add(response);
    response.on('close', () => streams.delete(response));
  }

  function send(response, name, data) {
    eventId += 1;
    response.write(`id: ${eventId}\nevent: ${name}\ndata: ${JSON.stringify(data)}\n\n`);
  }

  async function rpc(request, response) {
    if (request.headers['x-transmission-session-id'] !== sessionId) {
      response.writeHead(409, { 'X-Transmission-Session-Id': sessionId }).end();
      return;
    }
    const parts = [];
    for await (const part of request) parts.push(part);
    const { method, arguments: args = {}, tag } = JSON.parse(Buffer.concat(parts));
    let result = 'success', given = {};
    if (faults.failNext && faults.failNext.method === method) { result = faults.failNext.result; faults.failNext = null; } else {
      try { given = answer(world, method, args) || {}; } catch (error) { result = error.message; }
    }
    response.writeHead(200, { 'Content-Type': 'application/json' });
    response.end(JSON.stringify({ result, arguments: given, tag }));
  }

  const timer = setInterval(() => {
    world.tick(tickMs / 1000);
    const { changed, removed } = world.take();
    const data = { changed: changed.map(rowOf), removed, session: world.session() };
    for (const stream of streams) send(stream, 'delta', data);
  }, tickMs);

  await new Promise((resolve) => { server.listen(port, '127.0.0.1', resolve); });
  const cut = () => { for (const stream of streams) stream.destroy(); streams.clear(); };
  return {
    url: `http://127.0.0.1:${server.address().port}/`, world, faults, cut,
    close() { clearInterval(timer); cut(); server.closeAllConnections(); return new Promise((resolve) => { server.close(resolve); }); },
  };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const option = (name, otherwise) => { const at = process.argv.indexOf(`--${name}`); return at < 0 ? otherwise : process.argv[at + 1]; };
  const mock = await startMock({ torrents: Number(option('torrents', 10000)), token: option('token', ''), port: Number(option('port', 0)) });
  console.log(mock.url);
}
