"""PACT and DoReFa at given bits, at the same points of the network where dqmq_tf quantizes.

- PACT: Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks",
  arXiv 1805.06085.
- DoReFa: Zhou et al., "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low
  Bitwidth Gradients", arXiv 1606.06160. Gradients are in floating point here.

Both papers train from scratch. Here both methods fine-tune: they start from clips and scales with the
least squared error, and from latent weights that represent the weights of the float network.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf import graph as graphs
from dqmq_tf.graph import fusion, rebuild, splitting
from dqmq_tf.graph.kernels import variable_names

METHODS = ("pact", "dorefa")
# PACT's weight decay for CIFAR-10, which it applies to alpha as well: a gradient of 2e-4 * alpha.
_ALPHA_DECAY = 2e-4
_SAMPLES = 65_536
_SHRINKS = np.geomspace(0.05, 1.0, 40)


def quantized(model, costs, bits, method, images):
    """Returns a copy of a float network with the quantizers of PACT or DoReFa at given bits.

    Args:
        model: A float Keras classifier. It is not changed.
        costs: The `CostModel` of the network, from `assignments.cost_model`.
        bits: `{point name: bits}`, at least 2. Activation points that have no choice of bits stay float.
        method: `"pact"`: activations have learned clips. `"dorefa"`: they have fixed clips. Both
            quantize weights as DoReFa does, like PACT's experiments, and per output channel where dqmq_tf
            does so.
        images: Images from which the clips are initialized, float32 `[n, height, width, channels]`.

    Returns:
        A `keras.Model` with the network's inputs and outputs. It is not compiled.

    Raises:
        ValueError: If the method is unknown, or a point has no entry in `bits`.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} must be one of {METHODS}.")
    decided = [costs.activations[i] for i in costs.decided]
    missing = [point.name for point in (*decided, *costs.weights) if point.name not in bits]
    if missing:
        raise ValueError(f"bits has no entry for {missing[0]!r}.")
    body, _ = splitting.split_layers(model)
    graph = graphs.inline(graphs.trace_nested(body))

    observed, clips = _observed(graph, images), {}
    for point in decided:
        values = np.concatenate([observed[slot].ravel() for slot in point.slots])
        # The clip of the input is fixed, as in dqmq_tf. PACT's paper leaves the input in float.
        is_input = all(call == fusion.INPUT_CALL for _, call, _ in point.slots)
        clip = Clip(
            bits[point.name],
            limit=least_error_limit(values, bits[point.name]),
            signed=bool(values.min() < 0),
            learned=method == "pact" and not is_input,
            name=f"{point.name.replace('/', '_')}_clip",
        )
        clips.update(dict.fromkeys(point.slots, clip))

    kernels = {}
    for point in costs.weights:
        kernels.setdefault(point.path, []).append(point)
    wrappers = {
        node.path: QuantizedKernels(node.layer, kernels[node.path], bits)
        for node in {node.path: node for node in graph.nodes}.values()
        if node.path in kernels
    }

    def clipped(slot, x):
        return clips[slot](x) if slot in clips else x

    def call(node, args, kwargs):
        outputs = wrappers.get(node.path, node.layer)(*args, **kwargs)
        flat = keras.tree.flatten(outputs)
        flat = [clipped((node.path, node.call, i), y) for i, y in enumerate(flat)]
        return keras.tree.pack_sequence_as(outputs, flat)

    inputs = rebuild.new_inputs(graph)
    values = {
        tensor: clipped(("", fusion.INPUT_CALL, i), x)
        for i, (tensor, x) in enumerate(zip(graph.inputs, inputs))
    }
    outputs = rebuild.single(graphs.replay(graph, values, call))
    return keras.Model(rebuild.structured(graph, inputs), outputs, name=model.name)


class Clip(keras.layers.Layer):
    """Clips to `[0, alpha]` or `[-alpha, alpha]`, and rounds to the levels of k bits in that range.

    PACT's rule is `round(clip(x, 0, alpha) * (2**k - 1) / alpha) * alpha / (2**k - 1)`. The gradient of
    alpha is 1 where x is clipped from above and, by symmetry, -1 where x is clipped from below. The
    gradient of x is 1 where x is not clipped. A signed range is shifted by less than a step, so that
    one of its 2**k levels is 0, as integer kernels require. TensorFlow's fake quantization does all
    this in one operation. It treats x = alpha, where the paper's gradient jumps, as not clipped.

    Args:
        bits: The number of bits k, at least 2.
        limit: Initial value of alpha.
        signed: Whether the range has negative values.
        learned: Whether alpha is trained, with L2 decay.
    """

    def __init__(self, bits, *, limit, signed, learned, **kwargs):
        super().__init__(**kwargs)
        self.bits, self.limit, self.signed = int(bits), float(limit), signed
        self.scale = None
        if learned:
            # The variable is alpha / limit, because Adam's steps are equally long for all variables
            # while the ranges differ.
            self.scale = self.add_weight(
                name="scale",
                shape=(),
                initializer="ones",
                dtype="float32",
                regularizer=keras.regularizers.L2(_ALPHA_DECAY / 2 * self.limit**2),
            )
        self.built = True

    @property
    def alpha(self):
        """The current value of alpha."""
        return self.limit * (1.0 if self.scale is None else float(self.scale))

    def call(self, x):
        if self.scale is None:
            return _rounded(x, self.limit, self.bits, self.signed)
        return learned_clip(x, self.scale.value * self.limit, self.bits, self.signed)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, dtype=x.dtype)


