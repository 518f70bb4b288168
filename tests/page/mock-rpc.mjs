// The RPC methods of the mock daemon, as strict as Transmission's about what it is given.

import { createHash } from 'node:crypto';

const PIECE = 4 * 1024 * 1024;

function chosen(world, ids) {
  if (ids === undefined) return [...world.torrents.values()];
  return [].concat(ids).map((id) => [...(typeof id === 'number' ? [world.torrents.get(id)] : world.torrents.values())].find((t) => t && (t.id === id || t.hash === id))).filter(Boolean);
}

const NONE = { device: null, folder: null, tracker: null, label: null, torrent: null, when: null, then: null, inForce: true, ratio: null, seedTime: null,
  capUp: null, capDown: null, share: null, uploadSlots: null, downloadQueueSize: null, seedQueueSize: null, torrents: 0, waiting: 0, reached: 0, rateUpload: 0, rateDownload: 0 };
export const POLICIES = [
  { ...NONE, name: 'disk', device: '/srv/disk1', capUp: 10000000, rateUpload: 2500000, torrents: 1200 },
  { ...NONE, name: 'films \u202e', label: 'films', share: 5000, when: 'mon-fri 08:00-17:30', inForce: false, torrents: 40, waiting: 3, reached: 2,
    downloadQueueSize: 2, uploadSlots: 8, ratio: 2, seedTime: 864000, then: 'throttle' },
];

const METHODS = {
  'session-get': (world) => world.settings,
  'session-set': (world, args) => {
    for (const [key, value] of Object.entries(args)) {
      if (!(key in world.settings) || typeof value !== typeof world.settings[key]) throw new Error(`invalid argument: ${key}`);
      if (key === 'peer-port' && (value < 1 || value > 65535)) throw new Error('peer-port must be from 1 to 65535');
    }
    Object.assign(world.settings, args);
  },
  'session-stats': (world) => ({
    torrentCount: world.torrents.size, downloadSpeed: world.session().rate_down, uploadSpeed: world.session().rate_up,
    'cumulative-stats': { downloadedBytes: 91e12, uploadedBytes: 240e12 },
  }),
  'policy-get': () => ({ policies: POLICIES }),
  'torrent-get': (world, { ids, fields }) => ({ torrents: chosen(world, ids).map((t) => pick(detail(world, t, fields), fields)) }),
  'torrent-add': add,
  'torrent-start': (world, { ids }) => each(world, ids, (t) => { if (t.status === 0) { t.status = t.percent_done >= 1 ? 6 : 4; t.error = ''; } }),
  'torrent-stop': (world, { ids }) => each(world, ids, (t) => Object.assign(t, { status: 0, rate_down: 0, rate_up: 0, peers: 0, eta: -1 })),
  'torrent-verify': (world, { ids }) => each(world, ids, (t) => { t.status = 2; }),
  'torrent-reannounce': (world, { ids }) => each(world, ids, (t) => { t.announced = Date.now() / 1000; }),
  'torrent-remove': (world, { ids }) => each(world, ids, (t) => world.remove(t)),
  'torrent-set': set,
  'torrent-set-location': (world, { ids, location, move }) => {
    if (!location.startsWith('/')) throw new Error('the location must be an absolute path');
    each(world, ids, (t) => { if (move) Object.assign(t, { goingTo: location, moved_share: 0 }); else t.folder = location; });
  },
  'queue-move-top': (world, { ids }) => each(world, ids, (t) => { t.queue_position = 0; }),
  'queue-move-bottom': (world, { ids }) => each(world, ids, (t) => { t.queue_position = world.torrents.size - 1; }),
};

export function answer(world, method, args) {
  const run = METHODS[method];
  if (!run) throw new Error('method name not recognized');
  return run(world, args);
}

function each(world, ids, change) {
  for (const torrent of chosen(world, ids)) { change(torrent); world.touch(torrent); }
}

function pick(all, fields) { return Object.fromEntries(fields.filter((field) => field in all).map((field) => [field, all[field]])); }

function add(world, args) {
  let known;
  if (args.metainfo) {
    const bytes = Buffer.from(args.metainfo, 'base64');
    const text = bytes.toString('latin1');
    const name = /4:name(\d+):/.exec(text);
    if (text[0] !== 'd' || !name) throw new Error('invalid or corrupt torrent file');
    const at = name.index + name[0].length;
    const length = Number(/6:lengthi(\d+)e/.exec(text)?.[1] || 0);
    known = { hash: createHash('sha1').update(bytes).digest('hex'), name: bytes.subarray(at, at + Number(name[1])).toString(), size: length };
  } else {
    const hash = /xt=urn:btih:([0-9a-f]{40})/i.exec(args.filename || '')?.[1];
    if (!hash) throw new Error('unrecognized info');
    const name = new URLSearchParams(args.filename.slice(8)).get('dn');
    known = { hash: hash.toLowerCase(), name: name || hash, size: 0 };
  }
  const twin = [...world.torrents.values()].find((t) => t.hash === known.hash);
  const brief = (t) => ({ id: t.id, name: t.name, hashString: t.hash });
  if (twin) return { 'torrent-duplicate': brief(twin) };
  const torrent = world.add({ ...known, labels: args.labels, tracker: '', paused: args.paused, speed: 9e6 });
  torrent.laterSize = 30e6;
  torrent.folder = args['download-dir'] || torrent.folder;
  return { 'torrent-added': brief(torrent) };
}

