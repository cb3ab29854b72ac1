// Sensor and transmission noise: the formulas of `dqmq_tf/quality/noise.py`.
//
// A degradation takes an image with values from 0 to 1, a severity from 1 to 5 and a source of
// random numbers, and returns values that may exceed 0 to 1.

export const GAUSSIAN_STDDEV = [0.04, 0.06, 0.08, 0.09, 0.1];
export const SHOT_PHOTONS = [500, 250, 100, 75, 50];
export const IMPULSE_SHARE = [0.01, 0.02, 0.03, 0.05, 0.07];
export const SPECKLE_STDDEV = [0.06, 0.1, 0.12, 0.16, 0.2];

export function gaussian_noise({ values }, severity, random) {
  const normal = random.normal(values.length);
  return values.map((value, i) => value + GAUSSIAN_STDDEV[severity - 1] * normal[i]);
}

export function shot_noise({ values }, severity, random) {
  const photons = SHOT_PHOTONS[severity - 1];
  return random.poisson(values.map((value) => value * photons)).map((count) => count / photons);
}

export function impulse_noise({ values }, severity, random) {
  const half = Math.fround(IMPULSE_SHARE[severity - 1] / 2);
  const uniform = random.uniform(values.length);
  return values.map((value, i) => {
    if (uniform[i] < half) return 0;
    return uniform[i] >= Math.fround(1 - half) ? 1 : value;
  });
}

export function speckle_noise({ values }, severity, random) {
  const normal = random.normal(values.length);
  return values.map((value, i) => value * (1 + SPECKLE_STDDEV[severity - 1] * normal[i]));
}
