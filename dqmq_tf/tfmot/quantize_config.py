"""A TFMOT `QuantizeConfig` with candidate bit-widths, and a reader of any other.

To use TensorFlow Model Optimization (TFMOT) beside Keras 3, import it from here
(`from dqmq_tf.tfmot.quantize_config import tfmot`): that leaves `tf.keras` and the environment
unchanged.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.config import LayerRule
from dqmq_tf.graph.composites import FUSED_ACTIVATIONS
from dqmq_tf.graph.kernels import is_linear, kernel_variables
from dqmq_tf.layers.lsq import quantize, weight_limits
from dqmq_tf.tfmot import user_quantizers
from dqmq_tf.tfmot.tfmot_import import quantizers as _tfmot_quantizers
from dqmq_tf.tfmot.tfmot_import import tfmot as tfmot
from dqmq_tf.tfmot.user_quantizers import UserQuantizers

_QuantizeConfig: Any = tfmot.quantization.keras.QuantizeConfig


@keras.saving.register_keras_serializable(package="dqmq_tf")
class CandidatesQuantizer(_tfmot_quantizers.Quantizer):
    """A TFMOT `Quantizer` that names the candidate bit-widths of a tensor.

    `dqmq_tf` reads the candidates. If TFMOT calls the quantizer, it quantizes symmetrically at the
    largest of them.

    Args:
        bit_widths: The candidates. None for all bit-widths of the target.

    Example:

    >>> CandidatesQuantizer((2, 4, 8)).bit_widths
    (2, 4, 8)
    """

    def __init__(self, bit_widths: int | Sequence[int] | None = None) -> None:
        self.bit_widths = LayerRule(pattern=".*", weight_bits=_as_tuple(bit_widths)).weight_bits

    def build(self, tensor_shape: Any, name: str, layer: Any) -> dict[str, Any]:
        """Returns no variables, because the step sizes belong to the quantized model."""
        return {}

    def __call__(
        self, inputs: tf.Tensor, training: bool, weights: dict[str, Any], **kwargs: Any
    ) -> tf.Tensor:
        """Returns the inputs, quantized at the largest candidate (8 bits without candidates)."""
        _, q_max = weight_limits(max(self.bit_widths or (8,)))
        step = ops.max(ops.abs(inputs), keepdims=True) / q_max
        limit = ops.full_like(step, q_max)
        return quantize(inputs, step, -limit, limit)

    def get_config(self) -> dict[str, Any]:
        return {"bit_widths": self.bit_widths}

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.bit_widths == self.bit_widths

    def __hash__(self) -> int:
        return hash((type(self), self.bit_widths))


@keras.saving.register_keras_serializable(package="dqmq_tf")
class DQMQQuantizeConfig(_QuantizeConfig):
    """Names the tensors of a layer that are decision points, and their candidates.

    This is a TFMOT `QuantizeConfig` for Keras 3 layers. Pass it to
    `dqmq_tf.quantize_annotate_layer`.

    Args:
        weights: The names of the layer's kernels to quantize, such as `("kernel",)`. None for all.
        weight_bits: The candidates of the kernels. None for all bit-widths of the target.
        activation_bits: The candidates of the layer's output. None for all bit-widths of the
            target.

    Raises:
        ValueError: If a tuple is empty.

    Example:

    >>> config = dqmq_tf.DQMQQuantizeConfig(weight_bits=(4, 8))
    >>> layer = dqmq_tf.quantize_annotate_layer(keras.layers.Dense(10), config)
    """

    def __init__(
        self,
        weights: str | Sequence[str] | None = None,
        weight_bits: int | Sequence[int] | None = None,
        activation_bits: int | Sequence[int] | None = None,
    ) -> None:
        rule = LayerRule(
            pattern=".*",
            weights=_as_tuple(weights),
            weight_bits=_as_tuple(weight_bits),
            activation_bits=_as_tuple(activation_bits),
        )
        self.weights = rule.weights
        self.weight_bits = rule.weight_bits
        self.activation_bits = rule.activation_bits

    def to_rule(self, path: str) -> LayerRule:
        """Returns the equivalent `LayerRule` for the layer with path `path`."""
        return LayerRule(pattern=re.escape(path), **self.get_config())

    def get_weights_and_quantizers(
        self, layer: keras.layers.Layer
    ) -> list[tuple[keras.Variable, CandidatesQuantizer]]:
        """Returns the kernels of a built Keras 3 layer with their quantizers.

        Raises:
            ValueError: If the layer does not have one of the weights.
        """
        kernels = kernel_variables(layer)
        names = kernels if self.weights is None else self.weights
        missing = [name for name in names if name not in kernels]
        if missing:
            raise ValueError(
                f"Layer {layer.name!r} has no kernel {missing[0]!r} to quantize. "
                f"It has {list(kernels)}."
            )
        return [(kernels[name], CandidatesQuantizer(self.weight_bits)) for name in names]

    def get_activations_and_quantizers(
        self, layer: keras.layers.Layer
    ) -> list[tuple[Any, CandidatesQuantizer]]:
        """Returns the layer's activation function with its quantizer, if it has a function."""
        if not callable(getattr(layer, "activation", None)):
            return []
        return [(layer.activation, CandidatesQuantizer(self.activation_bits))]

    def set_quantize_weights(
        self, layer: keras.layers.Layer, quantize_weights: Sequence[np.ndarray]
    ) -> None:
        """Assigns values to the variables of `get_weights_and_quantizers`, in the same order.

        Raises:
            ValueError: If the number or shapes of the values differ from those of the variables.
        """
        variables = [variable for variable, _ in self.get_weights_and_quantizers(layer)]
        expected = [tuple(variable.shape) for variable in variables]
        shapes = [tuple(weight.shape) for weight in quantize_weights]
        if shapes != expected:
            raise ValueError(
                f"Layer {layer.name!r} has weights of shapes {expected} to set, found {shapes}. "
                "Pass one array for each."
            )
        for variable, weight in zip(variables, quantize_weights):
            variable.assign(weight)

    def set_quantize_activations(
        self, layer: keras.layers.Layer, quantize_activations: Sequence[Any]
    ) -> None:
        """Sets the layer's activation function.

        Raises:
            ValueError: If the number of functions is not that of the layer.
        """
        expected = len(self.get_activations_and_quantizers(layer))
        if len(quantize_activations) != expected:
            raise ValueError(
                f"Layer {layer.name!r} has {expected} activation(s) to set, "
                f"found {len(quantize_activations)}. Pass one function for each."
            )
        for activation in quantize_activations:
            layer.activation = activation

    def get_output_quantizers(self, layer: keras.layers.Layer) -> list[CandidatesQuantizer]:
        """Returns the quantizer of the output, or none if the activation function has it."""
        if self.get_activations_and_quantizers(layer):
            return []
        return [CandidatesQuantizer(self.activation_bits)]

    def get_config(self) -> dict[str, Any]:
        return {
            "weights": self.weights,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
        }

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self) -> int:
        return hash((type(self), *self.get_config().values()))


