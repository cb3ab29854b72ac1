// Resizes images by the rules of `tf.image.resize`: bilinear, nearest and area.

/**
 * Resizes an image.
 *
 * @param image `{height, width, channels, values}`, see `quality/degradations.js`.
 * @param {"bilinear" | "nearest" | "area"} rule
 */
export function resize(image, height, width, rule) {
  const taps = { bilinear, nearest, area }[rule];
  const columnwise = alongRows(image, taps(image.height, height));
  const turned = transposed(columnwise);
  return transposed(alongRows(turned, taps(image.width, width)));
}

// Each tap is `[[index, weight], ...]` for one row of the result.
function alongRows({ width, channels, values }, taps) {
  const length = width * channels;
  const result = new Float32Array(taps.length * length);
  taps.forEach((tap, row) => {
    for (const [index, weight] of tap) {
      const from = index * length;
      const to = row * length;
      for (let i = 0; i < length; i += 1) result[to + i] += weight * values[from + i];
    }
  });
  return { height: taps.length, width, channels, values: result };
}

/** Swaps rows and columns. */
export function transposed({ height, width, channels, values }) {
  const result = new Float32Array(values.length);
  for (let y = 0; y < height; y += 1) {
    for (let x = 0; x < width; x += 1) {
      for (let c = 0; c < channels; c += 1) {
        result[(x * height + y) * channels + c] = values[(y * width + x) * channels + c];
      }
    }
  }
  return { height: width, width: height, channels, values: result };
}

function bilinear(from, to) {
  return Array.from({ length: to }, (_, row) => {
    const center = ((row + 0.5) * from) / to - 0.5;
    const lower = Math.floor(center);
    const share = center - lower;
    return [
      [Math.max(lower, 0), 1 - share],
      [Math.min(lower + 1, from - 1), share],
    ];
  });
}

function nearest(from, to) {
  return Array.from({ length: to }, (_, row) => [
    [Math.min(Math.floor(((row + 0.5) * from) / to), from - 1), 1],
  ]);
}

function area(from, to) {
  return Array.from({ length: to }, (_, row) => {
    const [start, end] = [(row * from) / to, ((row + 1) * from) / to];
    const taps = [];
    for (let index = Math.floor(start); index < Math.min(Math.ceil(end), from); index += 1) {
      const overlap = Math.min(index + 1, end) - Math.max(index, start);
      taps.push([index, overlap / (end - start)]);
    }
    return taps;
  });
}
