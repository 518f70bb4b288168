// The policies of the daemon's settings file, with what their torrents do. They are looked at here, and changed there.

import { $ } from './dom.js';
import { openDialog } from './dialogs.js';
import * as format from './format.js';
import { call } from './rpc.js';
import { sheet } from './tabs.js';

const REFRESH_MS = 2000;
/** From the widest to the narrowest, as they count. */
const PLACES = ['device', 'folder', 'tracker', 'label', 'torrent'];
const COLUMNS = [['Policy', false], ['For', false], ['Torrents', true], ['Up', true], ['Down', true], ['Share', true], ['At once', false], ['Goal', false], ['Hours', false]];

let table = null;

/** Shows the way to the policies, if the daemon knows any such thing. */
export async function offerPolicies() {
  const button = $('open-policies');
  try {
    const { policies } = await call('policy-get');
    button.textContent = policies.length ? `Policies (${format.count(policies.length)})…` : 'Policies…';
    button.hidden = false;
  } catch { button.hidden = true; }
}

export async function openPolicies() {
  if (!table) {
    table = sheet('Policies in the order in which they count', COLUMNS);
    $('policies-table').replaceChildren(table.node);
  }
  await refresh();
  const dialog = openDialog('policies');
  const timer = setInterval(() => refresh().catch(() => {}), REFRESH_MS);
  dialog.addEventListener('close', () => clearInterval(timer), { once: true });
}

async function refresh() {
  const { policies } = await call('policy-get');
  table.show(policies.map(cells));
  table.node.hidden = !policies.length;
  $('policies-none').hidden = policies.length > 0;
}

function cells(p) {
  const places = PLACES.filter((key) => p[key]).map((key) => `${key} ${format.safe(p[key])}`);
  const counts = [p.waiting && `${format.count(p.waiting)} waiting`, p.reached && `${format.count(p.reached)} at the goal`].filter(Boolean);
  const of = (rate, cap) => (cap ? `${format.rate(rate)} of ${format.rate(cap)}` : format.rate(rate));
  const most = [p.downloadQueueSize && format.plural(p.downloadQueueSize, 'download'), p.seedQueueSize && format.plural(p.seedQueueSize, 'seed'),
    p.uploadSlots && format.plural(p.uploadSlots, 'peer')].filter(Boolean);
  return [
    format.safe(p.name), places.join(', ') || 'All torrents',
    counts.length ? `${format.count(p.torrents)} (${counts.join(', ')})` : format.count(p.torrents),
    of(p.rateUpload, p.capUp), of(p.rateDownload, p.capDown),
    p.share ? format.percent(p.share / 10000) : '–', most.join(', ') || '–', goal(p),
    p.when ? `${format.safe(p.when)} (${p.inForce ? 'now' : 'not now'})` : 'Always',
  ];
}

function goal(p) {
  const what = [p.ratio !== null && `ratio ${format.ratio(p.ratio)}`, p.seedTime !== null && format.duration(p.seedTime)].filter(Boolean);
  return what.length ? `${what.join(' or ')}, then ${p.then === 'hook' ? 'a program' : p.then}` : '–';
}
