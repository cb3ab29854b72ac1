// Loss of resolution and compression: the formulas of `dqmq_tf/quality/resolution.py`.

import { resize, transposed } from "../resize.js";
import { recompress } from "./jpeg.js";

export const LOW_RESOLUTION_SIDE = [0.75, 0.6, 0.5, 0.4, 0.3];
export const PIXELATE_SIDE = [0.95, 0.9, 0.85, 0.75, 0.65];
export const JPEG_QUALITY = [80, 65, 58, 50, 40];

const shrink = (size, side) => Math.max(Math.floor(size * side + 1e-3), 1);

export function low_resolution(image, severity) {
  const side = LOW_RESOLUTION_SIDE[severity - 1];
  const small = resize(image, shrink(image.height, side), shrink(image.width, side), "area");
  return resize(small, image.height, image.width, "bilinear").values;
}

/** Replaces every row by the mean of its group, for `count` groups of neighboring rows. */
function mergeRows({ height, width, channels, values }, count) {
  const length = width * channels;
  const group = (row) => Math.floor(((2 * row + 1) * count - 1) / (2 * height));
  const sums = new Float32Array(count * length);
  const members = new Array(count).fill(0);
  for (let row = 0; row < height; row += 1) {
    members[group(row)] += 1;
    for (let i = 0; i < length; i += 1) sums[group(row) * length + i] += values[row * length + i];
  }
  const means = sums.map((sum, i) => sum / members[Math.floor(i / length)]);
  const merged = values.map((_, i) => means[group(Math.floor(i / length)) * length + (i % length)]);
  return { height, width, channels, values: merged };
}

export function pixelate(image, severity) {
  const side = PIXELATE_SIDE[severity - 1];
  const rows = mergeRows(image, shrink(image.height, side));
  return transposed(mergeRows(transposed(rows), shrink(image.width, side))).values;
}

export function jpeg(image, severity) {
  const pixels = image.values.map((value) => Math.round(255 * value));
  return recompress({ ...image, values: pixels }, JPEG_QUALITY[severity - 1]).map((value) => value / 255);
}
