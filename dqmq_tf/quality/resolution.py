"""Loss of resolution and of coding quality of one image; see `noise` for the signature and source."""

import tensorflow as tf

from dqmq_tf.quality.severity import at_severity

LOW_RESOLUTION_SIDE = (0.75, 0.6, 0.5, 0.4, 0.3)
PIXELATE_SIDE = (0.95, 0.9, 0.85, 0.75, 0.65)
JPEG_QUALITY = (80, 65, 58, 50, 40)


def _shrunk(size, side):
    """Returns ``size * side`` rounded down, at least 1."""
    # The small term keeps 20 * 0.85 at 17, of which float32 falls just short.
    return tf.maximum(tf.cast(tf.cast(size, tf.float32) * side + 1e-3, tf.int32), 1)


def low_resolution(image, severity, seed):
    """Shrinks by area averaging, then enlarges bilinearly to the old size: a far or small sensor.

    Ours, not of CIFAR-10-C: each side keeps the fraction `LOW_RESOLUTION_SIDE` of its pixels, rounded
    down, at least one.
    """
    del seed
    size = tf.shape(image)[:2]
    small = _shrunk(size, at_severity(LOW_RESOLUTION_SIDE, severity))
    image = tf.image.resize(image, small, tf.image.ResizeMethod.AREA)
    return tf.image.resize(image, size, tf.image.ResizeMethod.BILINEAR)


def _merge_rows(image, small):
    """Replaces every row by the mean of its group, for ``small`` groups of neighbouring rows.

    Row ``i`` of ``n`` belongs to group ``ceil((i + 1/2) small / n) - 1``: both the pixels that
    Pillow's box filter averages when it shrinks and those that it fills when it enlarges.
    """
    size = tf.shape(image)[0]
    groups = ((2 * tf.range(size) + 1) * small - 1) // (2 * size)
    return tf.gather(tf.math.segment_mean(image, groups), groups)


def pixelate(image, severity, seed):
    """Shrinks to the fraction `PIXELATE_SIDE` of each side and repeats pixels (CIFAR-10-C)."""
    del seed
    rows, columns = tf.unstack(_shrunk(tf.shape(image)[:2], at_severity(PIXELATE_SIDE, severity)))
    image = tf.transpose(_merge_rows(image, rows), [1, 0, 2])
    return tf.transpose(_merge_rows(image, columns), [1, 0, 2])


def jpeg(image, severity, seed):
    """Encodes as JPEG of quality `JPEG_QUALITY` and decodes again (CIFAR-10-C).

    Three channels are coded as RGB; any other number as that many grey images.
    """
    del seed
    quality = tf.gather(tf.constant(JPEG_QUALITY), severity - 1)
    pixels = tf.saturate_cast(tf.round(image * 255.0), tf.uint8)

    def code(pixels):
        return tf.image.adjust_jpeg_quality(pixels, quality, dct_method="INTEGER_ACCURATE")

    if image.shape[-1] in (1, 3):
        pixels = code(pixels)
    else:
        planes = tf.transpose(pixels, [2, 0, 1])[..., None]
        planes = tf.map_fn(code, planes)
        pixels = tf.transpose(planes[..., 0], [1, 2, 0])
    return tf.cast(pixels, tf.float32) / 255.0
