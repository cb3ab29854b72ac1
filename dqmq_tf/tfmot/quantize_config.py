"""TFMOT's `QuantizeConfig`: one that names candidate bit-widths, and a reader of any other.

The only module that imports TensorFlow Model Optimization (TFMOT), which is optional and built on
Keras 2. Import TFMOT from here (`from dqmq_tf.tfmot.quantize_config import tfmot`) to keep `tf.keras`
and the environment as they are.
"""

import importlib
import os
import re

import keras
from keras import ops

from dqmq_tf.config import LayerRule
from dqmq_tf.graph.kernels import kernel_variables
from dqmq_tf.layers.lsq import quantize, weight_limits


def _import_tfmot():
    """Imports TFMOT without the two things that it does to the process.

    It sets `TF_USE_LEGACY_KERAS`, and asks for `tf.keras`, which then becomes Keras 2 for good if
    nobody used it before. While it is imported it finds Keras 3 there, whatever was there, and
    takes Keras 2 from the package `tf_keras` instead.
    """
    legacy = os.environ.get("TF_USE_LEGACY_KERAS")
    names = ("tensorflow", "tensorflow.compat.v1", "tensorflow.compat.v2")
    modules = [importlib.import_module(name) for name in names]
    found = [vars(module)["keras"] for module in modules]
    try:
        for module in modules:
            module.keras = keras
        return importlib.import_module("tensorflow_model_optimization")
    except ImportError as error:
        raise ImportError(
            "dqmq_tf.tfmot.quantize_config needs TensorFlow Model Optimization and tf_keras: "
            f"pip install dqmq_tf[tfmot] ({error})."
        ) from error
    finally:
        for module, attribute in zip(modules, found):
            module.keras = attribute
        if legacy is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = legacy


tfmot = _import_tfmot()
_QuantizeConfig = tfmot.quantization.keras.QuantizeConfig
# The public module does not have all of them.
_tfmot_quantizers = importlib.import_module(
    "tensorflow_model_optimization.python.core.quantization.keras.quantizers"
)


@keras.saving.register_keras_serializable(package="dqmq_tf")
class CandidatesQuantizer(_tfmot_quantizers.Quantizer):
    """A TFMOT `Quantizer` that says among which bit-widths a tensor's is chosen.

    `dqmq_tf` reads the candidates; called as TFMOT calls a quantizer, it quantizes symmetrically
    at the widest of them.

    Args:
        bit_widths: The candidates; None for all that the target has.

    Example:

    >>> CandidatesQuantizer((2, 4, 8)).bit_widths
    (2, 4, 8)
    """

    def __init__(self, bit_widths=None):
        self.bit_widths = LayerRule(pattern=".*", weight_bits=bit_widths).weight_bits

    def build(self, tensor_shape, name, layer):
        """Returns no variables: the step sizes belong to the quantized model."""
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        """Returns `inputs` on the grid of the widest candidate (8 bits if there are no own)."""
        _, q_max = weight_limits(max(self.bit_widths or (8,)))
        step = ops.max(ops.abs(inputs), keepdims=True) / q_max
        limit = ops.full_like(step, q_max)
        return quantize(inputs, step, -limit, limit)

    def get_config(self):
        return {"bit_widths": self.bit_widths}

    def __eq__(self, other):
        return type(other) is type(self) and other.bit_widths == self.bit_widths

    def __hash__(self):
        return hash((type(self), self.bit_widths))


@keras.saving.register_keras_serializable(package="dqmq_tf")
class DQMQQuantizeConfig(_QuantizeConfig):
    """Which tensors of a layer are decision points, and with which candidates.

    A TFMOT `QuantizeConfig` that works on Keras 3 layers; hand it to
    `dqmq_tf.quantize_annotate_layer`.

    Args:
        weights: Names of the layer's kernels to quantize, such as `("kernel",)`; None for all.
        weight_bits: Candidates for them; None for all that the target has.
        activation_bits: Candidates for the tensor that the layer makes; None for all.

    Raises:
        ValueError: If a tuple is empty.

    Example:

    >>> config = dqmq_tf.DQMQQuantizeConfig(weight_bits=(4, 8))
    >>> layer = dqmq_tf.quantize_annotate_layer(keras.layers.Dense(10), config)
    """

    def __init__(self, weights=None, weight_bits=None, activation_bits=None):
        rule = LayerRule(
            pattern=".*",
            weights=(weights,) if isinstance(weights, str) else weights,
            weight_bits=weight_bits,
            activation_bits=activation_bits,
        )
        self.weights = rule.weights
        self.weight_bits = rule.weight_bits
        self.activation_bits = rule.activation_bits

    def to_rule(self, path):
        """Returns the `LayerRule` that says the same of the layer with path `path`."""
        return LayerRule(pattern=re.escape(path), **self.get_config())

    def get_weights_and_quantizers(self, layer):
        """Returns `[(variable, CandidatesQuantizer)]` of a built Keras 3 layer.

        Raises:
            ValueError: If the layer does not have one of the weights.
        """
        kernels = kernel_variables(layer)
        names = kernels if self.weights is None else self.weights
        missing = [name for name in names if name not in kernels]
        if missing:
            raise ValueError(
                f"Layer {layer.name!r} has no kernel {missing[0]!r} to quantize; "
                f"it has {list(kernels)}."
            )
        return [(kernels[name], CandidatesQuantizer(self.weight_bits)) for name in names]

    def get_activations_and_quantizers(self, layer):
        """Returns `[(activation function, CandidatesQuantizer)]`, empty if there is none."""
        if not callable(getattr(layer, "activation", None)):
            return []
        return [(layer.activation, CandidatesQuantizer(self.activation_bits))]

    def set_quantize_weights(self, layer, quantize_weights):
        """Assigns quantized values to the variables of `get_weights_and_quantizers`, in its order.

        Raises:
            ValueError: If number or shapes differ.
        """
        variables = [variable for variable, _ in self.get_weights_and_quantizers(layer)]
        expected = [tuple(variable.shape) for variable in variables]
        found = [tuple(weight.shape) for weight in quantize_weights]
        if found != expected:
            raise ValueError(
                f"Layer {layer.name!r} has weights of shapes {expected} to set, found {found}."
            )
        for variable, weight in zip(variables, quantize_weights):
            variable.assign(weight)

    def set_quantize_activations(self, layer, quantize_activations):
        """Sets the layer's activation function.

        Raises:
            ValueError: If the layer does not have as many.
        """
        expected = len(self.get_activations_and_quantizers(layer))
        if len(quantize_activations) != expected:
            raise ValueError(
                f"Layer {layer.name!r} has {expected} activation(s) to set, "
                f"found {len(quantize_activations)}."
            )
        for activation in quantize_activations:
            layer.activation = activation

    def get_output_quantizers(self, layer):
        """Returns `[CandidatesQuantizer]` of the output, or none where the activation has it."""
        if self.get_activations_and_quantizers(layer):
            return []
        return [CandidatesQuantizer(self.activation_bits)]

    def get_config(self):
        return {
            "weights": self.weights,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
        }

    def __eq__(self, other):
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self):
        return hash((type(self), *self.get_config().values()))


