"""The quantizers of a TFMOT `QuantizeConfig`, which run in a model of Keras 3.

They are saved as TFMOT saves its quantizers, by class and config. A class is found again by its
name in `tfmot.quantization.keras.quantize_scope`, in a custom object scope of Keras 3, among those
of TFMOT, or in the module that it was defined in, if the program has imported that.
"""

import importlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.layers import grid_search
from dqmq_tf.layers.user_quantizer import NamedQuantizer, UserQuantizer

# Where TFMOT quantizes a layer with one of these activations: `QuantizeAwareActivation`.
_QUANTIZED_BEFORE = frozenset({"softmax", "sigmoid", "tanh", "gelu"})
_NOT_QUANTIZED_AFTER = frozenset({"softmax", "sigmoid", "tanh", "NoOpActivation"})
_FEWEST_BITS, _MOST_BITS = 2, 8


@keras.saving.register_keras_serializable(package="dqmq_tf")
class UserQuantizers:
    """The quantizers of one layer, as a `LayerRule` holds them.

    Args:
        weights: `{name of a kernel: quantizer}`.
        weight_bits: `{name of a kernel: its one bit-width}`, which count in the cost.
        outputs: The names and quantizers that run on the output of the layer. For a layer whose
            activation becomes a layer of its own, those that run before the activation. If there
            are none, a learned quantizer runs.
        split_outputs: Those that run behind an activation that becomes a layer of its own.
        output_bits: The bit-width of the output, which counts in the cost.
        has_float_output: Whether nothing quantizes the output.
    """

    def __init__(
        self,
        weights: Mapping[str, Any],
        weight_bits: Mapping[str, Sequence[int]],
        outputs: Sequence[NamedQuantizer],
        split_outputs: Sequence[NamedQuantizer] = (),
        output_bits: Sequence[int] | None = None,
        has_float_output: bool = False,
    ) -> None:
        self.weights = dict(weights)
        self.weight_bits = {name: tuple(bits) for name, bits in weight_bits.items()}
        self.outputs = tuple(outputs)
        self.split_outputs = tuple(split_outputs)
        self.output_bits = None if output_bits is None else tuple(output_bits)
        self.has_float_output = has_float_output

    def of_part(
        self, kernels: Mapping[str, str], *, is_last: bool, is_activation: bool
    ) -> "UserQuantizers | None":
        """Returns the quantizers of a part of the layer, or None if it has none.

        Args:
            kernels: `{name in the whole layer: name in the part}` of the kernels of the part.
            is_last: Whether it is the last part with kernels.
            is_activation: Whether it is the activation of the layer.
        """
        outputs = self.split_outputs if is_activation else self.outputs if is_last else ()
        return UserQuantizers(
            {kernels[name]: q for name, q in self.weights.items() if name in kernels},
            {kernels[name]: bits for name, bits in self.weight_bits.items() if name in kernels},
            outputs,
            output_bits=self.output_bits,
            has_float_output=self.has_float_output and (is_last or is_activation),
        )

    def get_config(self) -> dict[str, Any]:
        """Returns plain data for `from_config`."""
        return {
            "weights": {name: _serialized(q) for name, q in self.weights.items()},
            "weight_bits": {name: list(bits) for name, bits in self.weight_bits.items()},
            "outputs": [[name, _serialized(q)] for name, q in self.outputs],
            "split_outputs": [[name, _serialized(q)] for name, q in self.split_outputs],
            "output_bits": None if self.output_bits is None else list(self.output_bits),
            "has_float_output": self.has_float_output,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> "UserQuantizers":
        """Returns the quantizers that `get_config` described.

        Raises:
            ValueError: If the class of a quantizer is not found.
        """
        return cls(
            **{
                **config,
                "weights": {name: _deserialized(q) for name, q in config["weights"].items()},
                "outputs": [(name, _deserialized(q)) for name, q in config["outputs"]],
                "split_outputs": [(name, _deserialized(q)) for name, q in config["split_outputs"]],
            }
        )


def around_activation(activation: Any) -> tuple[bool, bool]:
    """Returns whether TFMOT quantizes before and after an activation function."""
    name = getattr(activation, "__name__", type(activation).__name__)
    return name in _QUANTIZED_BEFORE, name not in _NOT_QUANTIZED_AFTER


def weight_bits(quantizer: Any, weights: np.ndarray) -> int:
    """Returns the bits of the weights that a quantizer makes, which count in the cost.

    Those that it names in `num_bits`, and one more if it is not symmetric around 0. Without
    `num_bits`, those that hold the weights that it makes now, 8 if they are on no grid.

    Args:
        quantizer: A TFMOT `Quantizer`.
        weights: The weights of the float model.
    """
    named = _num_bits(quantizer)
    if named is not None:
        is_asymmetric = getattr(quantizer, "symmetric", True) is False
        return min(named + int(is_asymmetric), _MOST_BITS)
    layer = UserQuantizer([("weight", quantizer)], weights.shape)
    values = layer.result(weights.astype("float32"))
    grid = grid_search.weight_grid(values, (weights.ndim - 1,))
    return _MOST_BITS if grid is None else min(grid_search.bits_of(grid[0]), _MOST_BITS)


def output_bits(quantizer: Any) -> int:
    """Returns the bits of an output that a quantizer makes, which count in the cost.

    Those that it names in `num_bits`. Without it, those of its levels, 8 if it is no grid.
    """
    named = _num_bits(quantizer)
    if named is not None:
        return named
    layer = UserQuantizer([("output", quantizer)], (None, 1))

    def quantize(values: np.ndarray) -> np.ndarray:
        return ops.convert_to_numpy(layer(tf.constant(values[:, None]), training=False))

    grid = grid_search.activation_grid(quantize)
    levels = 0 if isinstance(grid, str) else grid[2]
    bits = levels.bit_length() - 1
    return bits if levels == 2**bits and bits >= _FEWEST_BITS else _MOST_BITS


def _num_bits(quantizer: Any) -> int | None:
    bits = getattr(quantizer, "num_bits", None)
    return min(max(bits, _FEWEST_BITS), _MOST_BITS) if isinstance(bits, int) else None


def _serialized(quantizer: Any) -> dict[str, Any]:
    kind = type(quantizer)
    return {
        "class": kind.__qualname__,
        "module": kind.__module__,
        "arguments": keras.saving.serialize_keras_object(quantizer.get_config()),
    }


def _deserialized(data: Mapping[str, Any]) -> Any:
    kind = _class_of(data["class"], data["module"])
    arguments = keras.saving.deserialize_keras_object(data["arguments"])
    try:
        return kind.from_config(arguments)
    except TypeError:
        # A subclass that fixes the arguments of TFMOT's class inherits a config that it does not take.
        quantizer = kind()
        if quantizer.get_config() != arguments:
            raise
        return quantizer


def _class_of(name: str, module: str) -> Any:
    """Returns the class of a quantizer.

    Raises:
        ValueError: If it is not found.
    """
    # TFMOT is optional and slow to import.
    from dqmq_tf.tfmot import tfmot_import

    tf_keras = importlib.import_module("tf_keras")
    short = name.split(".")[-1]
    for registry in (keras, tf_keras):
        kind = registry.saving.get_registered_object(short)
        if kind is not None:
            return kind
    kind = sys.modules.get(module)
    for part in name.split("."):
        kind = getattr(kind, part, None)
    if isinstance(kind, type) and issubclass(kind, tfmot_import.quantizers.Quantizer):
        return kind
    raise ValueError(
        f"The model has a quantizer of class {name!r} from module {module!r}, which is not found. "
        "Import the module before you load the model, or load it in "
        f"tfmot.quantization.keras.quantize_scope({{{short!r}: {short}}})."
    )