class QuantizedKernels(keras.layers.Layer):
    """Runs a layer with kernels that DoReFa's quantizer computes from latent kernels.

    The layer's own variables become the latent kernels. Their values change, so that the quantized
    kernels represent the original ones.

    Args:
        layer: A built layer.
        weights: The `WeightPoint`s of its kernels.
        bits: `{point name: bits}`.
    """

    def __init__(self, layer, weights, bits):
        super().__init__(name=layer.name, trainable=layer.trainable)
        self.layer = layer
        self.quantizers = {}
        named = variable_names(layer)
        for point in weights:
            kernel = named[point.variable]
            channels = [axis % len(kernel.shape) for axis in point.channel_axes]
            axes = tuple(axis for axis in range(len(kernel.shape)) if axis not in channels)
            exact = ops.convert_to_numpy(kernel).astype("float32")
            kernel.assign(latent_weights(exact, axes))
            scale = _least_error_scale(exact, kernel.value, bits[point.name], axes)
            self.quantizers[point.variable] = (int(bits[point.name]), scale, axes)
        self.built = True

    def quantized_kernel(self, variable):
        """Returns the quantized kernel that replaces a variable of the layer."""
        bits, scale, axes = self.quantizers[variable]
        return scale * dorefa_weights(variable_names(self.layer)[variable].value, bits, axes)

    def call(self, *args, **kwargs):
        named = variable_names(self.layer)
        mapping = [(named[name], self.quantized_kernel(name)) for name in self.quantizers]
        with keras.StatelessScope(state_mapping=mapping):
            return self.layer(*args, **kwargs)

    def compute_output_spec(self, *args, **kwargs):
        return self.layer.compute_output_spec(*args, **kwargs)


def learned_clip(x, alpha, bits, signed):
    """Returns `x`, clipped by a learned alpha and rounded; see `Clip`.

    Args:
        x: A float32 tensor.
        alpha: A positive scalar tensor.
        bits: Number of bits, 2 to 16.
        signed: Whether the range is `[-alpha, alpha]`.
    """
    low = -alpha if signed else tf.zeros_like(alpha)
    return tf.quantization.fake_quant_with_min_max_vars(x, low, alpha, num_bits=bits)


def least_error_limit(values, bits):
    """Returns the clip with the least squared error on observed values.

    Args:
        values: Array of a tensor's values on calibration data.
        bits: Bits of the quantizer. It is signed if a value is negative.
    """
    largest = float(np.abs(values).max())
    if not largest:
        return 1.0
    signed = bool(values.min() < 0)
    if values.size > _SAMPLES:
        values = np.random.default_rng(0).choice(values, _SAMPLES)
    errors = [
        np.mean(np.square(_rounded(values, limit, bits, signed) - values))
        for limit in largest * _SHRINKS
    ]
    return largest * float(_SHRINKS[np.argmin(errors)])


def dorefa_weights(latent, bits, axes):
    """Returns weights in [-1, 1], on the 2**bits levels of DoReFa's quantizer.

    The formula is `2 * round_k(tanh(w) / (2 * max|tanh(w)|) + 1 / 2) - 1`, with a straight-through
    gradient of the rounding.

    Args:
        latent: Latent weights w, a float32 tensor.
        bits: Number of bits k.
        axes: Axes of the maximum. In the paper these are all axes.
    """
    squashed = tf.tanh(latent)
    largest = tf.reduce_max(tf.abs(squashed), axes, keepdims=True)
    unit = squashed / tf.maximum(2.0 * largest, 1e-12) + 0.5
    levels = 2.0**bits - 1.0
    rounded = tf.round(unit * levels) / levels
    return 2.0 * (unit + tf.stop_gradient(rounded - unit)) - 1.0


def latent_weights(weights, axes):
    """Returns latent weights that `dorefa_weights` maps to a multiple of the weights, except for rounding.

    Otherwise tanh would distort large weights of a trained network before training begins. The largest
    weight over `axes` keeps its value.
    """
    largest = np.maximum(np.abs(weights).max(axes, keepdims=True), 1e-12)
    # Above 0.999 float32 is too coarse, and the gradient of tanh vanishes.
    return np.arctanh(weights / largest * np.minimum(np.tanh(largest), 0.999))


def _least_error_scale(exact, latent, bits, axes):
    """Returns the factor per channel that brings quantized weights closest to the float weights.

    DoReFa's weights range from -1 to 1. In a network that is trained from scratch, batch norms adapt to
    that scale. In a trained network they expect the original scale of the kernels.
    """
    levels = dorefa_weights(latent, bits, axes).numpy()
    products = np.sum(levels * exact, axes, keepdims=True)
    return (products / np.sum(np.square(levels), axes, keepdims=True)).astype("float32")


def _rounded(x, limit, bits, signed):
    """Quantizes with a fixed clip, as DoReFa quantizes activations. The paper clips at 1."""
    return tf.quantization.fake_quant_with_min_max_args(
        x, min=-limit if signed else 0.0, max=limit, num_bits=bits
    )


def _observed(graph, images):
    """Returns `{slot: array}` with the values of each tensor of a float network on images."""
    values = {graph.inputs[0]: tf.constant(images)}
    found = {("", fusion.INPUT_CALL, 0): images}

    def call(node, args, kwargs):
        outputs = node.layer(*args, **kwargs)
        for i, output in enumerate(keras.tree.flatten(outputs)):
            found[node.path, node.call, i] = np.asarray(output)
        return outputs

    graphs.replay(graph, values, call)
    return found
