// Optical blur and motion blur: the formulas of `dqmq_tf/quality/blur.py`.
//
// A blur is a list of taps `[row, column, weight]`. Outside of the image, the nearest border pixel
// is used. Radii and widths are in pixels of the network's input.

export const GAUSSIAN_SIGMA = [0.4, 0.6, 0.7, 0.8, 1.0];
export const DEFOCUS_RADIUS_AND_ALIAS = [[0.3, 0.4], [0.4, 0.5], [0.5, 0.6], [1.0, 0.2], [1.5, 0.1]];
export const MOTION_SIGMA = [1.0, 1.5, 2.0, 2.0, 2.5];
export const MOTION_MAX_ANGLE = Math.PI / 4;

const clamp = (index, size) => Math.min(Math.max(index, 0), size - 1);

function weightedTaps({ height, width, channels, values }, taps) {
  const sums = new Float32Array(values.length);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      const to = (y * width + x) * channels;
      for (const [row, column, weight] of taps) {
        const from = (clamp(y + row, height) * width + clamp(x + column, width)) * channels;
        for (let c = 0; c < channels; c += 1) sums[to + c] += weight * values[from + c];
      }
    }
  }
  return sums;
}

function normalized(weights) {
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

export function gaussian_blur(image, severity) {
  const sigma = GAUSSIAN_SIGMA[severity - 1];
  const reach = Math.min(Math.floor(4 * sigma + 0.5), 4);
  const offsets = Array.from({ length: 2 * reach + 1 }, (_, i) => i - reach);
  const weights = normalized(offsets.map((offset) => Math.exp(-0.5 * (offset / sigma) ** 2)));
  const columnwise = weightedTaps(image, offsets.map((row, i) => [row, 0, weights[i]]));
  return weightedTaps(
    { ...image, values: columnwise },
    offsets.map((column, i) => [0, column, weights[i]]),
  );
}

export function defocus_blur(image, severity) {
  const [radius, alias] = DEFOCUS_RADIUS_AND_ALIAS[severity - 1];
  const side = Math.exp(-0.5 / alias ** 2);
  const soft = [side, 1, side].map((weight) => weight / (1 + 2 * side));
  const inDisk = (y, x) => (Math.abs(y) <= 2 && Math.abs(x) <= 2 && y * y + x * x <= radius ** 2 ? 1 : 0);
  const taps = [];
  let area = 0;
  for (let y = -2; y <= 2; y += 1) {
    for (let x = -2; x <= 2; x += 1) {
      area += inDisk(y, x);
      let weight = 0;
      for (let dy = -1; dy <= 1; dy += 1) {
        for (let dx = -1; dx <= 1; dx += 1) weight += soft[dy + 1] * soft[dx + 1] * inDisk(y - dy, x - dx);
      }
      taps.push([y, x, weight]);
    }
  }
  return weightedTaps(image, taps.map(([y, x, weight]) => [y, x, weight / area]));
}

export function motion_blur(image, severity, random) {
  const sigma = MOTION_SIGMA[severity - 1];
  const [angle] = random.uniform(1, -MOTION_MAX_ANGLE, MOTION_MAX_ANGLE);
  const distances = Array.from({ length: 1 + Math.ceil(4 * Math.max(...MOTION_SIGMA)) }, (_, i) => i);
  const weights = normalized(distances.map((distance) => Math.exp(-0.5 * (distance / sigma) ** 2)));
  const taps = distances.map((distance, i) => [
    Math.round(distance * Math.sin(angle)),
    Math.round(distance * Math.cos(angle)),
    weights[i],
  ]);
  return weightedTaps(image, taps);
}
