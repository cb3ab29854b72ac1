"""An activation that is computed together with the batch normalization in front of it."""

from typing import Any

import keras
import tensorflow as tf

from dqmq_tf.layers.normalization import normalization_of
from dqmq_tf.precision import KEEPS_PRECISION

_FUNCTIONS = (
    keras.activations.silu,
    keras.activations.hard_silu,
    keras.activations.sigmoid,
    keras.activations.hard_sigmoid,
    keras.activations.tanh,
)
# The kernel of a sigmoid has integers from 0 to 255 of this step.
_GATE_STEPS = 256.0


@keras.saving.register_keras_serializable(package="dqmq_tf")
class ChainedActivation(keras.layers.Layer):
    """Runs an element-wise activation. It has the name of the activation layer.

    Between a batch normalization with its quantizer and a quantizer of its own, it is a part of their
    loop (see `Normalization`), and the gradient keeps none of the tensors between them. Outputs and
    gradients are those of the layer.

    Args:
        layer: An `Activation` for which `is_chainable` is true, or a silu.
        rounds_gate: Whether the layer is a silu whose sigmoid is rounded as int8 kernels round it.

    Input shape: any float tensor `[batch, ...]`. Output shape: the same.
    """

    def __init__(
        self, layer: keras.layers.Activation, rounds_gate: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**{"name": layer.name, **kwargs, **KEEPS_PRECISION})
        self.layer, self.rounds_gate = layer, rounds_gate
        self.supports_masking = True
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: an activation has no weights."""

    def call(self, x: tf.Tensor) -> tf.Tensor:
        normalization = normalization_of(x)
        function = _gated_silu if self.rounds_gate else self.layer.activation
        if normalization is not None:
            return normalization.then(function).output()
        return function(x) if self.rounds_gate else self.layer(x)

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer, "rounds_gate": self.rounds_gate}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ChainedActivation":
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


def _gated_silu(x: tf.Tensor) -> tf.Tensor:
    """Returns `x * sigmoid(x)` with the sigmoid of int8 kernels, and the gradient of a silu."""
    gate = tf.sigmoid(x)
    rounded = tf.minimum(tf.round(gate * _GATE_STEPS), _GATE_STEPS - 1) / _GATE_STEPS
    return x * (gate + tf.stop_gradient(rounded - gate))


def is_chainable(layer: Any, dtype: str) -> bool:
    """Returns whether a layer is an activation that can be a part of a loop.

    Args:
        layer: Any layer.
        dtype: The type of its input.
    """
    return (
        type(layer) is keras.layers.Activation
        and layer.activation in _FUNCTIONS
        and layer.activity_regularizer is None
        and dtype == layer.compute_dtype == "float32"
    )
