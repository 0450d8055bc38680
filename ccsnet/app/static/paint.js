// Colours for pixels: classes, differences, heat.

export const DIFFERENT = [230, 0, 150];

const little = new Uint8Array(new Uint32Array([1]).buffer)[0] === 1;

function packed([red, green, blue], alpha) {
  const parts = little ? [alpha, blue, green, red] : [red, green, blue, alpha];
  return parts.reduce((sum, part) => sum * 256 + part, 0) >>> 0;
}

// One number for every class, as ImageData holds colours; 0 is nothing.
export function paints(colours, hidden, highlight, values) {
  const table = new Uint32Array(values);
  colours.forEach((colour, index) => {
    if (hidden.has(index)) return;
    table[index] = packed(colour, highlight === null || highlight === index ? 255 : 40);
  });
  return table;
}

// Paint the part of a label map that a canvas shows; `other`: only where it differs from that.
export function paintLabels(canvas, label, view, density, table, other) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const out = new Uint32Array(image.data.buffer);
  const columns = places(width, density, view.paneWidth, view.x, view.scale, view.width);
  const rows = places(height, density, view.paneHeight, view.y, view.scale, view.height);
  const mark = packed(DIFFERENT, 255);
  for (let y = 0; y < height; y++) {
    if (rows[y] < 0) continue;
    const row = rows[y] * view.width;
    let at = y * width;
    for (let x = 0; x < width; x++, at++) {
      const column = columns[x];
      if (column < 0) continue;
      const index = row + column;
      if (other === null) out[at] = table[label[index]];
      else if (label[index] !== other[index]) out[at] = mark;
    }
  }
  context.putImageData(image, 0, 0);
}

// For every place of a canvas's row or column that of the image; -1 outside.
function places(length, density, pane, middle, scale, side) {
  const found = new Int32Array(length);
  for (let i = 0; i < length; i++) {
    const place = Math.floor(((i + 0.5) / density - pane / 2) / scale + middle);
    found[i] = place >= 0 && place < side ? place : -1;
  }
  return found;
}

// From nothing to much, brighter all the way, for eyes of all kinds.
const HEAT = [
  [0, 0, 4],
  [60, 10, 90],
  [130, 30, 105],
  [200, 65, 70],
  [245, 125, 20],
  [250, 195, 40],
  [252, 255, 165],
];

export function heat(value) {
  const place = Math.min(0.9999, Math.max(0, value)) * (HEAT.length - 1);
  const from = Math.floor(place);
  return HEAT[from].map((part, i) => Math.round(part + (HEAT[from + 1][i] - part) * (place - from)));
}

// A small canvas with a pixel for every place of a grid of weights, in thousandths; where there is
// little the picture shines through.
export function heatCanvas(weights, [rows, columns]) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width: columns, height: rows });
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  weights.forEach((weight, i) => {
    const alpha = Math.round(255 * (0.1 + 0.9 * (weight / 1000) ** 0.7));
    image.data.set([...heat(weight / 1000), alpha], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return canvas;
}
