// Watches what a page asks the daemon's API, and how it is answered.

/** What a method of qBittorrent's API may answer with nothing. */
const SILENT = /^(POST )/;

/** Begins with the next request; `end(mayFail)` tells what went wrong, `mayFail` a list of `[pattern, reason]`. */
export function watch(context, base) {
  const faults = new Map(), asked = new Set(), pending = new Set();
  const complain = (words) => faults.set(words, (faults.get(words) || 0) + 1);
  const { host } = new URL(base);

  context.on('request', (request) => {
    const url = new URL(request.url());
    if (/^https?:$/.test(url.protocol) && url.host !== host) complain(`a request left the host: ${url.origin}${url.pathname}`);
  });
  context.on('requestfailed', (request) => {
    const words = request.failure()?.errorText || '';
    // A page that goes elsewhere gives up what it asked for.
    if (!/ERR_ABORTED/.test(words) && new URL(request.url()).host === host) complain(`${new URL(request.url()).pathname} failed: ${words}`);
  });
  context.on('response', (response) => {
    const look = judge(response).catch(() => {});
    pending.add(look);
    look.finally(() => pending.delete(look));
  });

  async function judge(response) {
    const { pathname, search } = new URL(response.url());
    const request = response.request();
    if (new URL(response.url()).host !== host) return;
    if (pathname.endsWith('/transmission/rpc')) await rpc(request, response);
    else if (pathname.startsWith('/api/v2/')) await qbt(request, response, pathname.slice('/api/v2/'.length), search);
    else if (response.status() >= 400) complain(`${pathname}: ${response.status()}`);
  }

  async function rpc(request, response) {
    const { method, arguments: args = {} } = JSON.parse(request.postData() || '{}');
    asked.add(method);
    // How a session begins.
    if (response.status() === 409 || response.status() === 401) return;
    const text = await response.text();
    if (!response.ok()) { complain(`${method}: ${response.status()} ${text}`); return; }
    const answer = JSON.parse(text);
    if (answer.result !== 'success') { complain(`${method} ${JSON.stringify(args).slice(0, 120)}: ${answer.result}`); return; }
    if (method !== 'torrent-get') return;
    for (const torrent of answer.arguments.torrents) {
      for (const field of args.fields) if (!(field in torrent)) complain(`torrent-get: no field ${field}`);
    }
  }

  async function qbt(request, response, method, search) {
    const name = `${request.method()} ${method}`;
    asked.add(name);
    const text = await response.text();
    const sent = `${search}${(request.postData() || '').slice(0, 160)}`;
    if (!response.ok()) complain(`${name} ${sent}: ${response.status()} ${text.slice(0, 160)}`);
    else if (text === '' && !SILENT.test(name)) complain(`${name} ${sent}: an empty answer`);
    else if (text === 'Fails.') complain(`${name} ${sent}: Fails.`);
  }

  return {
    complain,
    async end(mayFail) {
      await Promise.all(pending);
      const unexpected = [], expected = [];
      for (const [words, times] of faults) {
        const known = mayFail.find(([pattern]) => pattern.test(words));
        (known ? expected : unexpected).push(`${words} (${times} times)${known ? `: ${known[1]}` : ''}`);
      }
      return { unexpected, expected, asked: [...asked].sort() };
    },
  };
}
