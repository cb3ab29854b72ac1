"""QONNX files against the models that they are written from, run by qonnx's own executor."""

import keras
import numpy as np
import pytest
from helpers import qonnx_runs
from helpers.frozen_models import batch_norm
from qonnx.core.modelwrapper import ModelWrapper

import dqmq_tf
from dqmq_tf import export
from dqmq_tf.export import qonnx_graph

layers = keras.layers


def frozen(model, data, budget=4.0, profiles=1):
    """A frozen `DQMQModel` for simulation, whose scales follow the quality noticeably."""
    qmodel = dqmq_tf.quantize_model(
        model,
        target="simulation",
        budget=dqmq_tf.Budget(mean_bit_width=budget),
        config=dqmq_tf.DQMQConfig(seed=0),
    )
    qmodel.calibrate(data)
    qmodel.freeze(profiles=profiles, data=data)
    generator = np.random.default_rng(5)
    for affine in qmodel._parts.affines:
        for variable in (affine.scale_direction, affine.shift_direction):
            variable.assign(generator.normal(0, 0.4, variable.shape))
    centroids = qmodel._parts.policy.centroids
    centroids.assign(generator.uniform(-0.9, 0.9, centroids.shape))
    return qmodel


def images(count=64):
    """Patterns of different colors and contrasts `[count, 8, 8, 3]` in [0, 1]."""
    generator = np.random.default_rng(3)
    coarse = generator.uniform(-1, 1, (count, 2, 2, 3)) * generator.uniform(0, 2, (count, 1, 1, 1))
    noise = generator.normal(0, 0.1, (count, 8, 8, 3))
    return np.clip(0.5 + coarse.repeat(4, 1).repeat(4, 2) + noise, 0, 1).astype("float32")


def block(x, filters, name, strides=1):
    x = layers.Conv2D(
        filters, 3, strides=strides, padding="same", use_bias=False, name=f"{name}_conv"
    )(x)
    return layers.ReLU(name=f"{name}_relu")(batch_norm(len(name))(x))


def image_network():
    """All kinds of layers for images, with one output for classes and one for a map."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = block(inputs, 8, "first")
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(x)
    y = layers.ReLU(6.0, name="relu6")(batch_norm(20)(y))
    y = batch_norm(30)(layers.Conv2D(8, 1, name="pointwise")(y))
    x = layers.ReLU(name="sum_relu")(layers.Add(name="sum")([x, y]))
    a = layers.MaxPooling2D(3, 2, padding="same", name="largest")(x)
    # The means of nine values on a grid are never halfway between two of its points. Those of four
    # often are, and there the last bit of a sum decides.
    b = layers.AveragePooling2D(3, 2, name="average")(x)
    b = layers.ZeroPadding2D(((0, 2), (2, 1)), name="zeros")(b)
    b = layers.Conv2D(6, (2, 3), activation="relu", name="valid")(b)
    x = layers.Concatenate(name="both")([a, b])
    x = block(x, 10, "last", strides=2)
    every = layers.Flatten(name="every")(layers.Dropout(0.2)(x))
    largest = layers.Flatten()(layers.GlobalMaxPooling2D(keepdims=True)(x))
    x = layers.Dense(16, activation="relu", name="hidden")(layers.Concatenate()([every, largest]))
    classes = layers.Dense(
        10,
        activation="softmax",
        kernel_initializer=keras.initializers.RandomNormal(stddev=1.5, seed=0),
        name="classes",
    )(x)
    return keras.Model(inputs, [classes, a])


def signal_network():
    """Layers for signals, with scales around zero and a mean."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((24, 2), name="signal")
    x = layers.Conv1D(8, 5, strides=2, padding="causal", name="causal")(inputs)
    x = layers.Activation("tanh", name="tanh")(x)
    x = layers.DepthwiseConv1D(3, padding="same", name="depthwise")(x)
    x = layers.Activation("relu6")(batch_norm(3)(x))
    x = layers.MaxPooling1D(2)(layers.ZeroPadding1D((1, 1))(x))
    x = layers.Reshape((7, 4, 2), name="as_image")(x)
    x = layers.Conv2D(6, 2, activation="relu", name="image_conv")(x)
    x = layers.SeparableConv2D(8, 2, padding="same", name="separable")(x)
    x = layers.Dense(5, activation="relu", name="at_each_position")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    large = keras.initializers.RandomNormal(stddev=8, seed=0)
    x = layers.Dense(3, activation="sigmoid", kernel_initializer=large, name="scores")(x)
    return keras.Model(inputs, x)


