"""A `DQMQModel` that is ready for the first step of its search."""

from training_steps import compiled

import dqmq_tf


def searching(model, target, images):
    """Returns a `DQMQModel` in its search phase, calibrated with images."""
    quantized = compiled(dqmq_tf.quantize_model(model, target=target))
    quantized.calibrate(images)
    quantized._training.begin(1_000_000)
    return quantized
