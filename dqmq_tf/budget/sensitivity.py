"""What rounding a kernel adds to the loss, to second order, by bit-width.

A kernel that is rounded by `e` adds `e' F e / 2` in the mean over images, `F` the Fisher information of
what the network says (where it tells classes apart: of its own labels), which is the Gauss-Newton form
of the Hessian (Martens 2020, "New insights and perspectives on the natural gradient method",
arXiv 1412.1193). As in HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852) the trace stands for the matrix:
what is added is the mean of its diagonal times the squared error of all weights. But a Fisher trace
takes no second derivatives and no vector for each kernel: with random signs for each image and output,
the squares of one gradient have it for all kernels at once.

It is of the float network in inference mode, before anything is rounded. Batch statistics would hide
what a kernel's rounding does to the scale of a channel.
"""

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf import inputs
from dqmq_tf.graph.activations import last_activation

# Images that share a gradient, and how often each is looked at.
_SLICE, _DRAWS = 32, 2
_TINY = 1e-12


def added_losses(parts, x, grid):
    """Returns by how much rounding each kernel raises the loss, up to a common factor.

    Args:
        parts: The `Parts` of a model; step sizes are those that its wrappers have.
        x: Images, or whatever the model takes, `[batch, ...]`.
        grid: Bit-widths `[K]`.

    Returns:
        float32 `[weight points, K]`, the most sensitive kernel's largest entry 1; 0 for bit-widths
        that a point cannot have.
    """
    points = parts.costs.weights
    wrappers = [parts.wrappers[point.path] for point in points]
    kernels = [w.kernel(point.variable) for w, point in zip(wrappers, points)]
    traces = _positive(fisher_traces(parts.body, kernels, x, parts.config.seed))
    losses = np.zeros((len(points), len(grid)))
    for row, trace, wrapper, point in zip(losses, traces, wrappers, points):
        for column, bit_width in enumerate(grid):
            if bit_width in point.bit_widths:
                error = rounding_error(wrapper, point.variable, int(bit_width))
                row[column] = trace * max(error, _TINY)
    return (losses / losses.max()).astype("float32")


def rounding_error(wrapper, variable, bit_width):
    """Returns the mean squared error of a kernel's weights at a bit-width."""
    weights = keras.ops.convert_to_numpy(wrapper.kernel(variable)).astype("float32")
    rounded = wrapper.integers(variable, bit_width) * wrapper.step(variable, bit_width)
    return float(np.mean(np.square(rounded - weights)))


def fisher_traces(model, kernels, x, seed=0):
    """Returns the trace of the Fisher information of each kernel, summed over images.

    Args:
        model: Float Keras model, in inference mode.
        kernels: Variables of it.
        x: Its inputs, `[batch, ...]`.
        seed: Of the random signs.

    Returns:
        float64 `[kernels]`; 0 for a kernel that no output hangs on.
    """
    signs = tf.random.Generator.from_seed(seed)
    names = [last_activation(output) for output in model.outputs]
    variables = [kernel.value for kernel in kernels]
    total = np.zeros(len(kernels))
    for part in [*inputs.batches(x, model, batch_size=_SLICE)] * _DRAWS:
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            outputs = keras.tree.flatten(model(inputs.structured(part, model), training=False))
            scores = [_score(y, name, signs) for y, name in zip(outputs, names)]
            loss = tf.add_n(scores)
        found = tape.gradient(loss, variables, unconnected_gradients="zero")
        # Those of embeddings come as rows.
        dense = [tf.cast(tf.convert_to_tensor(gradient), "float32") for gradient in found]
        squares = [tf.reduce_sum(tf.square(gradient)) for gradient in dense]
        total += np.array(squares, "float64")
    return total / _DRAWS


def _score(output, activation, signs):
    """A random sum whose squared gradient is, in the mean, the Fisher information of an output.

    With independent signs `r`, the mean square of the gradient of `sum r_k s_k` is `sum (ds_k)**2`.
    Probabilities have the Fisher information `sum (dp_k)**2 / p_k`, other numbers, as means of
    Gaussians, `sum (dy_k)**2`.
    """
    if not output.dtype.is_floating:
        return tf.zeros(())
    output = tf.cast(output, "float32")
    drawn = tf.cast(2 * signs.uniform(tf.shape(output), 0, 2, "int32") - 1, "float32")
    if activation in ("softmax", "sigmoid"):
        p = tf.stop_gradient(output)
        variance = p * (1.0 - p) if activation == "sigmoid" else p
        drawn = drawn / tf.sqrt(tf.maximum(variance, _TINY))
    return tf.reduce_sum(drawn * output)


def _positive(traces):
    """Traces with the median of the others where one is 0, or no number as of float16 gradients."""
    known = np.isfinite(traces) & (traces > 0)
    return np.where(known, traces, np.median(traces[known]) if known.any() else 1.0)
