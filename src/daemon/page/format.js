// Numbers, sizes and times in the user's locale, and names made harmless. Pure functions, no DOM.

const digits = [0, 1, 2].map((n) => new Intl.NumberFormat(undefined, { minimumFractionDigits: n, maximumFractionDigits: n }));
const whole = new Intl.NumberFormat();
const percents = [0, 1].map((n) => new Intl.NumberFormat(undefined, { style: 'percent', minimumFractionDigits: n, maximumFractionDigits: n }));
const day = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium' });
const moment = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'short' });
const SIZES = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
const SPEEDS = ['B/s', 'kB/s', 'MB/s', 'GB/s'];
const SECONDS_MAX = 100 * 86400;

function scaled(value, base, units) {
  let n = value, at = 0;
  // 999.5 would round to a fourth digit.
  while (n >= 999.5 && at < units.length - 1) { n /= base; at += 1; }
  const shown = at === 0 || n >= 99.95 ? digits[0] : n >= 9.995 ? digits[1] : digits[2];
  return `${shown.format(n)} ${units[at]}`;
}

/** A size in binary units. */
export function bytes(n) { return Number.isFinite(n) ? scaled(Math.max(0, n), 1024, SIZES) : '–'; }

/** A rate in decimal units, as limits are set in. */
export function rate(n) { return scaled(Math.max(0, n || 0), 1000, SPEEDS); }

/** A rate for a table, where nothing moving shows nothing. */
export function quietRate(n) { return n > 0 ? rate(n) : ''; }

export function count(n) { return whole.format(n || 0); }

/** 100 % stands for all of it, so what rounds up to that is shown as less. */
export function percent(fraction) {
  const f = Math.min(1, Math.max(0, fraction || 0));
  if (f === 1 || f === 0) return percents[0].format(f);
  return percents[1].format(Math.min(0.999, Math.floor(f * 1000) / 1000));
}

/** For narrow places. */
export function wholePercent(fraction) { return percents[0].format(Math.floor(Math.min(1, Math.max(0, fraction || 0)) * 100) / 100); }

/** Values below zero stand for "none" and "without end" in the protocol. */
export function ratio(r) {
  if (r === -2) return '∞';
  if (!(r >= 0)) return '–';
  return digits[r >= 100 ? 0 : 2].format(r);
}

export function eta(seconds) {
  if (!(seconds >= 0)) return '';
  if (seconds > SECONDS_MAX) return '> 100 d';
  return duration(seconds);
}

/** The two largest units of a time in seconds. */
export function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${s % 60} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function date(unix) { return unix > 0 ? day.format(unix * 1000) : '–'; }
export function dateTime(unix) { return unix > 0 ? moment.format(unix * 1000) : '–'; }

/** Text of strangers without controls and without marks that turn the direction of what follows. */
export function safe(text) {
  return String(text ?? '').replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, '\ufffd');
}

/** A key that sorts as people do: without case, numbers by value. */
export function sortKey(text) {
  return safe(text).toLowerCase().replace(/\d+/g, (run) => run.padStart(12, '0'));
}

/** "1 torrent", "3 torrents". */
export function plural(n, one, many = `${one}s`) { return `${count(n)} ${n === 1 ? one : many}`; }
