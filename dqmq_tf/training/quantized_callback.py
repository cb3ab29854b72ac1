"""The base of callbacks that need a `DQMQModel`."""

import keras

from dqmq_tf.errors import check_quantized


class QuantizedCallback(keras.callbacks.Callback):
    """A callback for the training of a `DQMQModel`."""

    def set_model(self, model: keras.Model) -> None:
        """Sets the model, which must be a `DQMQModel`."""
        check_quantized(model)
        super().set_model(model)