@pytest.fixture(scope="module")
def of_images(tmp_path_factory):
    """A frozen model, the path of its file, and the report."""
    qmodel = frozen(image_network(), images())
    path = tmp_path_factory.mktemp("qonnx") / "images.onnx"
    return qmodel, path, dqmq_tf.export_qonnx(qmodel, path)


def quant_nodes(path):
    model = ModelWrapper(str(path))
    return model, {node.name: node for node in model.get_nodes_by_op_type("Quant")}


def test_a_file_computes_what_the_model_computes(of_images):
    qmodel, path, _ = of_images
    classes, maps = qonnx_runs.run(path, images())
    expected_classes, expected_maps = qonnx_runs.predicted(qmodel, images())
    assert len(np.unique(expected_classes.argmax(-1))) > 4
    assert (classes.argmax(-1) == expected_classes.argmax(-1)).all()
    assert qonnx_runs.equal_outputs(classes, expected_classes) >= 60
    assert qonnx_runs.equal_outputs(maps, expected_maps) >= 60


def test_the_quality_matters_for_the_outputs(of_images, tmp_path):
    qmodel, path, _ = of_images
    centroids = qmodel._parts.policy.centroids
    before = centroids.numpy()
    centroids.assign(-before)
    dqmq_tf.export_qonnx(qmodel, tmp_path / "other.onnx")
    other = qonnx_runs.predicted(qmodel, images())[0]
    classes = qonnx_runs.run(tmp_path / "other.onnx", images())[0]
    centroids.assign(before)
    assert qonnx_runs.equal_outputs(classes, other) >= 60
    assert qonnx_runs.equal_outputs(qonnx_runs.run(path, images())[0], other) < 32


@pytest.mark.parametrize("name", ["first_conv/kernel", "sum_relu", "classes/kernel"])
def test_a_wrong_scale_of_any_kind_is_seen(of_images, name):
    qmodel, path, _ = of_images
    model, nodes = quant_nodes(path)
    scale = nodes[f"{name}/quant"].input[1]
    model.set_initializer(scale, model.get_initializer(scale) * np.float32(1.05))
    expected = qonnx_runs.predicted(qmodel, images())[0]
    assert qonnx_runs.equal_outputs(qonnx_runs.run(model, images())[0], expected) < 32


def test_quant_nodes_have_the_bits_and_scales_of_the_profile(of_images):
    qmodel, path, _ = of_images
    model, nodes = quant_nodes(path)
    precision = qmodel.precision()
    kernels = {
        f"{layer}/{name}": weight
        for layer, variables in precision.weights.items()
        for name, weight in variables.items()
    }
    assert {f"{name}/quant" for name in kernels} <= nodes.keys()
    for name, weight in kernels.items():
        _, scale, zero_point, bits = map(model.get_initializer, nodes[f"{name}/quant"].input)
        assert bits == weight.bit_width and zero_point == 0
        np.testing.assert_array_equal(np.sort(scale.ravel()), np.sort(weight.step.ravel()))
    bits = [float(model.get_initializer(node.input[3])) for node in nodes.values()]
    assert len(set(bits)) > 2
    activations = {(p.bit_width, np.float32(p.step)) for p in precision.activations.values()}
    found = {
        (int(model.get_initializer(node.input[3])), model.get_initializer(node.input[1]).item())
        for name, node in nodes.items()
        if name.removesuffix("/quant") not in kernels
    }
    assert found == activations


def test_qonnx_counts_the_cost_that_the_policy_counted(of_images):
    qmodel, path, report = of_images
    assert not [name for name in report.zero_points if "relu" in name]
    bit_ops, mean_bits = qonnx_runs.cost_by_qonnx(path)
    expected_bit_ops, expected_mean_bits = qonnx_runs.cost_by_policy(qmodel)
    assert bit_ops == pytest.approx(expected_bit_ops, rel=0.01)
    assert mean_bits == pytest.approx(expected_mean_bits, rel=0.01)


def test_a_file_of_static_bits_costs_what_the_budget_allows(tmp_path):
    budget = 4.0
    qmodel = dqmq_tf.quantize_model(
        image_network(),
        target="simulation",
        budget=dqmq_tf.Budget(mean_bit_width=budget),
        config=dqmq_tf.DQMQConfig(seed=0, quality_aware=False),
    )
    qmodel.calibrate(images())
    report = dqmq_tf.export_qonnx(qmodel, tmp_path / "static.onnx")
    bit_ops, mean_bits = qonnx_runs.cost_by_qonnx(report.path)
    assert mean_bits == pytest.approx(budget, rel=0.01) and mean_bits <= budget
    assert (report.bit_ops, report.deciding_bit_ops) == (pytest.approx(bit_ops), 0.0)
    # The bits are mixed: the budget is not met by one bit-width for all.
    weights = [w.bit_width for v in qmodel.precision().weights.values() for w in v.values()]
    assert len(set(weights)) > 1


