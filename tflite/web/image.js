// Pictures as pixels: from a file or a video frame to the input of a network, and back to a canvas.

import { resize } from "./resize.js";

const OPAQUE = 255;
// ITU-R BT.601, as in `tf.image.rgb_to_grayscale`.
const GRAY = [0.2989, 0.587, 0.114];

/**
 * Returns the pixels of a picture.
 *
 * @param source An ImageBitmap, a canvas or a video.
 * @returns `{height, width, channels: 4, values}`, red, green, blue and opacity.
 */
export function pixelsOf(source) {
  const width = source.videoWidth ?? source.width;
  const height = source.videoHeight ?? source.height;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // Behind a transparent picture.
  context.fillRect(0, 0, width, height);
  context.drawImage(source, 0, 0);
  return { height, width, channels: 4, values: context.getImageData(0, 0, width, height).data };
}

/** Returns a picture in the size and the channels of a network's input, in whole numbers. */
export function asInput(picture, { height, width, channels, resize: rule }) {
  const { values } = resize(picture, height, width, rule);
  const result = new Float32Array(height * width * channels);
  for (let i = 0; i < height * width; i += 1) {
    const [red, green, blue] = values.subarray(4 * i, 4 * i + 3);
    if (channels === 1) result[i] = Math.round(GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue);
    else result.set([Math.round(red), Math.round(green), Math.round(blue)], 3 * i);
  }
  return { height, width, channels, values: result };
}

/** Draws pixels of 1 or 3 channels. */
export function draw(canvas, { height, width, channels, values }) {
  Object.assign(canvas, { height, width });
  const pixels = new ImageData(width, height);
  for (let i = 0; i < height * width; i += 1) {
    const rgb = channels === 1 ? [values[i], values[i], values[i]] : values.subarray(3 * i, 3 * i + 3);
    pixels.data.set([...rgb, OPAQUE], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}
