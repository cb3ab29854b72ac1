// The degradations by name, and `degrade`, as in `dqmq_tf/quality/degradations.py`.
//
// An image is `{height, width, channels, values}`: a Float32Array by rows, columns and channels.

import * as blur from "./blur.js";
import * as noise from "./noise.js";
import * as photometric from "./photometric.js";
import * as resolution from "./resolution.js";

const DEGRADATIONS = {
  gaussian_noise: noise.gaussian_noise,
  shot_noise: noise.shot_noise,
  impulse_noise: noise.impulse_noise,
  speckle_noise: noise.speckle_noise,
  gaussian_blur: blur.gaussian_blur,
  defocus_blur: blur.defocus_blur,
  motion_blur: blur.motion_blur,
  low_resolution: resolution.low_resolution,
  pixelate: resolution.pixelate,
  jpeg: resolution.jpeg,
  low_light: photometric.low_light,
  brightness: photometric.brightness,
  contrast: photometric.contrast,
  fog: photometric.fog,
};

export const KINDS = Object.keys(DEGRADATIONS);

/**
 * Degrades an image of pixels from 0 to 255.
 *
 * @param image The image.
 * @param {string} kind One of `KINDS`.
 * @param {number} severity From 1 (mild) to 5 (strong). 0 returns the image as it is.
 * @param random A `Random`.
 * @returns The degraded image, in whole numbers from 0 to 255.
 */
export function degrade(image, kind, severity, random) {
  if (severity === 0) return image;
  const unit = { ...image, values: image.values.map((value) => value / 255) };
  const values = DEGRADATIONS[kind](unit, severity, random);
  return { ...image, values: values.map((value) => roundToEven(255 * Math.min(Math.max(value, 0), 1))) };
}

// A half goes to the even neighbor, as in TensorFlow: multiples of 1/100 have many halves.
function roundToEven(value) {
  const single = Math.fround(value);
  const floor = Math.floor(single);
  const rest = single - floor;
  return rest === 0.5 ? floor + (floor % 2) : floor + (rest > 0.5);
}