def to_rule(config: Any, layer: keras.layers.Layer, path: str) -> LayerRule:
    """Converts any TFMOT `QuantizeConfig` of a layer to a `LayerRule`.

    Its weights become the decision points. A `CandidatesQuantizer` is read for its candidates, and
    step sizes are learned. Any other quantizer becomes part of the rule and runs in the quantized
    model, on the kernel or on the output of the layer. The methods `set_quantize_weights` and
    `set_quantize_activations` of the config are not called: the quantized layer gets its kernels
    without an assignment.

    Args:
        config: A TFMOT `QuantizeConfig`.
        layer: A built Keras 3 layer.
        path: The path of the layer.

    Raises:
        ValueError: If the config does not fit the layer, or if a rule cannot express it: a variable
            that is not a kernel, something else than a quantizer, candidates for weights without
            the output or for the output without the weights, different bit-widths of activation and
            output, or a quantizer before the activation of a layer without a kernel.

    Example:

    >>> rule = to_rule(Default8BitQuantizeConfig(["kernel"], ["activation"], False), dense, "dense")
    >>> rule.weights, rule.activation_bits, rule.user_quantizers.weight_bits
    (('kernel',), (8,), {'kernel': (8,)})
    """
    if isinstance(config, DQMQQuantizeConfig):
        return config.to_rule(path)
    if not isinstance(config, _QuantizeConfig):
        raise ValueError(
            f"Layer {path!r}: found a config of type {type(config).__name__}. Pass a "
            "dqmq_tf.DQMQQuantizeConfig, another TFMOT QuantizeConfig, or a dqmq_tf.LayerRule."
        )
    subject = f"Layer {path!r}: {type(config).__name__}"
    try:
        weights = config.get_weights_and_quantizers(layer) or []
        activations = config.get_activations_and_quantizers(layer) or []
        outputs = list(config.get_output_quantizers(layer) or [])
    except AttributeError as error:
        raise ValueError(f"{subject} does not fit the layer: {error}.") from error
    weights = [(variable, quantizer) for variable, quantizer in weights if not _is_idle(quantizer)]
    activations = [(function, q) for function, q in activations if not _is_idle(q)]
    outputs = [quantizer for quantizer in outputs if not _is_idle(quantizer)]
    behind = [*(quantizer for _, quantizer in activations), *outputs]
    _check_quantizers([*(q for _, q in weights), *behind], subject)
    if not weights and not behind:
        return LayerRule(pattern=re.escape(path), quantize=False)
    kernels = kernel_variables(layer)
    is_read = not any(map(_runs, [*(q for _, q in weights), *behind]))
    if is_read and not behind:
        raise ValueError(
            f"{subject} quantizes weights and leaves the output in floating point, but no integer "
            "kernel does that. Quantize the activation or the output too."
        )
    if is_read and kernels and not weights:
        raise ValueError(
            f"{subject} quantizes the output and none of the kernels {list(kernels)}, but no "
            "integer kernel does that. Quantize a kernel too, or do not annotate the layer."
        )
    names = {id(variable): name for name, variable in kernels.items()}
    unknown = [variable for variable, _ in weights if id(variable) not in names]
    if unknown:
        raise ValueError(
            f"{subject} quantizes {getattr(unknown[0], 'name', unknown[0])!r}, which is not a "
            f"kernel of the layer. Choose from {list(kernels)}."
        )
    named = {names[id(variable)]: quantizer for variable, quantizer in weights}
    read = [quantizer for quantizer in named.values() if not _runs(quantizer)]
    output_bits = _shared_bits(behind, f"{subject}: activation and output", _output_bits)
    user = None
    if not is_read:
        user = UserQuantizers(
            {name: q for name, q in named.items() if _runs(q)},
            {
                name: (user_quantizers.weight_bits(q, ops.convert_to_numpy(kernels[name])),)
                for name, q in named.items()
                if _runs(q)
            },
            *_placed(layer, activations, outputs, subject),
            output_bits=output_bits,
            has_float_output=not behind,
        )
    return LayerRule(
        pattern=re.escape(path),
        weights=tuple(named) if kernels else None,
        weight_bits=_shared_bits(read, f"{subject}: the weights", lambda q: q.bit_widths),
        activation_bits=output_bits,
        user_quantizers=user,
    )


