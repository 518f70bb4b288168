// Calls to the daemon: Transmission RPC (its old dialect) and the login. Knows no DOM.

const TOKEN = 'gyre.token';
/** Ids in one call; the daemon answers each before the next, and a call has its time. */
const IDS_MAX = 2000;
let sessionId = '';

/** What a call met, in words for the user: what happened, and what to do. */
export class CallError extends Error {
  constructor(kind, message, hint = '') {
    super(message);
    this.kind = kind;
    this.hint = hint;
  }
}

/** Takes a token from the fragment `#token=…` and out of the address bar; it lives as long as the tab. */
export function takeToken() {
  const found = /(?:^#|&)token=([^&]*)/.exec(location.hash);
  if (!found) return;
  setToken(decodeURIComponent(found[1]));
  history.replaceState(null, '', location.pathname + location.search);
}

export function setToken(token) {
  try { sessionStorage.setItem(TOKEN, token); } catch { /* then until the page is left */ }
  setToken.held = token;
}

function token() {
  try { return sessionStorage.getItem(TOKEN) || setToken.held || ''; } catch { return setToken.held || ''; }
}

/** Headers that every request carries. Without a token the browser's own login answers. */
export function authorization() {
  const held = token();
  return held ? { Authorization: `Bearer ${held}` } : {};
}

async function post(body, signal) {
  const send = () => fetch('transmission/rpc', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'X-Transmission-Session-Id': sessionId, ...authorization() },
    body,
    signal,
  });
  let response = await send();
  if (response.status === 409) {
    sessionId = response.headers.get('X-Transmission-Session-Id') || '';
    response = await send();
  }
  return response;
}

/** One method; resolves to its `arguments`, or throws a `CallError`. */
export async function call(method, args = {}, timeoutMs = 30000) {
  let response;
  try {
    response = await post(JSON.stringify({ method, arguments: args }), AbortSignal.timeout(timeoutMs));
  } catch (error) {
    if (error.name === 'TimeoutError') {
      throw new CallError('timeout', 'The daemon did not answer in time.', 'Its disk may be busy. Try again in a moment.');
    }
    throw new CallError('offline', 'The daemon cannot be reached.', 'Check that it runs and that this device is on its network, then try again.');
  }
  if (response.status === 401 || response.status === 403) {
    throw new CallError('login', 'The daemon refused the login.', 'Reload the page and sign in, or enter the token again.');
  }
  if (!response.ok) {
    throw new CallError('http', `The daemon answered with status ${response.status}.`, 'Its log says why. Try again, or restart it.');
  }
  let answer;
  try { answer = await response.json(); } catch {
    throw new CallError('answer', 'The answer was not understood.', 'A proxy between this page and the daemon may have replaced it.');
  }
  if (answer.result !== 'success') throw new CallError('refused', sentence(answer.result || 'The daemon refused.'), hintFor(method));
  return answer.arguments || {};
}

function sentence(text) {
  const said = String(text).trim();
  return said.charAt(0).toUpperCase() + said.slice(1) + (/[.!?]$/.test(said) ? '' : '.');
}

function hintFor(method) {
  switch (method) {
    case 'torrent-add': return 'Check that it is a .torrent file or a magnet link, and that the folder can be written.';
    case 'torrent-set-location': return 'Check that the folder exists on the daemon’s machine and can be written.';
    case 'session-set': return 'Nothing was changed. Correct the value and save again.';
    default: return 'Nothing was changed. Try again; the daemon’s log says more.';
  }
}

/** One method for any number of torrents, in as many calls as that takes. */
export async function callFor(torrents, method, args = {}) {
  for (let at = 0; at < torrents.length; at += IDS_MAX) {
    await call(method, { ids: torrents.slice(at, at + IDS_MAX).map((torrent) => torrent.id), ...args });
  }
}

export async function getTorrent(id, fields) {
  const answer = await call('torrent-get', { ids: [id], fields });
  return (answer.torrents || [])[0] || null;
}

/** Bytes as base64, in slices that do not overflow the call stack. */
export function base64(buffer) {
  const all = new Uint8Array(buffer);
  let text = '';
  for (let at = 0; at < all.length; at += 0x8000) text += String.fromCharCode(...all.subarray(at, at + 0x8000));
  return btoa(text);
}
