"""An activation that is computed together with the batch normalization in front of it."""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from dqmq_tf.layers.graph_functions import one_node
from dqmq_tf.layers.normalization import normalization_of
from dqmq_tf.precision import KEEPS_PRECISION

_FUNCTIONS = (
    keras.activations.silu,
    keras.activations.hard_silu,
    keras.activations.sigmoid,
    keras.activations.hard_sigmoid,
    keras.activations.tanh,
)
# The kernel of a sigmoid has integers of 8 bits, with the step 1 / 256.
_GATE_BITS, _LARGEST_GATE = 8, 255 / 256


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
        if normalization is not None:
            function = _gated_silu if self.rounds_gate else self.layer.activation
            return normalization.then(function).output()
        return _silu_node(len(x.shape), x.dtype)(x) if self.rounds_gate else self.layer(x)

    def compute_output_spec(self, x: Any) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def get_config(self) -> dict[str, Any]:
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer, "rounds_gate": self.rounds_gate}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "ChainedActivation":
        return cls(keras.saving.deserialize_keras_object(config.pop("layer")), **config)


def _gated_silu(x: tf.Tensor) -> tf.Tensor:
    """Returns `x * sigmoid(x)` with the sigmoid of int8 kernels. Its rounding passes gradients."""
    gate = tf.cast(tf.sigmoid(x), tf.float32)
    rounded = tf.quantization.fake_quant_with_min_max_args(gate, 0.0, _LARGEST_GATE, _GATE_BITS)
    return x * tf.cast(rounded, x.dtype)


@functools.cache
def _silu_node(rank: int, dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns `_gated_silu` as one node, whose gradient keeps the input alone."""
    return one_node(_gated_silu, [tf.TensorSpec([None] * rank, dtype)])


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
