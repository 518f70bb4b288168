// The torrents of the mock daemon: invented from a seed, and moved on by `tick`.

import { createHash } from 'node:crypto';

export const COLUMNS = ['id', 'hash', 'name', 'status', 'percent_done', 'size_wanted', 'rate_down', 'rate_up', 'uploaded_ever', 'ratio', 'eta',
  'peers', 'labels', 'tracker_host', 'added', 'error', 'queue_position', 'moved_share'];

const MIB = 1024 * 1024;
const PROJECTS = [['debian', ['netinst-amd64.iso', 'DVD-1-arm64.iso', 'live-gnome-amd64.iso']], ['ubuntu', ['desktop-amd64.iso', 'live-server-arm64.iso']],
  ['archlinux', ['x86_64.iso']], ['fedora', ['Workstation-Live-x86_64.iso', 'Server-dvd-aarch64.iso']], ['NixOS', ['minimal-x86_64-linux.iso']],
  ['openSUSE-Leap', ['DVD-x86_64.iso']], ['alpine', ['standard-x86_64.iso', 'extended-aarch64.iso']], ['LibreOffice', ['Linux_x86-64_deb.tar.gz']],
  ['wikipedia-dump', ['enwiki-pages-articles.xml.bz2', 'dewiki-pages-articles.xml.bz2']], ['OpenStreetMap', ['planet.osm.pbf']],
  ['Blender-open-films', ['Sintel.4k.mkv', 'Tears-of-Steel.2160p.mkv']], ['Internet-Archive', ['texts-collection', '78rpm-recordings']]];
const TRACKERS = ['tracker.example.org', 'bttracker.debian.example', 'torrent.ubuntu.example', 'archive.example.net', 'announce.films.example', ''];
const LABELS = ['linux', 'archive', 'films', 'maps', 'keep', 'docs'];
const START = Math.floor(Date.now() / 1000);

function seeded(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
  };
}

export function rowOf(t) { return COLUMNS.map((column) => t[column]); }

export class World {
  torrents = new Map();
  settings = {
    version: '0.1.0', 'rpc-version': 17, 'download-dir': '/srv/torrents', 'incomplete-dir': '/srv/incomplete', 'incomplete-dir-enabled': false, 'start-added-torrents': true,
    'speed-limit-down': 5000, 'speed-limit-down-enabled': false, 'speed-limit-up': 80000, 'speed-limit-up-enabled': true, 'alt-speed-enabled': false, 'alt-speed-down': 500,
    'alt-speed-up': 500, 'download-queue-enabled': true, 'download-queue-size': 20, 'seed-queue-enabled': false, 'seed-queue-size': 10, seedRatioLimit: 2,
    seedRatioLimited: false, 'idle-seeding-limit': 30, 'idle-seeding-limit-enabled': false, 'peer-port': 51413, encryption: 'preferred', 'peer-limit-global': 2000,
    'peer-limit-per-torrent': 80, 'dht-enabled': true, 'pex-enabled': true, 'lpd-enabled': false,
  };
  #random;
  #next = 1;
  #changed = new Set();
  #removed = [];

  constructor(count) {
    this.#random = seeded(7);
    for (let index = 0; index < count; index += 1) this.#invent(index, count);
    this.take();
  }

  #pick(list) { return list[Math.floor(this.#random() * list.length)]; }

  #invent(index, count) {
    const r = this.#random;
    const [project, kinds] = this.#pick(PROJECTS);
    const name = `${project}-${1 + Math.floor(r() * 40)}.${Math.floor(r() * 12)}.${index % 10}-${this.#pick(kinds)}`;
    const kind = r();
    const percent = kind < 0.02 ? r() * 0.98 : kind < 0.03 ? r() : 1;
    const torrent = this.add({
      name, hash: createHash('sha1').update(`${index}`).digest('hex'), size: Math.floor((50 + r() ** 4 * 90000) * MIB),
      labels: r() < 0.7 ? [this.#pick(LABELS)] : r() < 0.3 ? ['keep', 'films'] : [], tracker: this.#pick(TRACKERS), paused: false, percent,
      added: START - Math.floor(r() * 700 * 86400) - (count - index),
    });
    torrent.uploaded_ever = Math.floor(torrent.size_wanted * r() * 6 * percent);
    torrent.downloaded = torrent.size_wanted * percent;
    if (kind > 0.965) torrent.status = 0;
    if (kind > 0.02 && kind < 0.024) torrent.status = 2;
    if (kind > 0.024 && kind < 0.03) torrent.status = 3;
    if (kind > 0.96 && kind < 0.963) Object.assign(torrent, { status: 0, error: 'No data found: /srv/torrents is not mounted', errorKind: 3 });
    torrent.isBusy = torrent.status === 6 && r() < 0.06;
  }

