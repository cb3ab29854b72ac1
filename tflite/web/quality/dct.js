// The cosine transform of JPEG in integers, as libjpeg computes it by default ("islow").
//
// The algorithm has 12 multiplications for 8 numbers (Loeffler, Ligtenberg and Moschytz, "Practical
// fast 1-D DCT algorithms with 11 multiplications", 1989). Rounding matters: a coefficient next to
// the half of a quantization step would fall to the other side, and change the whole block.

const SIDE = 8;
const CONSTANT_BITS = 13;
const EXTRA_BITS = 2; // What the first of the two passes keeps for the second.

const fixed = (value) => Math.round(value * 2 ** CONSTANT_BITS);
const C0_298 = fixed(0.298631336);
const C0_390 = fixed(0.390180644);
const C0_541 = fixed(0.5411961);
const C0_765 = fixed(0.765366865);
const C0_899 = fixed(0.899976223);
const C1_175 = fixed(1.175875602);
const C1_501 = fixed(1.50132111);
const C1_847 = fixed(1.847759065);
const C1_961 = fixed(1.96157056);
const C2_053 = fixed(2.053119869);
const C2_562 = fixed(2.562915447);
const C3_072 = fixed(3.072711026);

const descaled = (value, bits) => (value + (1 << (bits - 1))) >> bits;

/** Rotations that both directions share: four odd numbers give four sums. */
function odd(a, b, c, d) {
  const shared = (a + c + b + d) * C1_175;
  const outer = -(a + d) * C0_899;
  const inner = -(b + c) * C2_562;
  const left = shared - (a + c) * C1_961;
  const right = shared - (b + d) * C0_390;
  return [
    a * C0_298 + outer + left,
    b * C2_053 + inner + right,
    c * C3_072 + inner + left,
    d * C1_501 + outer + right,
  ];
}

/** Transforms 8x8 samples around 0 to coefficients, 8 times the orthonormal ones. */
export function forward(samples) {
  const rows = Int32Array.from(samples);
  for (let row = 0; row < SIDE; row += 1) {
    forwardLine(rows, SIDE * row, 1, CONSTANT_BITS - EXTRA_BITS, (sum) => sum << EXTRA_BITS);
  }
  for (let column = 0; column < SIDE; column += 1) {
    const bits = CONSTANT_BITS + EXTRA_BITS;
    forwardLine(rows, column, SIDE, bits, (sum) => descaled(sum, EXTRA_BITS));
  }
  return rows;
}

function forwardLine(data, start, step, bits, whole) {
  const at = (i) => data[start + step * i];
  const sums = [0, 1, 2, 3].map((i) => at(i) + at(7 - i));
  const differences = [3, 2, 1, 0].map((i) => at(i) - at(7 - i));
  const [outer, inner] = [sums[0] + sums[3], sums[1] + sums[2]];
  const [outerLess, innerLess] = [sums[0] - sums[3], sums[1] - sums[2]];
  const rotated = (outerLess + innerLess) * C0_541;
  const odds = odd(...differences);
  const set = (i, value) => (data[start + step * i] = value);
  set(0, whole(outer + inner));
  set(4, whole(outer - inner));
  set(2, descaled(rotated + outerLess * C0_765, bits));
  set(6, descaled(rotated - innerLess * C1_847, bits));
  [7, 5, 3, 1].forEach((i, k) => set(i, descaled(odds[k], bits)));
}

/** Transforms orthonormal coefficients back to samples around 0. */
export function inverse(coefficients) {
  const data = Int32Array.from(coefficients);
  for (let column = 0; column < SIDE; column += 1) {
    inverseLine(data, column, SIDE, CONSTANT_BITS - EXTRA_BITS);
  }
  for (let row = 0; row < SIDE; row += 1) {
    inverseLine(data, SIDE * row, 1, CONSTANT_BITS + EXTRA_BITS + 3);
  }
  return data;
}

function inverseLine(data, start, step, bits) {
  const at = (i) => data[start + step * i];
  const rotated = (at(2) + at(6)) * C0_541;
  const [low, high] = [rotated - at(6) * C1_847, rotated + at(2) * C0_765];
  const sum = (at(0) + at(4)) << CONSTANT_BITS;
  const difference = (at(0) - at(4)) << CONSTANT_BITS;
  const evens = [sum + high, difference + low, difference - low, sum - high];
  const odds = odd(at(7), at(5), at(3), at(1)).reverse();
  evens.forEach((even, i) => {
    data[start + step * i] = descaled(even + odds[i], bits);
    data[start + step * (7 - i)] = descaled(even - odds[i], bits);
  });
}
