"""Static mixed precision from Hessian traces and an integer program: the baseline HAWQ.

One bit-width for each kernel and each activation, the same for all images. What a rounded tensor
adds to the loss is half the mean curvature of the loss there times the squared rounding error; an
integer program picks the bits that add least at a cost. Kernels are as in HAWQ-V3 (Yao et al. 2021,
arXiv 2011.10680), activations as in HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852).
"""

import itertools

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf import graph as graphs
from dqmq_tf.graph import fusion, splitting
from dqmq_tf.graph.kernels import kernel_variables
from dqmq_tf.layers import ActivationQuantizer, step_fitting
from study import integer_program

# With this, a curvature that is estimated as 0 or less still prefers more bits to fewer.
_TINY = 1e-20


def assign(model, images, labels, costs, budget, *, tied=False, seed=0, draws=4, batch=32):
    """Returns the bits that add least to the loss within a budget.

    Args:
        model: Float Keras classifier that ends in a softmax.
        images: float32 `[N, height, width, channels]`, as the model takes them.
        labels: Integer classes `[N]`.
        costs: `CostModel` of the network, as of `assignments.cost_model`. If it counts bytes, its
            table is filled in from the model's kernels.
        budget: Largest cost, in the unit of `costs.kind`.
        tied: Whether a kernel has the bits of what its layer reads, where these are decided, as
            HAWQ-V3 has it; else each has its own.
        seed: Of the random vectors.
        draws: Random vectors per mini-batch for each kernel, and as many for all activations.
        batch: Images in a mini-batch.

    Returns:
        `{point name: bits}`, named as in `assignments.uniform`.

    Raises:
        ValueError: If the model does not end in a softmax, or if the budget is below the smallest
            possible cost.
    """
    network = Network(model, costs)
    added = sensitivities(network, images, labels, seed=seed, draws=draws, batch=batch)
    costs.measure(lambda index, bit_width: network.rounded(index, bit_width)[0])
    return integer_program.solve(costs, *added, budget, tied)


class Network:
    """A float network as a function of its kernels and of what is added to its activations.

    Args:
        model: Float Keras classifier that ends in a softmax.
        costs: `CostModel` of the network.

    Attributes:
        weights: The weight points.
        kernels: `tf.Variable` of each of them.
        decided: The decided activation points.
        columns: `{tensor id: index in decided}` of the tensors that those quantize.
        shapes: `{tensor id: shape}` of these tensors for one image.

    Raises:
        ValueError: If the model does not end in a softmax.
    """

    def __init__(self, model, costs):
        self._graph = graph = graphs.trace(splitting.split_layers(model)[0])
        layers = {node.path: node.layer for node in graph.nodes}
        self.weights = costs.weights
        self.kernels = [kernel_variables(layers[p.path])[p.variable].value for p in costs.weights]
        self.decided = [costs.activations[i] for i in costs.decided]
        made = {t: ("", fusion.INPUT_CALL, i) for i, t in enumerate(graph.inputs)}
        for node in graph.nodes:
            made |= {t: (node.path, node.call, i) for i, t in enumerate(node.outputs)}
        column = {slot: c for c, point in enumerate(self.decided) for slot in point.slots}
        self.columns = {t: column[slot] for t, slot in made.items() if slot in column}
        self.shapes = {t: tuple(graph.shapes[t][1:]) for t in self.columns}
        last = graph.producers[graph.outputs[0]]
        function = getattr(last.layer, "activation", None)
        if function is not keras.activations.softmax and type(last.layer).__name__ != "Softmax":
            raise ValueError(f"{last.path!r} is no softmax: put one at the end of {model.name!r}.")
        self._logits = last.inputs[0]

    def losses(self, images, labels, visit=lambda tensor, x: x):
        """Returns the cross entropy of each image `[N]`.

        `visit(tensor id, x)` gives what stands for an x that would be quantized.
        """

        def visited(tensors, values):
            return [visit(t, x) if t in self.columns else x for t, x in zip(tensors, values)]

        def call(node, args, kwargs):
            return visited(node.outputs, keras.tree.flatten(node.layer(*args, **kwargs)))

        inputs = self._graph.inputs
        values = dict(zip(inputs, visited(inputs, [images])))
        graphs.replay(self._graph, values, call)
        # From logits: second derivatives of the logarithm of a small probability overflow.
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, values[self._logits])

    def rounded(self, index, bit_width):
        """Returns a kernel's integers at the steps of least squared error, and that error."""
        weights = self.kernels[index].numpy()
        axes = self.weights[index].channel_axes
        (step,) = step_fitting.fit_weight_steps(weights, axes, (bit_width,))
        integers = step_fitting.weight_integers(weights, step, bit_width)
        return integers, float(np.square(integers * step - weights).sum())


