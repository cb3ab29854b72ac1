// Changes of the light: the formulas of `dqmq_tf/quality/photometric.py`.

export const CONTRAST = [0.75, 0.5, 0.4, 0.3, 0.15];
export const BRIGHTNESS = [0.05, 0.1, 0.15, 0.2, 0.3];
export const FOG_THICKNESS_AND_DECAY = [[0.2, 3], [0.5, 3], [0.75, 2.5], [1, 2], [1.5, 1.75]];
export const LOW_LIGHT_EXPOSURE = [0.5, 0.3, 0.18, 0.1, 0.05];
export const LOW_LIGHT_PHOTONS = 1000;
export const LOW_LIGHT_READ_NOISE = 0.002;
export const DISPLAY_GAMMA = 2.2;

export function contrast({ channels, values }, severity) {
  const means = new Float64Array(channels);
  const pixels = values.length / channels;
  values.forEach((value, i) => (means[i % channels] += value / pixels));
  return values.map((value, i) => {
    const mean = means[i % channels];
    return mean + CONTRAST[severity - 1] * (value - mean);
  });
}

// In float32 as in Python: a sum with 0.1 or 0.3 is often next to the half of a gray level.
export function brightness({ channels, values }, severity) {
  const result = new Float32Array(values.length);
  const added = Math.fround(BRIGHTNESS[severity - 1]);
  for (let i = 0; i < values.length; i += channels) {
    const pixel = values.subarray(i, i + channels);
    const value = Math.max(...pixel);
    const brighter = Math.min(Math.fround(value + added), 1);
    const factor = Math.fround(brighter / value);
    pixel.forEach((entry, c) => (result[i + c] = value > 0 ? entry * factor : brighter));
  }
  return result;
}

export function low_light({ values }, severity, random) {
  const normal = random.normal(values.length);
  return values.map((value, i) => {
    const light = LOW_LIGHT_EXPOSURE[severity - 1] * value ** DISPLAY_GAMMA;
    const stddev = Math.sqrt(light / LOW_LIGHT_PHOTONS + LOW_LIGHT_READ_NOISE ** 2);
    return Math.max(light + stddev * normal[i], 0) ** (1 / DISPLAY_GAMMA);
  });
}

/** Draws a square cloud with the diamond-square algorithm, values from 0 to 1. */
function plasmaFractal(size, decay, random) {
  let side = 1;
  let amplitude = 1;
  let cloud = new Float32Array(1);
  for (; side < size; side *= 2, amplitude /= decay ** 2) {
    const noise = random.uniform(3 * side * side, -1, 1);
    const at = (map, y, x) => map[((y + side) % side) * side + ((x + side) % side)];
    const centers = new Float32Array(side * side);
    const finer = new Float32Array(4 * side * side);
    for (let y = 0, i = 0; y < side; y += 1) {
      for (let x = 0; x < side; x += 1, i += 1) {
        const corners = at(cloud, y, x) + at(cloud, y + 1, x) + at(cloud, y, x + 1) + at(cloud, y + 1, x + 1);
        centers[i] = corners / 4 + amplitude * noise[i];
      }
    }
    for (let y = 0, i = 0; y < side; y += 1) {
      for (let x = 0; x < side; x += 1, i += 1) {
        const below = cloud[i] + at(cloud, y + 1, x);
        const beside = cloud[i] + at(cloud, y, x + 1);
        const top = (beside + centers[i] + at(centers, y - 1, x)) / 4;
        const left = (below + centers[i] + at(centers, y, x - 1)) / 4;
        const upper = 4 * y * side + 2 * x;
        finer[upper] = cloud[i];
        finer[upper + 1] = top + amplitude * noise[side * side + i];
        finer[upper + 2 * side] = left + amplitude * noise[2 * side * side + i];
        finer[upper + 2 * side + 1] = centers[i];
      }
    }
    cloud = finer;
  }
  let [low, high] = [Infinity, -Infinity];
  for (const value of cloud) [low, high] = [Math.min(low, value), Math.max(high, value)];
  return { side, cloud: cloud.map((value) => (high > low ? (value - low) / (high - low) : 0)) };
}

export function fog({ height, width, channels, values }, severity, random) {
  const [thickness, decay] = FOG_THICKNESS_AND_DECAY[severity - 1];
  const { side, cloud } = plasmaFractal(Math.max(height, width), decay, random);
  const brightest = values.reduce((most, value) => Math.max(most, value), 0);
  return values.map((value, i) => {
    const pixel = Math.floor(i / channels);
    const veil = cloud[Math.floor(pixel / width) * side + (pixel % width)];
    return ((value + thickness * veil) * brightest) / (brightest + thickness);
  });
}
