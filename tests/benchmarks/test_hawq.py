import itertools
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from study import assignments, hawq, integer_program

from dqmq_tf import targets
from dqmq_tf.budget import costs
from dqmq_tf.graph.decision_points import ActivationPoint, WeightPoint

layers = keras.layers
RESNET = (
    pathlib.Path(__file__).parents[3] / "shared" / "models" / "mlperf_tiny" / "pretrainedResnet.h5"
)
BITS = (2, 4, 8)


@pytest.fixture(scope="module")
def tiny():
    """A network with 28 weights, and images and labels for it."""
    keras.utils.set_random_seed(3)
    x = inputs = keras.Input((5, 5, 1), name="image")
    x = layers.Conv2D(2, 3, use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(moving_variance_initializer="ones", name="norm")(x)
    x = layers.ReLU(name="relu")(x)
    x = layers.Flatten(name="flatten")(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax", name="head")(x))
    random = np.random.default_rng(0)
    return model, random.uniform(0, 2, (6, 5, 5, 1)).astype("float32"), np.arange(6) % 3


def exact_trace(function, x):
    """Returns the exact trace of the Hessian of `function()`, computed column by column."""
    with tf.GradientTape(persistent=True) as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            value = function()
        columns = tf.unstack(tf.reshape(inner.gradient(value, x), [-1]))
    return sum(
        tf.reshape(outer.gradient(column, x), [-1])[i].numpy() for i, column in enumerate(columns)
    )


def cross_entropy(model, x, labels):
    return -tf.reduce_mean(tf.math.log(tf.gather(model(x), labels, axis=1, batch_dims=1)))


def batches(images, labels, size):
    return [
        (tf.constant(images[i : i + size]), tf.constant(labels[i : i + size]))
        for i in range(0, len(images), size)
    ]


def test_kernel_traces_equal_those_of_the_exact_hessian(tiny):
    model, images, labels = tiny
    network = hawq.Network(model, assignments.cost_model(model))
    random = tf.random.Generator.from_seed(0)
    # Batches of 4 and 2 images: each image must count the same.
    found = hawq.kernel_traces(network, batches(images, labels, 4), 500, random)
    for name, trace in zip(("conv", "head"), found):
        kernel = model.get_layer(name).kernel.value
        exact = exact_trace(lambda: cross_entropy(model, images, labels), kernel)
        assert trace == pytest.approx(exact, rel=0.1)


def test_activation_traces_equal_the_exact_ones_for_each_image(tiny):
    model, images, labels = tiny
    network = hawq.Network(model, assignments.cost_model(model))
    assert [point.name for point in network.decided] == ["image", "relu"]
    random = tf.random.Generator.from_seed(0)
    found = hawq.activation_traces(network, batches(images, labels, 4), [0.01, 0.02], 800, random)
    relu = model.get_layer("relu").output
    heads = [model, keras.Model(relu, model.output)]
    values = [images, keras.Model(model.input, relu)(images).numpy()]
    for tensor, column in network.columns.items():
        assert found[tensor].shape == (6,)
        for n in range(6):
            x = tf.constant(values[column][n : n + 1])
            exact = exact_trace(
                lambda x=x, n=n, head=heads[column]: cross_entropy(head, x, labels[n : n + 1]), x
            )
            assert found[tensor][n] == pytest.approx(exact, rel=0.2)


def test_sensitivities_are_half_the_mean_curvature_times_the_squared_error(tiny):
    model, images, labels = tiny
    network = hawq.Network(model, assignments.cost_model(model))
    weights, activations = hawq.sensitivities(network, images, labels, draws=200, batch=3)
    kernel = model.get_layer("head").kernel.value
    trace = exact_trace(lambda: cross_entropy(model, images, labels), kernel)
    for bits in (2, 3, 8):
        step = np.abs(kernel.numpy()).max(axis=0) / (2 ** (bits - 1) - 1)
        plain = np.square(np.round(kernel / step) * step - kernel).sum()
        # The steps have the least error, so no more than steps that reach the largest weight.
        assert 0 < weights[1][bits] <= 0.5 * trace / 54 * plain * 1.1
    for row in (*weights, *activations):
        assert sorted(row, key=row.get, reverse=True) == sorted(row)
    assert activations[0][2] > 100 * activations[0][8]


def activation(name, bits=BITS):
    return ActivationPoint(
        name=name, slots=(), tensors=(), bit_widths=bits, range="affine", decided=len(bits) > 1
    )


def weight(name, source, macs, shape):
    return WeightPoint(
        name=f"{name}:kernel",
        path=name,
        variable="kernel",
        op_kind="conv",
        channel_axes=(3,),
        shape=shape,
        macs=macs,
        input=source,
        bit_widths=BITS,
    )


def problem(kind, target, seed):
    """Returns three layers, two of which read the same activation, with random sensitivities."""
    random = np.random.default_rng(seed)
    shapes = [(3, 3, 3, 8), (3, 3, 8, 16), (1, 1, 8, 16)]
    points = [
        weight(name, source, int(macs), shape)
        for name, source, macs, shape in zip("abc", (0, 1, 1), random.integers(1, 9, 3), shapes)
    ]
    free = target == "simulation"
    inputs = [activation("image", (8,)), activation("x", BITS if free else (8,))]
    model = costs.CostModel(kind, targets.get(target), inputs, points)
    limits = {bits: 2 ** (bits - 1) - 1 for bits in BITS}
    integers = [
        {b: random.integers(-m, m + 1, shape) for b, m in limits.items()} for shape in shapes
    ]
    model.measure(lambda i, b: integers[i][b])

    def sensitivities():
        return {b: float(random.uniform(0.5, 2) * 4.0**-b) for b in BITS}

    weights = [sensitivities() for _ in points]
    return model, weights, [sensitivities() for _ in model.decided]


def brute_force(model, weights, activations, budget, cost):
    """Tries all assignments. Returns `(sensitivity, weight bits, activation bits)` of the best, or None."""
    rows = [*weights, *activations]
    found = []
    for bits in itertools.product(BITS, repeat=len(rows)):
        split = list(bits[: len(weights)]), list(bits[len(weights) :])
        if cost(*split) <= budget:
            found.append((sum(row[b] for row, b in zip(rows, bits)), *split))
    return min(found, default=None)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", [3.0, 4.0, 5.3, 8.0])
def test_bits_for_a_mean_bit_width_are_the_best_of_all_assignments(budget, seed):
    model, weights, activations = problem("mean_bit_width", "simulation", seed)
    best = brute_force(model, weights, activations, budget, model.exact)
    assert integer_program.choose(model, weights, activations, budget) == (best and best[1:])
    if best:
        found = integer_program.solve(model, weights, activations, budget)
        assert list(found.values()) == [*best[1], *best[2]]
        assert list(found) == ["a:kernel", "b:kernel", "c:kernel", "x"]


@pytest.mark.parametrize("seed", range(4))
def test_tied_kernels_have_the_bits_of_their_layers_inputs(seed):
    model, weights, activations = problem("mean_bit_width", "simulation", seed)
    readers = [i for i, column in enumerate(model.input_column) if column >= 0]
    assert readers

    def tied_cost(weight_bits, activation_bits):
        tied = all(weight_bits[i] == activation_bits[model.input_column[i]] for i in readers)
        return model.exact(weight_bits, activation_bits) if tied else np.inf

    best = brute_force(model, weights, activations, 5.0, tied_cost)
    assert integer_program.choose(model, weights, activations, 5.0, tied=True) == best[1:]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share", [0.1, 0.4, 0.8, 1.0])
@pytest.mark.parametrize("kind", ["download_bytes", "size_bytes"])
def test_bits_for_a_budget_in_bytes_are_the_best_of_all_assignments(kind, share, seed):
    target = "android" if kind == "download_bytes" else "microcontroller"
    model, weights, _ = problem(kind, target, seed)
    ends = [model.exact([bits] * 3, []) for bits in (2, 8)]
    budget = ends[0] + share * (ends[1] - ends[0])
    best = brute_force(model, weights, [], budget, model.exact)
    assert integer_program.choose(model, weights, [], budget) == best[1:]


@pytest.mark.parametrize("seed", range(4))
def test_a_budget_in_bytes_counts_the_bytes_of_the_file(seed):
    model, weights, _ = problem("download_bytes", "android", seed)
    ends = [model.of_file([bits] * 3, []) for bits in (2, 8)]
    for budget in np.linspace(*ends, 9)[:-1]:
        bits = list(integer_program.solve(model, weights, [], budget).values())
        assert model.of_file(bits, []) <= budget
        best = brute_force(model, weights, [], budget, model.of_file)
        assert sum(row[b] for row, b in zip(weights, bits)) <= 2 * best[0]


def test_the_error_for_a_budget_that_is_too_small_names_the_smallest_cost():
    model, weights, activations = problem("mean_bit_width", "simulation", 0)
    smallest = model.exact([2, 2, 2], [2])
    with pytest.raises(ValueError, match=f"mean_bit_width=1.5 .* {smallest:,.6g}"):
        integer_program.solve(model, weights, activations, 1.5)
    model, weights, _ = problem("download_bytes", "android", 0)
    with pytest.raises(ValueError, match="download_bytes=300 is below the smallest possible"):
        integer_program.solve(model, weights, [], 300)


def test_layers_that_matter_more_get_more_bits():
    keras.utils.set_random_seed(5)
    inputs = keras.Input((6, 6, 3), name="image")
    branches = []
    for name, scale in (("loud", 4.0), ("quiet", 0.1)):
        x = layers.Conv2D(8, 3, activation="relu", name=f"{name}_conv")(inputs)
        x = layers.GlobalAveragePooling2D(name=f"{name}_pool")(x)
        x = layers.Dense(4, name=f"{name}_dense")(x)
        branches.append(layers.Rescaling(scale, name=f"{name}_scale")(x))
    outputs = layers.Softmax(name="softmax")(layers.Add(name="sum")(branches))
    model = keras.Model(inputs, outputs)
    images = np.random.default_rng(0).uniform(0, 2, (16, 6, 6, 3)).astype("float32")
    cost_model = assignments.cost_model(model)
    bits = hawq.assign(model, images, np.arange(16) % 4, cost_model, 4.0, batch=8)
    assert assignments.cost(cost_model, bits) <= 4.0
    assert set(bits) == set(assignments.uniform(cost_model, 4, 4))
    # The classifiers are so cheap that both get the most bits.
    assert bits["loud_conv:kernel"] > bits["quiet_conv:kernel"] + 1
    assert bits["loud_dense:kernel"] == bits["quiet_dense:kernel"] == 8


def test_a_model_without_softmax_is_an_error():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, name="head")])
    with pytest.raises(ValueError, match="'head' is no softmax: add one at the end"):
        hawq.Network(model, assignments.cost_model(model))


@pytest.mark.skipif(not RESNET.exists(), reason="MLPerf Tiny's ResNet-8 is not available")
def test_the_bits_of_resnet_8_use_most_of_each_budget():
    model = keras.models.load_model(RESNET, compile=False)
    images = np.random.default_rng(0).uniform(0, 255, (8, 32, 32, 3)).astype("float32")
    labels = np.arange(8) % 10
    cost_model = assignments.cost_model(model)
    network = hawq.Network(model, cost_model)
    added = hawq.sensitivities(network, images, labels, draws=1, batch=8)
    for budget in (2.5, 3.0, 4.0):
        cost = assignments.cost(cost_model, integer_program.solve(cost_model, *added, budget))
        assert 0.97 * budget <= cost <= budget
    in_bytes = assignments.cost_model(model, "download_bytes", "android")
    bits = hawq.assign(model, images, labels, in_bytes, 45_000, draws=1, batch=8)
    found = in_bytes.of_file([bits[point.name] for point in in_bytes.weights], [])
    assert 0.97 * 45_000 <= found <= 45_000
