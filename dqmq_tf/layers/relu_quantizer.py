"""A ReLU and the quantizer of its output in one pass."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf.layers.activation_quantizer import ActivationQuantizer
from dqmq_tf.precision import KEEPS_PRECISION


@keras.saving.register_keras_serializable(package="dqmq_tf")
class RectifiedQuantizer(keras.layers.Layer):
    """Replaces a ReLU whose output is quantized. It has the name of the ReLU.

    Between two convolutions, memory bandwidth limits a training step. Computing the ReLU inside the
    quantizer's loop saves one pass over the activation forward and one backward. Outputs and
    gradients are those of a ReLU followed by the quantizer.

    Args:
        quantizer: The `ActivationQuantizer` of the ReLU's output.
        ceiling: The largest value that the ReLU outputs, `inf` without a ceiling.

    Input shape: any float tensor `[batch, ...]`. Output shape: the same.
    """

    def __init__(
        self, quantizer: ActivationQuantizer, ceiling: float = np.inf, **kwargs: Any
    ) -> None:
        super().__init__(**{**kwargs, **KEEPS_PRECISION})
        self.quantizer, self.ceiling = quantizer, float(ceiling)
        self.supports_masking = True
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: no weight depends on the input shape."""

    def call(self, x: tf.Tensor, decision: tf.Tensor | None = None) -> tf.Tensor:
        return self.quantizer(x, decision=decision, ceiling=self.ceiling)

    def compute_output_spec(self, x: Any, decision: Any = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        quantizer = keras.saving.serialize_keras_object(self.quantizer)
        return {**super().get_config(), "quantizer": quantizer, "ceiling": self.ceiling}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "RectifiedQuantizer":
        return cls(ActivationQuantizer.from_config(config.pop("quantizer")["config"]), **config)