function set(world, { ids, ...args }) {
  const list = chosen(world, ids);
  if (!list.length) throw new Error('no torrents given');
  for (const torrent of list) {
    if (args.labels?.some((label) => label.includes(','))) throw new Error('labels cannot contain comma (,) character');
    if (args.labels) torrent.labels = args.labels;
    for (const index of args['files-wanted'] || []) torrent.wanted.set(index, true);
    for (const index of args['files-unwanted'] || []) torrent.wanted.set(index, false);
    for (const [key, value] of [['priority-high', 1], ['priority-normal', 0], ['priority-low', -1]]) {
      for (const index of args[key] || []) torrent.priorities.set(index, value);
    }
    Object.assign(torrent.limits, args);
    world.touch(torrent);
  }
}

/** The costly fields only when asked for. */
function detail(world, t, fields) {
  const count = Math.ceil(t.size_wanted / PIECE);
  const now = Date.now() / 1000;
  const has = (field) => fields.includes(field);
  return {
    id: t.id, name: t.name, hashString: t.hash, status: t.status, percentDone: t.percent_done, downloadDir: t.folder, totalSize: t.size_wanted, sizeWhenDone: t.size_wanted,
    leftUntilDone: Math.round(t.size_wanted * (1 - t.percent_done)), haveValid: t.size_wanted * t.percent_done, downloadedEver: t.downloaded, uploadedEver: t.uploaded_ever,
    corruptEver: 0, uploadRatio: t.ratio, pieceCount: count, pieceSize: PIECE, addedDate: t.added, doneDate: t.doneAt, activityDate: t.peers ? now : t.doneAt, comment: 'Made for trying things out',
    creator: 'mktorrent 1.1', dateCreated: t.added - 90000, isPrivate: t.id % 5 === 0, error: t.errorKind, errorString: t.error, secondsDownloading: 4000, secondsSeeding: t.percent_done >= 1 ? now - t.added : 0,
    labels: t.labels, downloadLimit: 100, downloadLimited: false, uploadLimit: 100, uploadLimited: false, seedRatioLimit: 2, seedRatioMode: 0, bandwidthPriority: 0, honorsSessionLimits: true, movedShare: t.moved_share, ...t.limits,
    policies: POLICIES.filter((policy) => !policy.label || t.labels.includes(policy.label)).map((policy) => policy.name),
    trackerStats: trackers(t, now), ...(has('peers') ? { peers: peers(t) } : {}), ...(has('files') ? files(t) : {}), ...(has('pieces') ? pieces(t, count) : {}),
  };
}

function trackers(t, now) {
  if (!t.tracker_host) return [];
  const isStopped = t.status === 0;
  return [t.tracker_host, `backup.${t.tracker_host}`].map((host, tier) => ({
    tier, announce: `https://${host}/announce`, host, hasAnnounced: true, lastAnnounceTime: t.announced || now - 400 - tier * 90, lastAnnounceSucceeded: tier === 0,
    lastAnnounceResult: tier ? 'Connection refused' : 'Success', lastAnnouncePeerCount: tier ? 0 : 50, nextAnnounceTime: isStopped ? 0 : now + 1400, announceState: isStopped ? 0 : 1,
    seederCount: tier ? -1 : 40 + t.id % 400, leecherCount: tier ? -1 : t.id % 60,
  }));
}

function peers(t) {
  return Array.from({ length: t.peers }, (_, index) => ({
    address: index % 6 === 5 ? `2001:db8::${index}:${t.id % 999}` : `198.51.100.${index * 5 + 3}`, port: 6881 + index,
    clientName: ['qBittorrent 5.1.2', 'Transmission 4.1.0', 'libtorrent 2.0.11', 'Gyre 0.1.0', 'µTorrent 3.6', ''][index % 6], flagStr: ['DE', 'UEX', 'dEI', 'UH', 'DUE', 'X'][index % 6],
    progress: Math.min(1, (index * 37 % 100) / 90), rateToClient: t.status === 4 && t.peers ? Math.floor(t.rate_down / t.peers * (index % 3)) : 0, rateToPeer: Math.floor(t.rate_up / Math.max(1, t.peers) * ((index + 1) % 3)),
    isEncrypted: index % 2 === 0, isIncoming: index % 3 === 0,
  }));
}

function files(t) {
  const names = t.id % 2 ? [t.name] : ['README.txt', 'SHA256SUMS', 'images/disc-1.iso', 'images/disc-2.iso', 'images/extras/firmware.tar.gz', 'doc/release notes.pdf', 'doc/installation guide.pdf'].map((name) => `${t.name}/${name}`);
  const length = Math.floor(t.size_wanted / names.length);
  return {
    files: names.map((name) => ({ name, length, bytesCompleted: Math.floor(length * t.percent_done) })),
    fileStats: names.map((_, index) => ({ wanted: t.wanted.get(index) ?? true, priority: t.priorities.get(index) ?? 0, bytesCompleted: 0 })),
  };
}

function pieces(t, count) {
  const bits = new Uint8Array(Math.ceil(count / 8));
  const availability = [];
  for (let index = 0; index < count; index += 1) {
    const hash = Math.imul(index + 1, 2654435761) >>> 0;
    const isHere = t.percent_done >= 1 || (hash % 1000) / 1000 < t.percent_done;
    if (isHere) bits[index >> 3] |= 128 >> (index & 7);
    availability.push(isHere ? -1 : hash % 97 === 0 ? 0 : hash % 23 === 0 ? 1 : 2 + hash % 9);
  }
  return { pieces: Buffer.from(bits).toString('base64'), availability };
}
