"""Loss of resolution and compression artifacts of one image. See `noise` for the signature."""

import tensorflow as tf

from dqmq_tf.quality.severity import at_severity

LOW_RESOLUTION_SIDE = (0.75, 0.6, 0.5, 0.4, 0.3)
PIXELATE_SIDE = (0.95, 0.9, 0.85, 0.75, 0.65)
JPEG_QUALITY = (80, 65, 58, 50, 40)


def _shrink(size: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    """Returns `size * side` rounded down, at least 1."""
    # In float32, 20 * 0.85 is slightly less than 17. The small term corrects this.
    return tf.maximum(tf.cast(tf.cast(size, tf.float32) * side + 1e-3, tf.int32), 1)


def low_resolution(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Shrinks by area averaging, then enlarges bilinearly to the original size.

    It simulates a distant object or a small sensor, and is not from CIFAR-10-C. Each side keeps the
    fraction `LOW_RESOLUTION_SIDE` of its pixels, rounded down, at least one.
    """
    del seed
    size = tf.shape(image)[:2]
    small = _shrink(size, at_severity(LOW_RESOLUTION_SIDE, severity))
    image = tf.image.resize(image, small, tf.image.ResizeMethod.AREA)
    return tf.image.resize(image, size, tf.image.ResizeMethod.BILINEAR)


def _merge_rows(image: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Replaces every row by the mean of its group, for `count` groups of neighboring rows.

    Row `i` of `n` belongs to group `ceil((i + 1/2) count / n) - 1`. These are the rows that Pillow's
    box filter averages when it shrinks an image, and the rows that it fills when it enlarges one.
    """
    size = tf.shape(image)[0]
    groups = ((2 * tf.range(size) + 1) * count - 1) // (2 * size)
    return tf.gather(tf.math.segment_mean(image, groups), groups)


def pixelate(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Shrinks to the fraction `PIXELATE_SIDE` of each side and repeats pixels (CIFAR-10-C)."""
    del seed
    rows, columns = tf.unstack(_shrink(tf.shape(image)[:2], at_severity(PIXELATE_SIDE, severity)))
    image = tf.transpose(_merge_rows(image, rows), [1, 0, 2])
    return tf.transpose(_merge_rows(image, columns), [1, 0, 2])


def jpeg(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Encodes as JPEG with quality `JPEG_QUALITY` and decodes again (CIFAR-10-C).

    Three channels are encoded as RGB, and any other number of channels as separate gray images.
    """
    del seed
    quality = tf.gather(tf.constant(JPEG_QUALITY), severity - 1)
    pixels = tf.saturate_cast(tf.round(image * 255.0), tf.uint8)

    def recompress(pixels: tf.Tensor) -> tf.Tensor:
        return tf.image.adjust_jpeg_quality(pixels, quality, dct_method="INTEGER_ACCURATE")

    if image.shape[-1] in (1, 3):
        pixels = recompress(pixels)
    else:
        planes = tf.transpose(pixels, [2, 0, 1])[..., None]
        planes = tf.map_fn(recompress, planes)
        pixels = tf.transpose(planes[..., 0], [1, 2, 0])
    return tf.cast(pixels, tf.float32) / 255.0