def to_rule(config, layer, path):
    """Returns what any TFMOT `QuantizeConfig` says of a layer as a `LayerRule`.

    Its weights become the decision points and the `num_bits` of its quantizers the candidates;
    the quantizers of activations and outputs both speak of the tensor that the layer makes. How
    ranges are found, per tensor or per channel, is not taken over: step sizes are learned.

    Args:
        config: A TFMOT `QuantizeConfig`.
        layer: A built Keras 3 layer.
        path: Path of the layer.

    Raises:
        ValueError: If the config does not fit the layer, or says what a rule cannot: bit-widths
            that differ among the weights, a fixed range, weights without their output or the
            other way round, or a quantizer without `num_bits`.

    Example:

    >>> rule = to_rule(Default8BitQuantizeConfig(["kernel"], ["activation"], False), dense, "dense")
    >>> rule.weights, rule.weight_bits, rule.activation_bits
    (('kernel',), (8,), (8,))
    """
    if isinstance(config, DQMQQuantizeConfig):
        return config.to_rule(path)
    if not isinstance(config, _QuantizeConfig):
        raise ValueError(
            f"Layer {path!r}: found a config of type {type(config).__name__}, give a "
            "dqmq_tf.DQMQQuantizeConfig, another TFMOT QuantizeConfig, or a dqmq_tf.LayerRule."
        )
    kind = f"Layer {path!r}: {type(config).__name__}"
    try:
        weights = config.get_weights_and_quantizers(layer)
        made = [quantizer for _, quantizer in config.get_activations_and_quantizers(layer)]
        made += config.get_output_quantizers(layer)
    except AttributeError as error:
        raise ValueError(f"{kind} does not fit the layer: {error}.") from error
    weights = [pair for pair in weights if not _is_idle(pair[1])]
    made = [quantizer for quantizer in made if not _is_idle(quantizer)]
    if not weights and not made:
        return LayerRule(pattern=re.escape(path), quantize=False)
    kernels = kernel_variables(layer)
    if weights and not made:
        raise ValueError(
            f"{kind} quantizes weights and leaves the output in floating point, which no integer "
            "kernel does: quantize the activation or the output too."
        )
    if kernels and not weights:
        raise ValueError(
            f"{kind} quantizes the output and none of the kernels {list(kernels)}, which no "
            "integer kernel does: quantize a kernel too, or do not annotate the layer."
        )
    names = {id(variable): name for name, variable in kernels.items()}
    unknown = [v for v, _ in weights if id(v) not in names]
    if unknown:
        raise ValueError(
            f"{kind} quantizes {getattr(unknown[0], 'name', unknown[0])!r}, which is no kernel of "
            f"the layer; it has {list(kernels)}."
        )
    return LayerRule(
        pattern=re.escape(path),
        weights=tuple(names[id(v)] for v, _ in weights) or None,
        weight_bits=_shared_bits([q for _, q in weights], f"{kind}: the weights"),
        activation_bits=_shared_bits(made, f"{kind}: activation and output"),
    )


def _is_idle(quantizer):
    return isinstance(quantizer, _tfmot_quantizers.NoQuantizer)


def _shared_bits(quantizers, what):
    """Returns the one set of candidates of all quantizers, None if there are none."""
    found = {_bit_widths(quantizer, what) for quantizer in quantizers}
    if len(found) > 1:
        raise ValueError(
            f"{what} have quantizers of different bit-widths, {sorted(found, key=str)}: one set of "
            "candidates holds for all."
        )
    return found.pop() if found else None


def _bit_widths(quantizer, what):
    if isinstance(quantizer, CandidatesQuantizer):
        return quantizer.bit_widths
    if isinstance(quantizer, _tfmot_quantizers.FixedQuantizer):
        raise ValueError(f"{what} have a FixedQuantizer: ranges are learned, none can be fixed.")
    if not isinstance(getattr(quantizer, "num_bits", None), int):
        raise ValueError(
            f"{what} have a {type(quantizer).__name__}, which does not say how many bits it has: "
            "give it an attribute num_bits, or use a CandidatesQuantizer."
        )
    return (quantizer.num_bits,)