  add({ name, hash, size, labels, tracker, paused, percent = 0, added = Math.floor(Date.now() / 1000), speed, files }) {
    const id = this.#next;
    this.#next += 1;
    const torrent = {
      id, hash, name, status: paused ? 0 : percent >= 1 ? 6 : 4, percent_done: percent, size_wanted: size, rate_down: 0, rate_up: 0, uploaded_ever: 0, ratio: -1, eta: -1,
      peers: 0, labels: labels || [], tracker_host: tracker ?? '', added, error: '', queue_position: id - 1, moved_share: -1,
      folder: this.settings['download-dir'], downloaded: 0, speed, files, errorKind: 0, limits: {}, wanted: new Map(), priorities: new Map(), doneAt: percent >= 1 ? added + 4000 : 0,
    };
    this.torrents.set(id, torrent);
    this.touch(torrent);
    return torrent;
  }

  touch(torrent) { this.#changed.add(torrent.id); }

  remove(torrent) { this.torrents.delete(torrent.id); this.#removed.push(torrent.id); }

  take() {
    const changed = [...this.#changed].map((id) => this.torrents.get(id)).filter(Boolean);
    const removed = this.#removed;
    this.#changed = new Set();
    this.#removed = [];
    return { changed, removed };
  }

  tick(seconds) {
    const r = this.#random;
    for (const torrent of this.torrents.values()) {
      if (torrent.goingTo) this.#move(torrent, seconds);
      const before = `${torrent.status} ${torrent.rate_down} ${torrent.rate_up} ${torrent.percent_done}`;
      if (torrent.status === 4) this.#download(torrent, seconds);
      else if (torrent.status === 6) this.#seed(torrent, seconds);
      else Object.assign(torrent, { rate_down: 0, rate_up: 0, peers: 0, eta: -1 });
      if (torrent.status === 2 && r() < 0.02) torrent.status = torrent.percent_done >= 1 ? 6 : 4;
      if (torrent.downloaded > 0) torrent.ratio = torrent.uploaded_ever / torrent.downloaded;
      if (before !== `${torrent.status} ${torrent.rate_down} ${torrent.rate_up} ${torrent.percent_done}`) this.touch(torrent);
    }
  }

  /** Five seconds from one folder to the other. */
  #move(torrent, seconds) {
    torrent.moved_share += seconds / 5;
    if (torrent.moved_share > 1) Object.assign(torrent, { folder: torrent.goingTo, goingTo: '', moved_share: -1 });
    this.touch(torrent);
  }

  #download(torrent, seconds) {
    const r = this.#random;
    if (!(torrent.size_wanted > 0)) { torrent.size_wanted = torrent.laterSize || 64 * MIB; return; }
    const base = torrent.speed || 40000 + (torrent.id * 7919 % 1400) * 1000;
    const limit = torrent.limits.downloadLimited ? torrent.limits.downloadLimit * 1000 : Infinity;
    torrent.rate_down = torrent.id % 3 === 0 && !torrent.speed ? 0 : Math.floor(Math.min(limit, base * (0.8 + r() * 0.4)));
    torrent.rate_up = torrent.rate_down ? Math.floor(torrent.rate_down * 0.2 * r()) : 0;
    torrent.peers = torrent.rate_down ? 4 + Math.floor(r() * 30) : 0;
    const left = torrent.size_wanted * (1 - torrent.percent_done) - torrent.rate_down * seconds;
    torrent.downloaded += torrent.rate_down * seconds;
    torrent.percent_done = left <= 0 ? 1 : 1 - left / torrent.size_wanted;
    torrent.eta = torrent.rate_down ? Math.ceil(left / torrent.rate_down) : -1;
    if (left <= 0) Object.assign(torrent, { status: 6, rate_down: 0, eta: -1, doneAt: Math.floor(Date.now() / 1000) });
  }

  #seed(torrent, seconds) {
    const r = this.#random;
    if (!torrent.isBusy) { torrent.rate_up = 0; return; }
    torrent.rate_up = r() < 0.1 ? 0 : Math.floor(r() ** 2 * 260000);
    torrent.peers = 1 + Math.floor(r() * 12);
    torrent.uploaded_ever += torrent.rate_up * seconds;
  }

  session() {
    let down = 0, up = 0, peers = 0;
    for (const torrent of this.torrents.values()) { down += torrent.rate_down; up += torrent.rate_up; peers += torrent.peers; }
    return { rate_down: down, rate_up: up, peers, free_bytes: 3.2e12, download_dir: this.settings['download-dir'], version: this.settings.version };
  }
}
