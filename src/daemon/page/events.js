// The live table: reads `GET /api/events` by streaming fetch, so that it can carry a token, and reconnects.

import { authorization } from './rpc.js';

const SILENCE_MAX_MS = 20000;
const BACK_OFF_MAX_MS = 30000;
/** A line longer than this is no event of ours. */
const BUFFER_MAX = 32 * 1024 * 1024;

/**
 * Keeps one stream open. `on.all` and `on.delta` get the parsed data, `on.state` one of
 * `{ kind: 'connecting' | 'live' | 'waiting' | 'login', retryAt? }`.
 */
export class Events {
  #on;
  #failures = 0;
  #lastId = '';
  #timer = 0;
  #abort = null;
  #heard = 0;

  constructor(on) {
    this.#on = on;
    setInterval(() => this.#watch(), 2000);
    window.addEventListener('online', () => this.retry());
    document.addEventListener('visibilitychange', () => { if (!document.hidden && this.#timer) this.retry(); });
  }

  /** Now instead of when the back-off ends. */
  retry() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    if (!this.#abort) this.#run();
  }

  async #run() {
    const abort = this.#abort = new AbortController();
    this.#heard = performance.now();
    this.#on.state({ kind: 'connecting' });
    let outcome = 'ended';
    try {
      const headers = { Accept: 'text/event-stream', ...authorization() };
      if (this.#lastId) headers['Last-Event-ID'] = this.#lastId;
      const response = await fetch('api/events', { headers, cache: 'no-store', signal: abort.signal });
      if (response.status === 401 || response.status === 403) outcome = 'login';
      else if (response.ok && response.body) await this.#read(response.body);
      else outcome = `status ${response.status}`;
    } catch { outcome = 'ended'; }
    abort.abort();
    this.#abort = null;
    if (outcome === 'login') { this.#on.state({ kind: 'login' }); return; }
    this.#wait();
  }

  #wait() {
    // Half of it at random: many pages do not come back in the same moment.
    const step = Math.min(BACK_OFF_MAX_MS, 1000 * 2 ** this.#failures);
    const delay = step / 2 + Math.random() * step / 2;
    this.#failures = Math.min(this.#failures + 1, 10);
    this.#timer = setTimeout(() => { this.#timer = 0; this.#run(); }, delay);
    this.#on.state({ kind: 'waiting', retryAt: Date.now() + delay });
  }

  /** A connection that died without a word is noticed by its silence. */
  #watch() {
    if (this.#abort && performance.now() - this.#heard > SILENCE_MAX_MS) this.#abort.abort();
  }

  async #read(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let buffer = '';
    let event = { name: '', data: [] };
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      this.#heard = performance.now();
      buffer += value;
      let end;
      let from = 0;
      while ((end = buffer.indexOf('\n', from)) >= 0) {
        const line = buffer.slice(from, end).replace(/\r$/, '');
        from = end + 1;
        if (line === '') { this.#dispatch(event); event = { name: '', data: [] }; } else this.#field(event, line);
      }
      buffer = buffer.slice(from);
      if (buffer.length > BUFFER_MAX) throw new Error('an event without an end');
    }
  }

  #field(event, line) {
    const colon = line.indexOf(':');
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
    if (name === 'event') event.name = value;
    else if (name === 'data') event.data.push(value);
    else if (name === 'id') this.#lastId = value;
  }

  #dispatch(event) {
    if (!event.data.length) return;
    const data = JSON.parse(event.data.join('\n'));
    if (event.name === 'all') {
      this.#on.all(data);
      if (!data.more) { this.#failures = 0; this.#on.state({ kind: 'live' }); }
    } else if (event.name === 'delta') this.#on.delta(data);
  }
}
