"""The baseline HAWQ: static mixed precision from Hessian traces and an integer program.

Each kernel and each activation has one bit-width for all images. A rounded tensor adds to the loss half
the mean curvature of the loss with respect to that tensor, times the squared rounding error. An integer
program finds the bits that add least to the loss within a budget. Kernels are treated as in HAWQ-V3 (Yao
et al. 2021, arXiv 2011.10680), activations as in HAWQ-V2 (Dong et al. 2020, arXiv 1911.03852).
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

# Added to the curvature, so that an estimate of 0 or less still prefers more bits.
_TINY = 1e-20


def assign(model, images, labels, costs, budget, *, tied=False, seed=0, draws=4, batch=32):
    """Returns the bits that add least to the loss within a budget.

    Args:
        model: A float Keras classifier that ends in a softmax.
        images: Inputs of the model, float32 `[N, height, width, channels]`.
        labels: Integer classes `[N]`.
        costs: The `CostModel` of the network, from `assignments.cost_model`. If it counts bytes, its
            table is filled in from the model's kernels.
        budget: Largest cost, in the unit of `costs.kind`.
        tied: Whether a kernel has the same bits as the input of its layer, where that has a choice of
            bits, as in HAWQ-V3. Otherwise each has its own.
        seed: Seed of the random vectors.
        draws: Random vectors per mini-batch for each kernel, and the same number for all activations
            together.
        batch: Images in a mini-batch.

    Returns:
        `{point name: bits}`, named as in `assignments.uniform`.

    Raises:
        ValueError: If the model does not end in a softmax, or if the budget is below the smallest
            possible cost.
    """
    network = Network(model, costs)
    added = sensitivities(network, images, labels, seed=seed, draws=draws, batch=batch)
    return proposals(network, costs, *added, tied=tied)(budget)


def proposals(network, costs, weights, activations, *, tied=False):
    """Returns a function of a budget. It returns the bits that add least to the loss within it.

    Args:
        network: A `Network`.
        costs, tied: See `assign`.
        weights, activations: The added losses from `sensitivities`.
    """
    costs.measure(lambda index, bit_width: network.rounded(index, bit_width)[0])
    activations = activations if costs.decided else []
    return lambda budget: integer_program.solve(costs, weights, activations, budget, tied)


class Network:
    """A float network as a function of its kernels and of perturbations of its activations.

    Args:
        model: A float Keras classifier that ends in a softmax.
        costs: The `CostModel` of the network.

    Attributes:
        weights: The weight points.
        kernels: The `tf.Variable` of each weight point.
        decided: The activation points that have a choice of bits.
        columns: `{tensor id: index in decided}` of the tensors that these points quantize.
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
            raise ValueError(
                f"The last layer {last.path!r} is no softmax: add one at the end of {model.name!r}."
            )
        self._logits = last.inputs[0]

    def losses(self, images, labels, visit=lambda tensor, x: x):
        """Returns the cross entropy of each image, `[N]`.

        Args:
            images, labels: A batch.
            visit: Function of a tensor id and a tensor that would be quantized. Returns the tensor
                that replaces it.
        """

        def visited(tensors, values):
            return [visit(t, x) if t in self.columns else x for t, x in zip(tensors, values)]

        def call(node, args, kwargs):
            return visited(node.outputs, keras.tree.flatten(node.layer(*args, **kwargs)))

        inputs = self._graph.inputs
        values = dict(zip(inputs, visited(inputs, [images])))
        graphs.replay(self._graph, values, call)
        # From logits, because second derivatives of the logarithm of a small probability overflow.
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, values[self._logits])

    def rounded(self, index, bit_width):
        """Returns a kernel's integers at the steps with the least squared error, and that error."""
        weights = self.kernels[index].numpy()
        axes = self.weights[index].channel_axes
        (step,) = step_fitting.fit_weight_steps(weights, axes, (bit_width,))
        integers = step_fitting.weight_integers(weights, step, bit_width)
        return integers, float(np.square(integers * step - weights).sum())


def sensitivities(network, images, labels, *, seed=0, draws=4, batch=32):
    """Returns what each choice of bits adds to the mean loss, to second order.

    Args:
        network: A `Network`.
        images, labels, seed, draws, batch: See `assign`.

    Returns:
        Two lists of `{bits: added loss}`: for the weight points, and for the activation points that
        have a choice of bits.
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
            # Each image's error is multiplied by its own curvature. Only the mean of the curvature is
            # precise, so the product is averaged before it is clipped at 0.
            added = max(np.mean(curvature * error), 0.0) + _TINY * np.mean(error)
            activations[column][b] += 0.5 * float(added)
    return weights, activations


def kernel_traces(network, batches, draws, random):
    """Returns the trace of the Hessian of the mean loss with respect to each kernel.

    Hutchinson's estimator is the mean of `v' H v` over vectors v of random signs. Each kernel has its
    own vectors. One vector for all kernels would give the same expectation, but the loss contains
    products of kernels, whose contributions are noise that exceeds the traces.

    Args:
        network: A `Network`.
        batches: Pairs of images and labels. Each pair has its own random vectors.
        draws: Vectors per batch and kernel.
        random: A `tf.random.Generator`.
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
    """Returns `{tensor id: traces [N]}` of the Hessian of each image's loss.

    The estimator is that of `kernel_traces`. One vector serves all images, because their losses do not
    depend on each other, and all activations, because they are seldom multiplied with each other. The
    entries of the vector have the scale of each activation's rounding errors, so that no pair of
    activations adds noise that exceeds a small trace. The result is divided by that scale again.

    Args:
        network, batches, draws, random: See `kernel_traces`.
        scales: Magnitude of the entries for each activation point that has a choice of bits.
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
    """Returns the product of the Hessian of the summed losses with vectors, by differentiating twice."""
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
    """Returns an `ActivationQuantizer` for each point with a choice of bits, calibrated on all images."""
    quantizers = [
        ActivationQuantizer(point.bit_widths, range=point.range) for point in network.decided
    ]
    for quantizer in quantizers:
        quantizer.observe()
    for images, labels in batches:
        network.losses(images, labels, lambda tensor, x: quantizers[network.columns[tensor]](x))
    for quantizer in quantizers:
        quantizer.calibrate()
    return quantizers


def _activation_errors(network, batches, calibrated):
    """Returns `{tensor id: squared errors [N, K]}` of each image's activations at K bit-widths."""
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
