"""The gradient that gives more activation bits to inputs that tolerate coarse rounding less.

Consider a tensor that is rounded at one of two neighboring bit-widths. To first order, the loss of
an image differs between the two by the contrast `c = <gradient, Q_high(x) - Q_low(x)>`. In a
trained network, the sign of `c` carries no lasting information: its mean over images of the same
quality is small compared with its spread. Its square does carry information: to second order, half
of it is the expected loss that rounding adds (the generalized Gauss-Newton form; Martens 2020, "New
insights and perspectives on the natural gradient method", arXiv 1412.1193).

Bits are spent best if this square is the same for all images (reverse water-filling; Cover and
Thomas 2006, "Elements of Information Theory", 10.3.3). Images whose square is above the mean
therefore get more bits. The other terms of the objective control what all images have in common.

An image that the network classifies wrongly has large gradients at any bit-width, and the bits that
it gets are taken from other images. Images are therefore pulled back to the static bits: their bits
differ by half of what would make the squares equal.
"""

import math
from collections.abc import Callable

import tensorflow as tf

# The largest square, in units of the mean square, so that one image cannot dominate the batch.
_LARGEST = 25.0
# The strength of the pull towards the static bits. One more bit divides the square by four, so a
# pull of ln 4 stops half-way, or a little earlier if images differ much.
_PULL = math.log(4.0)


def follow_curvature(
    offset: tf.Tensor, slope: tf.Tensor, scale: float | tf.Tensor = 1.0
) -> tf.Tensor:
    """Returns `offset` with a gradient that raises it where the curvature is above average.

    The gradient replaces the upstream gradient. It is the mean over the batch of two parts: how far
    the square of the contrast is above its mean, in units of that mean, and the pull towards the
    static bits. Apart from `scale`, it does not depend on the size of the loss or of the contrasts.

    Args:
        offset: The difference in bits between the means of the images and the static means, shape
            `[B, P]`.
        slope: The factor by which the quantizer has multiplied the contrasts `c` in its gradient,
            shape `[B, P]`. 0 marks entries without a contrast: bit-widths that were drawn and are
            not neighbors of the mean.
        scale: The factor by which the loss has been multiplied.

    Returns:
        A tensor of shape `[B, P]` that takes the place of `offset` in a decision.
    """

    @tf.custom_gradient
    def apply(offset: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            is_known = tf.cast(slope > 0, "float32")
            contrast = upstream / tf.where(slope > 0, slope, 1.0) * is_known
            count = tf.maximum(tf.reduce_sum(is_known, axis=0), 1.0)

            def mean(values: tf.Tensor) -> tf.Tensor:
                return tf.reduce_sum(values * is_known, axis=0) / count

            unit = tf.sqrt(tf.maximum(mean(tf.square(contrast)), 1e-30))
            ratio = tf.minimum(tf.square(contrast / unit), _LARGEST)
            direction = is_known * (ratio - mean(ratio)) - _PULL * offset
            return -scale * direction / tf.cast(tf.shape(offset)[0], "float32")

        return tf.identity(offset), gradient

    return apply(offset)
