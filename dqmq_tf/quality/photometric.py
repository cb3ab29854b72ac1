"""Changes of the light in one image. See `noise` for the signature and the source."""

import tensorflow as tf

from dqmq_tf.quality.severity import at_severity

CONTRAST = (0.75, 0.5, 0.4, 0.3, 0.15)
BRIGHTNESS = (0.05, 0.1, 0.15, 0.2, 0.3)
FOG_THICKNESS_AND_DECAY = ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75))
LOW_LIGHT_EXPOSURE = (0.5, 0.3, 0.18, 0.1, 0.05)
LOW_LIGHT_PHOTONS = 1000.0
LOW_LIGHT_READ_NOISE = 0.002
DISPLAY_GAMMA = 2.2


def contrast(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Multiplies the deviation from each channel's mean by `CONTRAST` (CIFAR-10-C)."""
    del seed
    mean = tf.reduce_mean(image, axis=(0, 1), keepdims=True)
    return mean + at_severity(CONTRAST, severity) * (image - mean)


def brightness(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Adds `BRIGHTNESS` to the HSV value of every pixel, up to 1 (CIFAR-10-C).

    Multiplying all channels of a pixel by one factor preserves hue and saturation. Therefore no
    conversion to HSV is needed, and any number of channels works. A black pixel becomes gray.
    """
    del seed
    value = tf.reduce_max(image, axis=-1, keepdims=True)
    brighter = tf.minimum(value + at_severity(BRIGHTNESS, severity), 1.0)
    return tf.where(value > 0.0, image * tf.math.divide_no_nan(brighter, value), brighter)


def low_light(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Simulates a picture taken in little light with a noisy sensor.

    This degradation is not from CIFAR-10-C. With exposure `e` (`LOW_LIGHT_EXPOSURE`), `n` photons at
    full scale (`LOW_LIGHT_PHOTONS`) and read noise `r` (`LOW_LIGHT_READ_NOISE`):

        light = e * image ** 2.2
        sensed = max(light + N(0, light / n + r²), 0)
        image = sensed ** (1 / 2.2)

    It undoes the display's gamma, dims the image, adds photon noise (approximated by a normal
    distribution) and read noise, and applies the gamma again. The image is not brightened afterward.
    """
    light = at_severity(LOW_LIGHT_EXPOSURE, severity) * tf.pow(image, DISPLAY_GAMMA)
    stddev = tf.sqrt(light / LOW_LIGHT_PHOTONS + LOW_LIGHT_READ_NOISE**2)
    sensed = light + stddev * tf.random.stateless_normal(tf.shape(image), seed)
    return tf.pow(tf.maximum(sensed, 0.0), 1.0 / DISPLAY_GAMMA)


def plasma_fractal(size: tf.Tensor | int, decay: tf.Tensor | float, seed: tf.Tensor) -> tf.Tensor:
    """Draws a random cloud with the diamond-square algorithm.

    The map wraps around at its edges. The first level adds noise of amplitude 1. Each further level
    halves the distance of the points and divides the amplitude by `decay²`: the script of CIFAR-10-C
    divides a factor by `decay`, draws noise within plus or minus this factor, and multiplies the noise
    by the factor again.

    Args:
        size: The smallest height and width of the map, an int32 scalar.
        decay: A float32 scalar above 1. A higher value gives a smoother cloud.
        seed: An int64 pair.

    Returns:
        A square float32 map with side `2 ** ceil(log2(size))` and values from 0 to 1.
    """

    def refine(
        side: tf.Tensor, amplitude: tf.Tensor, corners: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        noise = amplitude * tf.random.stateless_uniform(
            [3, side, side], seed + tf.cast(side, seed.dtype), -1.0, 1.0
        )
        below = corners + tf.roll(corners, -1, axis=0)
        beside = corners + tf.roll(corners, -1, axis=1)
        centers = (below + tf.roll(below, -1, axis=1)) / 4.0 + noise[0]
        tops = (beside + centers + tf.roll(centers, 1, axis=0)) / 4.0 + noise[1]
        lefts = (below + centers + tf.roll(centers, 1, axis=1)) / 4.0 + noise[2]
        upper = tf.stack([corners, tops], axis=-1)
        lower = tf.stack([lefts, centers], axis=-1)
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


def fog(image: tf.Tensor, severity: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Returns `(image + t c) m / (m + t)`, a cloud `c` of thickness `t` in front (CIFAR-10-C).

    `m` is the maximum of the image. `FOG_THICKNESS_AND_DECAY` holds `t` and the decay of the
    `plasma_fractal` that draws the cloud.
    """
    thickness, decay = tf.unstack(at_severity(FOG_THICKNESS_AND_DECAY, severity))
    height, width = tf.unstack(tf.shape(image)[:2])
    cloud = plasma_fractal(tf.maximum(height, width), decay, seed)[:height, :width, None]
    brightest = tf.reduce_max(image)
    return (image + thickness * cloud) * brightest / (brightest + thickness)
