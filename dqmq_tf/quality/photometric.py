"""Changes of light of one image; see `noise` for the signature and the source."""

import tensorflow as tf

from dqmq_tf.quality.severity import at_severity

CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
FOG_THICKNESS_AND_DECAY = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
LOW_LIGHT_EXPOSURE = (0.5, 0.3, 0.18, 0.1, 0.05)
LOW_LIGHT_PHOTONS = 1000.0
LOW_LIGHT_READ_NOISE = 0.002
DISPLAY_GAMMA = 2.2


def contrast(image, severity, seed):
    """Scales the distance from each channel's mean by `CONTRAST` (CIFAR-10-C)."""
    del seed
    mean = tf.reduce_mean(image, axis=(0, 1), keepdims=True)
    return mean + at_severity(CONTRAST, severity) * (image - mean)


def brightness(image, severity, seed):
    """Adds `BRIGHTNESS` to the HSV value of every pixel, at most to 1 (CIFAR-10-C).

    Hue and saturation stay when all channels of a pixel are scaled by one factor, so the colour space
    need not be visited and any number of channels will do. A black pixel becomes grey.
    """
    del seed
    value = tf.reduce_max(image, axis=-1, keepdims=True)
    brighter = tf.minimum(value + at_severity(BRIGHTNESS, severity), 1.0)
    return tf.where(value > 0.0, image * tf.math.divide_no_nan(brighter, value), brighter)


def low_light(image, severity, seed):
    """Takes the picture with less light, through a noisy sensor.

    Ours, not of CIFAR-10-C. With exposure ``e`` (`LOW_LIGHT_EXPOSURE`), ``n`` photons at full scale
    (`LOW_LIGHT_PHOTONS`) and read noise ``r`` (`LOW_LIGHT_READ_NOISE`):

        light = e * image ** 2.2
        sensed = max(light + N(0, light / n + r²), 0)
        image = sensed ** (1 / 2.2)

    that is: undo the display's gamma, dim, add photon noise (in its normal approximation) and read
    noise, and apply the gamma again. Nothing brightens the picture afterwards.
    """
    light = at_severity(LOW_LIGHT_EXPOSURE, severity) * tf.pow(image, DISPLAY_GAMMA)
    stddev = tf.sqrt(light / LOW_LIGHT_PHOTONS + LOW_LIGHT_READ_NOISE**2)
    sensed = light + stddev * tf.random.stateless_normal(tf.shape(image), seed)
    return tf.pow(tf.maximum(sensed, 0.0), 1.0 / DISPLAY_GAMMA)


def plasma_fractal(size, decay, seed):
    """Draws a cloud by the diamond-square algorithm.

    The map wraps around. The first level wobbles by ``±1`` and each next one, of half the distance,
    by ``1 / decay²`` of the last: the script of CIFAR-10-C scales its wobble by itself.

    Args:
        size: int32 scalar, the least height and width wanted.
        decay: float32 scalar above 1; the higher, the smoother.
        seed: int64 pair.

    Returns:
        A square float32 map of side ``2 ** ceil(log2(size))``, from 0 to 1.
    """

    def midpoint(total, wobble):
        return total / 4.0 + wobble

    def refine(side, amplitude, corners):
        wobble = amplitude * tf.random.stateless_uniform(
            [3, side, side], seed + tf.cast(side, seed.dtype), -1.0, 1.0
        )
        below = corners + tf.roll(corners, -1, axis=0)
        beside = corners + tf.roll(corners, -1, axis=1)
        centres = midpoint(below + tf.roll(below, -1, axis=1), wobble[0])
        tops = midpoint(beside + centres + tf.roll(centres, 1, axis=0), wobble[1])
        lefts = midpoint(below + centres + tf.roll(centres, 1, axis=1), wobble[2])
        upper = tf.stack([corners, tops], axis=-1)
        lower = tf.stack([lefts, centres], axis=-1)
        finer = tf.reshape(tf.stack([upper, lower], axis=1), [2 * side, 2 * side])
        return 2 * side, amplitude / tf.square(decay), finer

    _, _, cloud = tf.while_loop(
        lambda side, amplitude, corners: side < size,
        refine,
        (tf.constant(1), tf.constant(1.0), tf.zeros([1, 1])),
        shape_invariants=(tf.TensorShape([]), tf.TensorShape([]), tf.TensorShape([None, None])),
    )
    cloud -= tf.reduce_min(cloud)
    return tf.math.divide_no_nan(cloud, tf.reduce_max(cloud))


def fog(image, severity, seed):
    """Adds a cloud ``c`` of thickness ``t``: ``(image + t c) m / (m + t)``, ``m`` the image's maximum.

    `FOG_THICKNESS_AND_DECAY` has ``t`` and the decay of the cloud's `plasma_fractal` (CIFAR-10-C).
    """
    thickness, decay = tf.unstack(at_severity(FOG_THICKNESS_AND_DECAY, severity))
    height, width = tf.unstack(tf.shape(image)[:2])
    cloud = plasma_fractal(tf.maximum(height, width), decay, seed)[:height, :width, None]
    brightest = tf.reduce_max(image)
    return (image + thickness * cloud) * brightest / (brightest + thickness)
