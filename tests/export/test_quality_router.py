"""The numbers that the quality router takes from typical inputs."""

import numpy as np

from dqmq_tf.export.quality_router import _kernel_and_gain
from dqmq_tf.policy.quality_encoder import QualityEncoder


def gains(images, kernel):
    encoder = QualityEncoder(filters=6, stride=2)
    encoder.build(images.shape)
    encoder.kernel.assign(kernel)
    encoder.input_scale.assign(60.0)
    return _kernel_and_gain(encoder, images)[1]


def test_gains_do_not_depend_on_the_order_of_sums():
    """Processors differ in it, and a model must become the same file on all of them."""
    rng = np.random.default_rng(0)
    for _ in range(4):
        images = rng.uniform(0, 255, (64, 16, 16, 3)).astype("float32")
        kernel = rng.normal(size=(3, 3, 3, 6)).astype("float32")
        # Channels in another order have the same sums.
        reversed_channels = gains(images[..., ::-1], kernel[:, :, ::-1])
        np.testing.assert_array_equal(gains(images, kernel), reversed_channels)
