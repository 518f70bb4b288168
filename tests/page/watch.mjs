// Watches what a page asks the daemon's API, and how it is answered.

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
    const { pathname } = new URL(response.url());
    const request = response.request();
    if (new URL(response.url()).host !== host) return;
    if (pathname.endsWith('/transmission/rpc')) await rpc(request, response);
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
