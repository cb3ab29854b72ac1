// What JPEG does to pixels: color conversion, halved chroma, quantized cosines, and back.
//
// The lossless part of JPEG changes nothing and is left out. In contrast to the canvas's encoder,
// the result is the same in all browsers. The rules at edges and in rounding are libjpeg's, which
// TensorFlow uses.

import { forward, inverse } from "./dct.js";

const BLOCK = 8;
// Annex K of the standard (ITU-T T.81), by rows.
const LUMA = [
  16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56,
  14, 17, 22, 29, 51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92,
  49, 64, 78, 87, 103, 121, 120, 101, 72, 92, 95, 98, 112, 100, 103, 99,
]; // prettier-ignore
const CHROMA = [
  17, 18, 24, 47, 99, 99, 99, 99, 18, 21, 26, 66, 99, 99, 99, 99, 24, 26, 56, 99, 99, 99, 99, 99,
  47, 66, 99, 99, 99, 99, 99, 99, ...new Array(32).fill(99),
]; // prettier-ignore

const COLOR_BITS = 16;

const toByte = (value) => Math.min(Math.max(value, 0), 255);
const fixed = (value) => Math.round(value * 2 ** COLOR_BITS);

/**
 * Compresses and decompresses an image.
 *
 * @param image Pixels from 0 to 255 with 1 or 3 channels.
 * @param {number} quality From 1 to 100.
 * @returns {Float32Array} The pixels.
 */
export function recompress({ height, width, channels, values }, quality) {
  const plane = (fill) => ({ height, width, values: Float32Array.from({ length: height * width }, fill) });
  const luma = scaled(LUMA, quality);
  if (channels === 1) return quantized(plane((_, i) => values[i]), luma).values;
  const weighted = (r, g, b, offset) => {
    const [red, green, blue] = [r, g, b].map(fixed);
    return plane((_, i) => {
      const sum = red * values[3 * i] + green * values[3 * i + 1] + blue * values[3 * i + 2];
      return (sum + offset) >> COLOR_BITS;
    });
  };
  const half = 1 << (COLOR_BITS - 1);
  const middle = (128 << COLOR_BITS) + half - 1;
  const y = quantized(weighted(0.299, 0.587, 0.114, half), luma).values;
  const chroma = scaled(CHROMA, quality);
  const [cb, cr] = [
    weighted(-0.16874, -0.33126, 0.5, middle),
    weighted(0.5, -0.41869, -0.08131, middle),
  ].map((full) => enlarged(quantized(halved(full), chroma), height, width));
  const rounded = (sum) => (sum + half) >> COLOR_BITS;
  const pixels = new Float32Array(values.length);
  for (let i = 0; i < height * width; i += 1) {
    const [blue, red] = [cb[i] - 128, cr[i] - 128];
    pixels[3 * i] = toByte(y[i] + rounded(fixed(1.402) * red));
    pixels[3 * i + 1] = toByte(y[i] + rounded(-fixed(0.34414) * blue - fixed(0.71414) * red));
    pixels[3 * i + 2] = toByte(y[i] + rounded(fixed(1.772) * blue));
  }
  return pixels;
}

function scaled(table, quality) {
  const percent = quality < 50 ? Math.floor(5000 / quality) : 200 - 2 * quality;
  return table.map((entry) => Math.min(Math.max(Math.floor((entry * percent + 50) / 100), 1), 255));
}

const clamped = ({ height, width, values }, y, x) =>
  values[Math.min(Math.max(y, 0), height - 1) * width + Math.min(Math.max(x, 0), width - 1)];

// Means of 2x2 pixels. Columns repeat beyond the right edge as far as blocks reach, rows only to
// the next even number: the rows of means repeat below them.
function halved(plane) {
  const height = Math.ceil(plane.height / 2);
  const width = BLOCK * Math.ceil(plane.width / (2 * BLOCK));
  const values = new Float32Array(height * width);
  for (let y = 0, i = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1, i += 1) {
      let sum = x % 2 ? 2 : 1; // Alternates, so that means are not biased.
      for (const [dy, dx] of [[0, 0], [0, 1], [1, 0], [1, 1]]) sum += clamped(plane, 2 * y + dy, 2 * x + dx);
      values[i] = sum >> 2;
    }
  }
  return { height, width, values };
}

/** Quantizes the cosines of each 8x8 block. */
function quantized(plane, table) {
  const result = { ...plane, values: new Float32Array(plane.values.length) };
  for (let top = 0; top < plane.height; top += BLOCK) {
    for (let left = 0; left < plane.width; left += BLOCK) {
      const samples = Array.from({ length: 64 }, (_, i) => clamped(plane, top + (i >> 3), left + (i & 7)) - 128);
      const coefficients = forward(samples).map((value, i) => {
        const steps = Math.floor((Math.abs(value) + 4 * table[i]) / (8 * table[i]));
        return Math.sign(value) * steps * table[i];
      });
      const decoded = inverse(coefficients);
      for (let i = 0; i < 64; i += 1) {
        const [y, x] = [top + (i >> 3), left + (i & 7)];
        if (y < plane.height && x < plane.width) result.values[y * plane.width + x] = toByte(decoded[i] + 128);
      }
    }
  }
  return result;
}

// Doubles both sides: a pixel is 9/16 its own mean, 3/16 each of the two nearest, 1/16 the fourth.
// libjpeg repeats pixels instead where the small image has at most two columns.
function enlarged(plane, height, width) {
  const small = { ...plane, width: Math.ceil(width / 2) };
  const at = (y, x) => clamped(plane, y, Math.min(x, small.width - 1));
  return Float32Array.from({ length: height * width }, (_, i) => {
    const [y, x] = [Math.floor(i / width), i % width];
    const [row, column] = [y >> 1, x >> 1];
    if (small.width <= 2) return at(row, column);
    const sum = (c) => 3 * at(row, c) + at(row + (y % 2 ? 1 : -1), c);
    return (3 * sum(column) + sum(column + (x % 2 ? 1 : -1)) + (x % 2 ? 7 : 8)) >> 4;
  });
}
