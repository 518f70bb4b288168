// The map of pieces: one cell a piece, or a run of pieces where there are more than fit.

import { colour, fitted } from './dom.js';

/** Reads a base64 bitfield, the first piece in the highest bit. */
export function bitsOf(base64, count) {
  const text = atob(base64 || '');
  const bits = new Uint8Array(count);
  for (let index = 0; index < count; index += 1) {
    bits[index] = (text.charCodeAt(index >> 3) >> (7 - (index & 7))) & 1;
  }
  return bits;
}

/**
 * The largest square cells that all fit: `{ cell, columns, rows, per }`, where `per` is the number of pieces a cell.
 */
export function planCells(count, width, height) {
  for (let cell = 18; cell >= 5; cell -= 1) {
    const columns = Math.max(1, Math.floor(width / cell));
    const rows = Math.ceil(count / columns);
    if (rows * cell <= height) return { cell, columns, rows, per: 1 };
  }
  const columns = Math.max(1, Math.floor(width / 5)), rows = Math.max(1, Math.floor(height / 5));
  const per = Math.max(1, Math.ceil(count / (columns * rows)));
  return { cell: 5, columns, rows: Math.ceil(count / per / columns), per };
}

/** `availability` holds the peers that have each piece (-1: we have it), or nothing where it is not known. */
export function drawPieces(canvas, bits, availability) {
  if (!canvas.clientWidth) return null;
  const { context, width, height } = fitted(canvas);
  const plan = planCells(bits.length, width, height);
  const inks = { have: colour('--have'), none: colour('--missing'), few: colour('--few'), gone: colour('--gone') };
  const gap = plan.cell > 7 ? 2 : 1;
  for (let cell = 0; cell * plan.per < bits.length; cell += 1) {
    const from = cell * plan.per, to = Math.min(bits.length, from + plan.per);
    let have = 0, fewest = Infinity;
    for (let index = from; index < to; index += 1) {
      have += bits[index];
      if (!bits[index] && availability?.length) fewest = Math.min(fewest, availability[index] ?? 0);
    }
    const x = (cell % plan.columns) * plan.cell, y = Math.floor(cell / plan.columns) * plan.cell, side = plan.cell - gap;
    const share = have / (to - from);
    context.fillStyle = fewest === 0 ? inks.gone : fewest === 1 ? inks.few : inks.none;
    context.fillRect(x, y, side, side);
    if (fewest === 0 && share < 1) strike(context, x, y, side);
    if (share > 0) {
      context.fillStyle = inks.have;
      context.globalAlpha = 0.25 + 0.75 * share;
      context.fillRect(x, y, side, side);
      context.globalAlpha = 1;
    }
  }
  return plan;
}

/** A stroke through what nobody has: it shows without colour too. */
function strike(context, x, y, side) {
  if (side < 5) return;
  context.strokeStyle = colour('--bad');
  context.lineWidth = 1.25;
  context.beginPath();
  context.moveTo(x + 1, y + side - 1);
  context.lineTo(x + side - 1, y + 1);
  context.stroke();
}
