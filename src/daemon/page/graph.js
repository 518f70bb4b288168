// Rates over time, drawn on a canvas: down as a filled line, up as a dashed one, so that shape tells them apart.

import { colour, fitted } from './dom.js';
import { rate } from './format.js';

/** The next figure that halves and quarters well. */
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value);
}

/** Draws the last `seconds` of a history; `isLarge` has a scale in words. */
export function drawRates(canvas, history, seconds, isLarge) {
  if (!canvas.clientWidth) return;
  const { context, width, height } = fitted(canvas);
  const down = history ? history.down.slice(-seconds) : [];
  const up = history ? history.up.slice(-seconds) : [];
  const top = roundUp(Math.max(1000, 1.05 * Math.max(0, ...down, ...up)));
  const area = { left: 0, top: isLarge ? 12 : 18, width: width - (isLarge ? 76 : 0), height: height - (isLarge ? 34 : 20) };
  scale(context, area, top, seconds, isLarge);
  line(context, area, down, top, seconds, colour('--down'), true);
  line(context, area, up, top, seconds, colour('--up'), false);
}

function scale(context, area, top, seconds, isLarge) {
  context.strokeStyle = colour('--line');
  context.fillStyle = colour('--muted');
  context.lineWidth = 1;
  context.font = `11px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = 'middle';
  const steps = isLarge ? 4 : 2;
  for (let step = 0; step <= steps; step += 1) {
    const y = Math.round(area.top + area.height * (1 - step / steps)) + 0.5;
    context.beginPath();
    context.moveTo(area.left, y);
    context.lineTo(area.left + area.width, y);
    context.stroke();
    if (isLarge) context.fillText(rate(top * step / steps), area.left + area.width + 8, y);
  }
  if (!isLarge) {
    context.fillText(rate(top), area.left + 4, area.top - 9);
    return;
  }
  context.textBaseline = 'top';
  const y = area.top + area.height + 7;
  context.fillText(`${Math.round(seconds / 60)} min ago`, area.left, y);
  context.textAlign = 'right';
  context.fillText('now', area.left + area.width, y);
  context.textAlign = 'left';
}

function line(context, area, values, top, seconds, ink, isFilled) {
  if (!values.length) return;
  const x = (index) => area.left + area.width * (1 - (values.length - 1 - index) / (seconds - 1));
  const y = (value) => area.top + area.height * (1 - value / top);
  context.beginPath();
  values.forEach((value, index) => (index ? context.lineTo(x(index), y(value)) : context.moveTo(x(0), y(value))));
  if (values.length === 1) context.lineTo(x(0) + 1, y(values[0]));
  context.strokeStyle = context.fillStyle = ink;
  context.lineWidth = 1.75;
  context.lineJoin = 'round';
  context.setLineDash(isFilled ? [] : [5, 3]);
  context.stroke();
  context.setLineDash([]);
  if (!isFilled) return;
  context.lineTo(x(values.length - 1), area.top + area.height);
  context.lineTo(x(0), area.top + area.height);
  context.globalAlpha = 0.13;
  context.fill();
  context.globalAlpha = 1;
}