def sensitivities(network, images, labels, *, seed=0, draws=4, batch=32):
    """Returns what each choice of bits adds to the mean loss, to second order.

    Args:
        network: `Network`.
        images, labels, seed, draws, batch: As of `assign`.

    Returns:
        Two lists of `{bits: added loss}`: of the weight points, and of the decided activation
        points.
    """
    random = tf.random.Generator.from_seed(seed)
    images, labels = tf.constant(images, "float32"), tf.constant(labels, "int32")
    starts = range(0, len(images), batch)
    batches = [(images[i : i + batch], labels[i : i + batch]) for i in starts]
    errors = [
        {b: network.rounded(i, b)[1] for b in point.bit_widths}
        for i, point in enumerate(network.weights)
    ]
    sizes = [int(np.prod(kernel.shape)) for kernel in network.kernels]
    traces = kernel_traces(network, batches, draws, random)
    weights = [
        {b: 0.5 * (max(trace, 0.0) / n + _TINY) * error for b, error in row.items()}
        for trace, n, row in zip(traces, sizes, errors)
    ]
    activations = [dict.fromkeys(point.bit_widths, 0.0) for point in network.decided]
    if not activations:
        return weights, activations
    calibrated = _calibrated(network, batches)
    scales = [quantizer.values(quantizer.bit_widths[-1])[0] for quantizer in calibrated]
    traces = activation_traces(network, batches, scales, draws, random)
    errors = _activation_errors(network, batches, calibrated)
    for tensor, column in network.columns.items():
        curvature = traces[tensor] / np.prod(network.shapes[tensor])
        for b, error in zip(calibrated[column].bit_widths, errors[tensor].T):
            # An image's error goes with its own curvature, of which only the mean is precise.
            added = max(np.mean(curvature * error), 0.0) + _TINY * np.mean(error)
            activations[column][b] += 0.5 * float(added)
    return weights, activations


def kernel_traces(network, batches, draws, random):
    """Returns the traces of the mean loss's Hessians with respect to each kernel.

    Hutchinson's estimator: the mean of `v' H v` over vectors v of random signs. Each kernel has
    vectors of its own. One vector for all would do in the mean, but the loss holds products of
    kernels, and what these contribute drowns the traces.

    Args:
        network: `Network`.
        batches: Pairs of images and labels, each with random vectors of its own.
        draws: Vectors per batch and kernel.
        random: `tf.random.Generator`.
    """
    kernels = network.kernels

    @tf.function
    def products(images, labels, mask):
        vectors = [m * _signs(random, k.shape) for m, k in zip(tf.unstack(mask), kernels)]
        curved = _hessian_product(lambda: network.losses(images, labels), kernels, vectors)
        return tf.stack([tf.reduce_sum(v * hv) for v, hv in zip(vectors, curved)])

    total = np.zeros(len(kernels))
    for (images, labels), mask, _ in itertools.product(batches, np.eye(len(kernels)), range(draws)):
        total += products(images, labels, tf.constant(mask, "float32")).numpy()
    return total / draws / sum(len(labels) for _, labels in batches)


def activation_traces(network, batches, scales, draws, random):
    """Returns `{tensor id: traces [N]}`: for each image, of the Hessian of its loss.

    The estimator is that of `kernel_traces`, but one vector serves all images, whose losses do not
    depend on each other, and all activations, which are seldom multiplied. For a pair of these to
    drown no small trace, entries are on the scale of each activation's rounding errors, which is
    divided out again.

    Args:
        network, batches, draws, random: As of `kernel_traces`.
        scales: Size of the entries for each decided activation point.
    """
    tensors = list(network.columns)
    scale = {tensor: scales[column] for tensor, column in network.columns.items()}

    @tf.function
    def products(images, labels):
        shapes = [(len(images), *network.shapes[tensor]) for tensor in tensors]
        zeros = [tf.zeros(shape) for shape in shapes]
        probes = dict(zip(tensors, zeros))
        vectors = [scale[t] * _signs(random, shape) for t, shape in zip(tensors, shapes)]
        curved = _hessian_product(
            lambda: network.losses(images, labels, lambda t, x: x + probes[t]), zeros, vectors
        )
        return [_per_image(v * hv) for v, hv in zip(vectors, curved)]

    means = [sum(np.array(products(*pair)) for _ in range(draws)) / draws for pair in batches]
    return {t: row / scale[t] ** 2 for t, row in zip(tensors, np.concatenate(means, axis=1))}


def _hessian_product(losses, variables, vectors):
    """Products of the Hessian of summed losses with vectors, by differentiating twice."""
    options = {"unconnected_gradients": tf.UnconnectedGradients.ZERO}
    with tf.GradientTape(watch_accessed_variables=False) as outer:
        outer.watch(variables)
        with tf.GradientTape(watch_accessed_variables=False) as inner:
            inner.watch(variables)
            loss = tf.reduce_sum(losses())
        gradients = inner.gradient(loss, variables, **options)
    return outer.gradient(gradients, variables, output_gradients=vectors, **options)


def _signs(random, shape):
    return tf.cast(2 * random.uniform(shape, 0, 2, "int32") - 1, "float32")


def _per_image(x):
    return tf.reduce_sum(x, list(range(1, len(x.shape))))


def _calibrated(network, batches):
    """An `ActivationQuantizer` for each decided point, calibrated on all images."""
    found = [ActivationQuantizer(point.bit_widths, range=point.range) for point in network.decided]
    for quantizer in found:
        quantizer.observe()
    for images, labels in batches:
        network.losses(images, labels, lambda tensor, x: found[network.columns[tensor]](x))
    for quantizer in found:
        quantizer.calibrate()
    return found


def _activation_errors(network, batches, calibrated):
    """`{tensor id: squared errors [N, K]}` of each image's activations at the K candidates."""
    found = {tensor: [] for tensor in network.columns}

    def visit(tensor, x):
        errors, quantizer = [], calibrated[network.columns[tensor]]
        for b in quantizer.bit_widths:
            step, zero_point = quantizer.values(b)
            integers = tf.clip_by_value(tf.round(x / step), -zero_point, 2**b - 1 - zero_point)
            errors.append(_per_image(tf.square(integers * step - x)))
        found[tensor].append(np.stack(errors, axis=1))
        return x

    for images, labels in batches:
        network.losses(images, labels, visit)
    return {tensor: np.concatenate(rows) for tensor, rows in found.items()}