def _as_tuple(value: int | str | Sequence[Any] | None) -> tuple[Any, ...] | None:
    if value is None:
        return None
    return (value,) if isinstance(value, (int, str)) else tuple(value)


def _is_idle(quantizer: Any) -> bool:
    return isinstance(quantizer, _tfmot_quantizers.NoQuantizer)


def _runs(quantizer: Any) -> bool:
    """Whether a quantizer runs in the quantized model, where others are read for candidates."""
    return not isinstance(quantizer, CandidatesQuantizer)


def _check_quantizers(quantizers: Iterable[Any], subject: str) -> None:
    for quantizer in quantizers:
        if not callable(quantizer) or not hasattr(quantizer, "build"):
            raise ValueError(
                f"{subject} has a {type(quantizer).__name__} for a quantizer. Pass a subclass of "
                "tfmot.quantization.keras.quantizers.Quantizer, with build, __call__ and get_config."
            )


def _placed(
    layer: keras.layers.Layer,
    activations: Sequence[tuple[Any, Any]],
    outputs: Sequence[Any],
    subject: str,
) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """Returns where the quantizers of activations and outputs run, with TFMOT's names.

    As in TFMOT, one of a softmax, sigmoid or tanh runs before it, one of a relu after it, and one
    of a gelu on both sides. Of several for the output, the first runs.

    Returns:
        `(outputs, split_outputs)` of `UserQuantizers`.
    """
    last = [("output", quantizer) for quantizer in outputs[:1] if _runs(quantizer)]
    separable = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
    kernels = kernel_variables(layer)
    if kernels and not is_linear(layer) and not isinstance(layer, separable):
        # The layer stays whole, as a recurrent one does: nothing runs inside it.
        first = [("post_activation", q) for _, q in activations[:1] if _runs(q)]
        return first + last, []
    before, after = [], []
    for function, quantizer in activations:
        is_before, is_after = user_quantizers.around_activation(function)
        before += [("pre_activation", quantizer)] * (is_before and _runs(quantizer))
        after += [("post_activation", quantizer)] * (is_after and _runs(quantizer))
    if not kernels and before:
        raise ValueError(
            f"{subject} quantizes before the activation of a layer without a kernel. Annotate the "
            "layer before it instead, or return the quantizer from get_output_quantizers."
        )
    if kernels and getattr(layer, "activation", None) not in FUSED_ACTIVATIONS:
        return before, after + last
    return after + last, []


def _shared_bits(
    quantizers: Iterable[Any], subject: str, bits_of: Callable[[Any], tuple[int, ...] | None]
) -> tuple[int, ...] | None:
    """Returns the bit-widths that all quantizers share, or None if there are no quantizers."""
    candidates = {bits_of(quantizer) for quantizer in quantizers}
    if len(candidates) > 1:
        raise ValueError(
            f"{subject} have quantizers of different bit-widths, {sorted(candidates, key=str)}. "
            "Give all of them the same."
        )
    return candidates.pop() if candidates else None


def _output_bits(quantizer: Any) -> tuple[int, ...] | None:
    if not _runs(quantizer):
        return quantizer.bit_widths
    return (user_quantizers.output_bits(quantizer),)