def test_the_report_says_what_a_budget_counts_beside_the_file(of_images):
    qmodel, path, report = of_images
    bit_ops, mean_bits = qonnx_runs.cost_by_qonnx(path)
    assert report.bit_ops == pytest.approx(bit_ops)
    assert report.mean_bit_width == pytest.approx(mean_bits)
    # The network alone costs less than the budget. With what decides the bits, it is met.
    assert mean_bits < 0.99 * qmodel.budget.value
    macs = report.bit_ops / report.mean_bit_width**2
    whole = ((report.bit_ops + report.deciding_bit_ops) / macs) ** 0.5
    assert whole == pytest.approx(qmodel.budget.value, rel=0.01) and whole <= qmodel.budget.value


def test_the_report_says_what_was_written(of_images):
    _, path, report = of_images
    assert isinstance(report, export.QonnxReport)
    assert report.size_bytes == path.stat().st_size
    assert report.input_shapes == {"image": (1, 3, 8, 8)}
    model, _ = quant_nodes(path)
    assert [entry.name for entry in model.graph.output] == ["classes", "largest"]


def test_signals_and_scales_around_zero(tmp_path):
    signals = np.random.default_rng(4).uniform(-1, 1, (64, 24, 2)).astype("float32")
    qmodel = frozen(signal_network(), signals)
    report = dqmq_tf.export_qonnx(qmodel, tmp_path / "signals.onnx")
    (scores,) = qonnx_runs.run(report.path, signals)
    (expected,) = qonnx_runs.predicted(qmodel, signals)
    assert len(np.unique(expected)) > 4
    assert qonnx_runs.equal_outputs(scores, expected) >= 60
    # The fixed grid of tanh is around zero: signed, without a zero point.
    assert not [name for name in report.zero_points if "tanh" in name]


def test_a_tensor_may_be_several_outputs(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, name="map")(inputs)
    y = layers.Dense(3, name="classes")(layers.Flatten()(x))
    qmodel = frozen(keras.Model(inputs, [x, y, layers.Dropout(0.5)(y), x, y]), images())
    path = tmp_path / "model.onnx"
    export.export_qonnx(qmodel, path)
    found = qonnx_runs.run(path, images(8))
    assert len(found) == 5
    for outputs, expected in zip(found, qonnx_runs.predicted(qmodel, images(8))):
        np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_a_layer_that_qonnx_does_not_hold_is_named_and_nothing_is_written(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    x = layers.UpSampling2D(name="larger")(x)
    qmodel = dqmq_tf.quantize_model(keras.Model(inputs, x), target="simulation")
    qmodel.calibrate(images(8))
    with pytest.raises(dqmq_tf.UnsupportedLayerError, match="'larger' .UpSampling2D.*cannot be"):
        dqmq_tf.export_qonnx(qmodel, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir()) and not qmodel.frozen_profiles


def test_options_that_qonnx_does_not_hold_are_named(tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="relu", name="conv")(inputs)
    qmodel = frozen(keras.Model(inputs, layers.Softmax(axis=1, name="columns")(x)), images(8))
    with pytest.raises(dqmq_tf.UnsupportedLayerError, match="'columns' .Softmax: axis=1"):
        dqmq_tf.export_qonnx(qmodel, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_wrong_arguments_are_refused(of_images, tmp_path, monkeypatch):
    qmodel, _, _ = of_images
    with pytest.raises(ValueError, match="must end in '.onnx'"):
        dqmq_tf.export_qonnx(qmodel, tmp_path / "m.tflite")
    with pytest.raises(ValueError, match="profile=3 does not exist"):
        dqmq_tf.export_qonnx(qmodel, tmp_path / "m.onnx", profile=3)
    with pytest.raises(ValueError, match="must be a DQMQModel"):
        dqmq_tf.export_qonnx(keras.Sequential(), tmp_path / "m.onnx")

    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(qonnx_graph.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r'pip install "\.\[qonnx\]" in the checkout'):
        dqmq_tf.export_qonnx(qmodel, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_earlier_file(of_images, tmp_path, monkeypatch):
    qmodel, _, _ = of_images
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")

    def full(*args):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        dqmq_tf.export_qonnx(qmodel, path)
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]
