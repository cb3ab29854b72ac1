"""A relu and the quantizer of what it makes, in one pass."""

import keras
import numpy as np

from dqmq_tf.layers.activation_quantizer import ActivationQuantizer


@keras.saving.register_keras_serializable(package="dqmq_tf")
class RectifiedQuantizer(keras.layers.Layer):
    """Stands for a relu, or relu6, whose output is quantized, and bears its name.

    Between two convolutions a training step takes its time from memory: the relu within the
    quantizer's loop spares a pass forwards and one backwards. Values and gradients are those of the
    one after the other.

    Args:
        quantizer: `ActivationQuantizer` of the relu's output.
        ceiling: `inf` for a relu, 6 for relu6.

    Input shape: any float tensor `[batch, ...]`. Output shape: the same.
    """

    def __init__(self, quantizer, ceiling=np.inf, **kwargs):
        super().__init__(**{**kwargs, "autocast": False})
        self.quantizer, self.ceiling = quantizer, float(ceiling)
        self.supports_masking = True
        self.built = True

    def build(self, input_shape=None):
        """Nothing depends on the input's shape."""

    def call(self, x, decision=None):
        return self.quantizer(x, decision=decision, ceiling=self.ceiling)

    def compute_output_spec(self, x, decision=None):
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self):
        quantizer = keras.saving.serialize_keras_object(self.quantizer)
        return {**super().get_config(), "quantizer": quantizer, "ceiling": self.ceiling}

    @classmethod
    def from_config(cls, config):
        return cls(ActivationQuantizer.from_config(config.pop("quantizer")["config"]), **config)
