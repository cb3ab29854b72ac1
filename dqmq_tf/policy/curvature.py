"""The gradient by which bits follow the quality: which images take coarse activations worse.

An image's loss changes by `c = <gradient, Q_high(x) - Q_low(x)>` when a tensor is rounded at one of
two neighbouring bit-widths or the other, to first order. In a trained network `c` has no sign that
lasts: its mean over images of one quality drowns in its spread. Its square does not, and to second
order half of it is the loss that rounding adds, in expectation (the generalised Gauss-Newton form;
Martens 2020, "New insights and perspectives on the natural gradient method", arXiv 1412.1193).
Bits are spent best where the square is the same for all images (reverse water-filling; Cover and
Thomas 2006, "Elements of Information Theory", 10.3.3), so those with more than the mean get more.
What all images have in common stays with the other terms of the objective.

But an image that the network gets wrong has large gradients, whatever its bits, and bits that it gets
are taken from others. So images are pulled back to the static bits: theirs come to differ by half of
what would make the squares equal.
"""

import math

import tensorflow as tf

# Squares, in units of their mean, beyond which one image would speak for the whole batch.
_LARGEST = 25.0
# Pull back per bit. A square falls by ln 4 of itself with a bit: as strong a pull stops half-way, where
# images differ much a little before.
_PULL = math.log(4.0)


def follow_curvature(offset, slope, scale=1.0):
    """Returns `offset`; its gradient pulls it up where the curvature is above the batch's mean.

    Args:
        offset: By how many bits the means of images differ from the static ones, `[B, P]`.
        slope: By which the contrasts `c` of a quantizer's gradient have been multiplied, `[B, P]`;
            0 where there is none, as for draws that are no neighbours of the mean.
        scale: By which the loss has been multiplied.

    Returns:
        A tensor that takes the place of `offset` in a decision. The gradient to `offset` is the
        mean over the batch of how far squares lie from their mean, in units of it, which hangs
        neither on the size of the loss nor on that of a tensor's contrasts, and of the pull back.
    """

    @tf.custom_gradient
    def apply(offset):
        def gradient(upstream):
            known = tf.cast(slope > 0, "float32")
            contrast = upstream / tf.where(slope > 0, slope, 1.0) * known
            count = tf.maximum(tf.reduce_sum(known, axis=0), 1.0)

            def mean(values):
                return tf.reduce_sum(values * known, axis=0) / count

            unit = tf.sqrt(tf.maximum(mean(tf.square(contrast)), 1e-30))
            ratio = tf.minimum(tf.square(contrast / unit), _LARGEST)
            wanted = known * (ratio - mean(ratio)) - _PULL * offset
            return -scale * wanted / tf.cast(tf.shape(offset)[0], "float32")

        return tf.identity(offset), gradient

    return apply(offset)
