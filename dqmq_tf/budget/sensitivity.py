"""Estimates what rounding a kernel adds to the loss, to second order, for each bit-width.

Rounding a kernel with error `e` adds `e' F e / 2` on average over images. `F` is the Fisher
information of the network's outputs (for a classifier, with labels drawn from its own
probabilities), which is the Gauss-Newton form of the Hessian (Martens 2020, "New insights and
perspectives on the natural gradient method", arXiv 1412.1193). As in HAWQ-V2 (Dong et al. 2020,
arXiv 1911.03852), the trace replaces the matrix: the estimate is the mean of its diagonal times the
squared error of all weights. In contrast to a Hessian trace, a Fisher trace needs no second
derivatives and no random vector for each kernel. With random signs for each image and output, the
squares of a single gradient estimate it for all kernels at once.

The estimate is for the float network in inference mode, before anything is rounded. In training
mode, batch statistics would hide how rounding a kernel changes the scale of a channel.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf import inputs
from dqmq_tf.graph.activations import last_activation
from dqmq_tf.graph.samples_at_once import samples_at_once
from dqmq_tf.layers.quantize_wrapper import QuantizeWrapper

# The largest number of images that share a gradient, and the number of random signs for each image.
_BATCH_SIZE, _DRAWS = 32, 2
_TINY = 1e-12


def added_losses(parts: Any, x: Any, grid: np.ndarray) -> np.ndarray:
    """Returns how much rounding each kernel raises the loss, up to a common factor.

    Args:
        parts: The `ModelParts` of a model. Kernels are rounded with the step sizes of its wrappers.
        x: Inputs of the model, shape `[batch, ...]` each.
        grid: Bit-widths, shape `[K]`.

    Returns:
        A float32 array of shape `[Pw, K]`, scaled so that its largest entry is 1, and 0 for
        bit-widths that a point cannot have.
    """
    points = parts.costs.weights
    wrappers = [parts.wrappers[point.path] for point in points]
    kernels = [w.kernel(point.variable) for w, point in zip(wrappers, points)]
    size = min(samples_at_once(parts.graph, keras.tree.flatten(x)), _BATCH_SIZE)
    traces = _positive(fisher_traces(parts.body, kernels, x, parts.config.seed, size))
    losses = np.zeros((len(points), len(grid)))
    for row, trace, wrapper, point in zip(losses, traces, wrappers, points):
        for column, bit_width in enumerate(grid):
            if bit_width in point.bit_widths:
                error = rounding_error(wrapper, point.variable, int(bit_width))
                row[column] = trace * max(error, _TINY)
    return (losses / losses.max()).astype("float32")


def rounding_error(wrapper: QuantizeWrapper, variable: str, bit_width: int) -> float:
    """Returns the mean squared error of a kernel's weights at a bit-width.

    Args:
        wrapper: The `QuantizeWrapper` of the layer.
        variable: The name of the kernel.
        bit_width: The bit-width that the kernel is rounded to.
    """
    weights = keras.ops.convert_to_numpy(wrapper.kernel(variable)).astype("float32")
    rounded = wrapper.integers(variable, bit_width) * wrapper.step(variable, bit_width)
    return float(np.mean(np.square(rounded - weights)))


def fisher_traces(
    model: keras.Model,
    kernels: Sequence[keras.Variable],
    x: Any,
    seed: int = 0,
    batch_size: int = _BATCH_SIZE,
) -> np.ndarray:
    """Returns the trace of the Fisher information of each kernel, summed over images.

    Args:
        model: A float Keras model. It is run in inference mode.
        kernels: Variables of the model.
        x: Inputs of the model, shape `[batch, ...]` each.
        seed: The seed of the random signs.
        batch_size: The number of images that share a gradient.

    Returns:
        A float64 array with one entry per kernel, 0 for a kernel that affects no output.
    """
    signs = tf.random.Generator.from_seed(seed)
    activations = [last_activation(output) for output in model.outputs]
    # Under a distribution strategy, the model reads the first of a variable's copies here.
    copies = tf.distribute.get_strategy().experimental_local_results
    variables = [copies(kernel.value)[0] for kernel in kernels]
    total = np.zeros(len(kernels))
    for batch in [*inputs.batches(x, model, batch_size=batch_size)] * _DRAWS:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            outputs = keras.tree.flatten(model(inputs.structured(batch, model), training=False))
            scores = [_score(y, name, signs) for y, name in zip(outputs, activations)]
            loss = tf.add_n(scores)
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        # The gradients of embeddings are `IndexedSlices`, which have to be made dense.
        dense = [tf.cast(tf.convert_to_tensor(gradient), "float32") for gradient in gradients]
        squares = [tf.reduce_sum(tf.square(gradient)) for gradient in dense]
        total += np.array(squares, "float64")
    return total / _DRAWS


def _score(output: tf.Tensor, activation: str, signs: tf.random.Generator) -> tf.Tensor:
    """Returns a random sum whose squared gradient estimates the Fisher information of an output.

    With independent random signs `r`, the mean square of the gradient of `sum r_k s_k` is
    `sum (ds_k)**2`. The Fisher information of probabilities is `sum (dp_k)**2 / p_k`. That of other
    outputs, taken as the means of Gaussians, is `sum (dy_k)**2`.

    Args:
        output: An output of the model, shape `[batch, ...]`.
        activation: The name of its last activation.
        signs: The generator of the random signs.
    """
    if not output.dtype.is_floating:
        return tf.zeros(())
    output = tf.cast(output, "float32")
    factors = tf.cast(2 * signs.uniform(tf.shape(output), 0, 2, "int32") - 1, "float32")
    if activation in ("softmax", "sigmoid"):
        p = tf.stop_gradient(output)
        variance = p * (1.0 - p) if activation == "sigmoid" else p
        factors = factors / tf.sqrt(tf.maximum(variance, _TINY))
    return tf.reduce_sum(factors * output)


def _positive(traces: np.ndarray) -> np.ndarray:
    """Replaces traces that are 0 or not finite (float16 can overflow) by the median of the others."""
    is_known = np.isfinite(traces) & (traces > 0)
    return np.where(is_known, traces, np.median(traces[is_known]) if is_known.any() else 1.0)
