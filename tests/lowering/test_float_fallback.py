"""Layers in floating point amid integers: why they are, what they compute, how they are stored."""

import keras
import numpy as np
import pytest
from helpers.frozen_models import batch_norm, freeze, images
from helpers.networks import assert_simulates, chain, frozen, names, written
from helpers.predictions import predicted

from dqmq_tf import export, flatbuffer, graph, runtimes
from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.lowering import rules
from dqmq_tf.lowering.lowered_model import lower_graph
from dqmq_tf.precision import Precision

layers = keras.layers


@keras.saving.register_keras_serializable(package="dqmq_tf_tests")
class Mixture(layers.Layer):
    """A layer that this package has never heard of, with two kernels."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.first = self.add_weight(name="first", shape=(shape[-1], self.units))
        self.second = self.add_weight(name="second", shape=(shape[-1], self.units))
        self.bias = self.add_weight(name="bias", shape=(self.units,))

    def call(self, x):
        one, two = keras.ops.matmul(x, self.first), keras.ops.matmul(x, self.second)
        return keras.ops.sin(one) * two + self.bias

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Block(layers.Layer):
    """A layer made of layers that have no names of their own: Keras numbers each copy on."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.wide = layers.Dense(2 * units, activation="elu")
        self.narrow = keras.Sequential([layers.Dense(units)])

    def build(self, shape):
        self.wide.build(shape)
        self.narrow.build((*shape[:-1], 2 * self.units))
        self.own = self.add_weight(shape=(self.units, self.units))

    def call(self, x):
        return self.narrow(self.wide(x)) @ self.own

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class Forgetful(layers.Layer):
    """Its config lacks what it needs to be built."""

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x):
        return x * self.factor

    def get_config(self):
        return super(layers.Layer, self).get_config()


class ForgetfulShift(Forgetful):
    """Its config lacks what it needs to be built, and it has a weight."""

    def build(self, shape):
        self.shift = self.add_weight(name="shift", shape=(shape[-1],))

    def call(self, x):
        return super().call(x) + self.shift


@pytest.mark.parametrize(
    "keep, reasons",
    [
        ("middle", {"middle": "its weights are left in floating point by a rule",
                    "relu": "its input is in floating point"}),
        ("relu", {"middle": "its output is left in floating point by a rule",
                  "relu": "its input is in floating point"}),
        ("image", {"first": "its input is in floating point"}),
    ],
)  # fmt: skip
def test_rule_leaves_a_layer_in_floating_point(keep, reasons, tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6, 3), name="image")
    x = layers.Conv2D(4, 3, name="first")(inputs)
    x = layers.ReLU(name="relu")(layers.Conv2D(4, 3, name="middle")(x))
    qmodel = freeze(keras.Model(inputs, layers.Dense(2, name="head")(x)), keep=[keep])
    lowered = assert_simulates(qmodel)
    found = {path: why for path, why in lowered.float_layers.items() if path in reasons}
    assert found == reasons
    model, report = written(qmodel, tmp_path)
    assert set(report.float_layers) == set(lowered.float_layers)
    assert report.verification.different_numbers == 0


def stored(model):
    """Types and shapes of what DEQUANTIZE operators restore from the file."""
    part, found = model.subgraphs[0], []
    for operator in part.operators:
        tensor = part.tensors[operator.inputs[0]]
        if flatbuffer.operator_name(model, operator) == "DEQUANTIZE":
            if flatbuffer.is_constant(model, tensor):
                found.append(tensor)
    return found


def test_custom_layer_computes_in_floats_on_integers(tmp_path):
    qmodel = frozen((6,), layers.Dense(5), Mixture(4, name="mix"), layers.Dense(2))
    lowered = assert_simulates(qmodel)
    assert lowered.float_layers == {"mix": "TFLite has no integer kernel for Mixture"}
    model, report = written(qmodel, tmp_path)
    assert [row.operator for row in report.weights].count("DEQUANTIZE") == 2
    given = qmodel.precision().weights["mix"]
    held = stored(model)
    assert [flatbuffer.type_name(tensor) for tensor in held] == ["INT8", "INT8"]
    for name in ("first", "second"):
        integers = np.asarray(given[name].integers)
        assert any(
            np.array_equal(flatbuffer.constant(model, t).ravel(), array.ravel())
            for t in held
            for array in (integers, integers.T)
        )
    # The values themselves stand nowhere.
    assert not [
        t
        for t in model.subgraphs[0].tensors
        if flatbuffer.type_name(t) == "FLOAT32"
        and flatbuffer.is_constant(model, t)
        and np.prod(t.shape) >= given["first"].integers.size
    ]


def test_layers_inside_a_custom_layer_need_no_names_for_the_file_to_hold_their_integers(tmp_path):
    qmodel = frozen((6,), layers.Dense(5), Block(4, name="block"), layers.Dense(2))
    given = qmodel.precision().weights["block"]
    assert len(given) == 3
    assert_simulates(qmodel)
    _, report = written(qmodel, tmp_path)
    rows = [row for row in report.weights if row.name.startswith("block")]
    assert [row.name for row in rows] == [f"block/{name}" for name in given]
    assert {row.container for row in rows} == {"INT8"}


class PatchEncoder(layers.Layer):
    """The one of Keras's example of a vision transformer: a table is added behind a bias."""

    def __init__(self, table, **kwargs):
        super().__init__(**kwargs)
        self.table = table
        self.projection = layers.Dense(4)
        self.positions = layers.Embedding(6, 4) if table == "embedding" else None

    def build(self, shape):
        self.projection.build(shape)
        if self.positions is None:
            self.own = self.add_weight(shape=(1, 6, 4), initializer="normal", name="own")
        else:
            self.positions.build((1, 6))

    def call(self, x):
        added = self.own if self.positions is None else self.positions(keras.ops.arange(6)[None])
        return self.projection(x) + added

    def get_config(self):
        return {**super().get_config(), "table": self.table}


@pytest.mark.parametrize("table", ["embedding", "own"])
def test_a_table_that_is_added_behind_a_bias_is_stored_in_integers(table, tmp_path):
    stack = layers.Conv1D(5, 1), PatchEncoder(table, name="encoder"), layers.Flatten()
    qmodel = frozen((6, 3), *stack, layers.Dense(2))
    assert_simulates(qmodel)
    _, report = written(qmodel, tmp_path)
    rows = [row for row in report.weights if row.name.startswith("encoder")]
    assert {row.count for row in rows} >= {5 * 4, 6 * 4}
    assert {row.container for row in rows} == {"INT8"}
    assert report.verification.different_numbers == 0


class Residual(layers.Layer):
    """Normalizes the outputs of a convolution inside it."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.convolution = layers.Conv2D(filters, 3, padding="same", use_bias=False)
        self.normalization = batch_norm(0)

    def build(self, shape):
        self.convolution.build(shape)
        self.normalization.build((*shape[:-1], self.filters))

    def call(self, x, training=False):
        change = self.normalization(self.convolution(x), training=training)
        return keras.ops.relu(x + change)

    def get_config(self):
        return {**super().get_config(), "filters": self.filters}


def test_a_kernel_that_is_normalized_inside_a_custom_layer_is_stored_in_integers(tmp_path):
    qmodel = frozen((6, 6, 2), layers.Conv2D(4, 3), Residual(4, name="residual"), layers.Dense(2))
    assert_simulates(qmodel)
    _, report = written(qmodel, tmp_path)
    (row,) = [row for row in report.weights if row.name.startswith("residual")]
    assert (row.count, row.container) == (3 * 3 * 4 * 4, "INT8")
    assert report.verification.different_numbers == 0


def test_layer_normalization_is_in_floating_point(tmp_path):
    qmodel = frozen(
        (5, 6), layers.Dense(4), layers.LayerNormalization(name="norm"), layers.Dense(2)
    )
    lowered = assert_simulates(qmodel)
    assert list(lowered.float_layers) == ["norm"]
    # So the errors of TensorFlow's converter name it.
    assert [x for x in lowered.model.layers if x.name.endswith("_norm")]
    model, report = written(qmodel, tmp_path)
    assert report.verification.different_numbers == 0
    assert report.verification.largest_quanta <= 1.01
    assert not stored(model)


@pytest.mark.parametrize(
    "shape, layer",
    [
        ((4, 3), layers.LSTM(4)),
        ((4, 3), layers.GRU(3, return_sequences=True)),
        ((4, 3), layers.Bidirectional(layers.LSTM(2))),
        ((3, 5, 3), layers.ConvLSTM1D(2, 3, strides=2, use_bias=False)),
        ((3, 4, 5, 3), layers.Bidirectional(layers.ConvLSTM2D(2, 3, padding="same"))),
    ],
    ids=["LSTM", "GRU", "Bidirectional", "ConvLSTM1D", "Bidirectional ConvLSTM2D"],
)
def test_recurrent_layer_is_unrolled_and_keeps_nothing(shape, layer, tmp_path):
    qmodel = frozen(shape, type(layer).from_config(layer.get_config()), layers.Dense(2))
    assert len(assert_simulates(qmodel).float_layers) == 1
    model, _ = written(qmodel, tmp_path)
    assert not {"WHILE", "CALL", "IF"} & set(names(model))
    assert not any("SEQUENCE" in name or "LSTM" in name for name in names(model))
    assert len(model.subgraphs) == 1 and not any(t.isVariable for t in model.subgraphs[0].tensors)
    assert len(stored(model)) == (4 if isinstance(layer, layers.Bidirectional) else 2)
    x = images(qmodel, 2)
    contents = (tmp_path / "model.tflite").read_bytes()
    (found,) = runtimes.run(contents, [x[[0, 1, 0]]]).outputs
    np.testing.assert_array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[1])


@pytest.mark.parametrize("bits", [6, 3])
def test_weights_of_an_island_that_could_be_integers(bits, tmp_path):
    """A convolution whose output a rule leaves in floating point still takes its bits."""
    parts = layers.Conv2D(4, 3, name="conv"), layers.ReLU(name="relu"), layers.Dense(2)
    qmodel = frozen((6, 6, 3), *parts, bits={"conv": bits}, target="android_small", keep=["relu"])
    assert "conv" in assert_simulates(qmodel).float_layers
    model, report = written(qmodel, tmp_path)
    (row,) = [row for row in report.weights if row.name.startswith("conv")]
    assert row.operator == "DEQUANTIZE" and row.bit_width == bits
    container = "INT4" if bits <= 4 else "INT8"
    assert row.container == container
    given = qmodel.precision().weights["conv"]["kernel"]
    (tensor,) = [held for held in stored(model) if len(held.shape) == 4]
    assert flatbuffer.type_name(tensor) == container
    assert sorted(flatbuffer.constant(model, tensor).ravel()) == sorted(given.integers.ravel())
    assert abs(flatbuffer.constant(model, tensor)).max() <= 2 ** (bits - 1) - 1


def test_no_integer_at_all(tmp_path):
    keep = ["image", "one"]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), name="image")
    x = layers.Dense(4, activation="elu", name="one")(inputs)
    qmodel = freeze(keras.Model(inputs, Mixture(3, name="mix")(x)), keep=keep)
    assert_simulates(qmodel)
    model, _ = written(qmodel, tmp_path)
    assert [flatbuffer.type_name(t) for t in stored(model)] == ["INT8", "INT8"]
    assert "QUANTIZE" not in names(model)


def test_layer_with_weights_that_cannot_be_built_anew_is_refused_by_name():
    traced = graph.trace(chain((6,), layers.Dense(4), ForgetfulShift(2.0, name="forgets")))
    with pytest.raises(UnsupportedLayerError, match="(?s)'forgets'.*Implement get_config"):
        lower_graph(traced, Precision(weights={}, activations={}))


def test_layer_without_weights_that_cannot_be_built_anew_is_called_as_it_is(tmp_path):
    keras.utils.set_random_seed(0)
    qmodel = freeze(chain((6,), layers.Dense(4), Forgetful(2.0, name="forgets")))
    assert_simulates(qmodel)
    _, report = written(qmodel, tmp_path)
    assert list(report.float_layers) == ["forgets"]


@pytest.mark.parametrize(
    "shape, layer, found",
    [
        ((5,), layers.Embedding(9, 4, mask_zero=True, name="it"), "Embedding: it makes a mask"),
        ((5, 3), layers.Masking(name="it"), "Masking: it makes a mask"),
    ],
)
def test_masks_are_refused_by_name(shape, layer, found):
    with pytest.raises(UnsupportedLayerError, match=f"'it' .{found}"):
        rules.check_supported(graph.trace(chain(shape, layer)))


def test_states_are_refused_by_name():
    inputs = keras.Input(batch_shape=(1, 5, 3))
    model = keras.Model(inputs, layers.LSTM(4, stateful=True, name="it")(inputs))
    with pytest.raises(UnsupportedLayerError, match="'it' .LSTM: stateful=True"):
        rules.check_supported(graph.trace(model))


def test_an_output_that_a_float_layer_reads_may_be_int8(tmp_path):
    inputs = keras.Input((8, 8, 3))
    a = keras.ops.sin(inputs)
    qmodel = freeze(keras.Model(inputs, [layers.Conv2D(2, 3)(keras.ops.cos(a)), a]))
    export.convert(qmodel, tmp_path / "m.tflite", data=images(qmodel), io_dtype="int8")
    export.convert(qmodel, tmp_path / "m.tflite", data=images(qmodel))


@pytest.mark.parametrize(
    "first, io_dtype",
    [
        (layers.LayerNormalization(), "float32"),
        (keras.ops.exp, "int8"),
        ("log of a log", "float32"),
        ("log of a log", "int8"),
    ],
)
def test_a_float_layer_reads_what_training_rounded(first, io_dtype, tmp_path):
    # Over several orders of magnitude, 8 bits change what such a layer makes of its input.
    data = np.exp(np.random.default_rng(0).normal(size=(128, 8))).astype("float32")
    stack = [first if callable(first) else keras.ops.log1p]
    if not callable(first):
        stack.append(keras.ops.sqrt)
    qmodel = freeze(chain((8,), *stack, layers.Dense(4)), data=data)
    assert_simulates(qmodel, data)
    export.convert(qmodel, tmp_path / "model.tflite", data=data, io_dtype=io_dtype)
    file = tmp_path / "model.tflite"
    run = runtimes.in_process.interpreter(file.read_bytes()).get_signature_runner()
    ((name, details),) = run.get_input_details().items()
    fed = data
    if io_dtype == "int8":
        scale, zero = details["quantization"]
        fed = np.clip(np.rint(data / scale) + zero, -128, 127).astype("int8")
    (output,) = run.get_output_details().values()
    found = np.concatenate([next(iter(run(**{name: row[None]}).values())) for row in fed])
    if io_dtype == "int8":
        scale, zero = output["quantization"]
        found = (found.astype("float32") - zero) * scale
    expected = predicted(qmodel, data)
    step = qmodel.precision().activations[graph.trace(qmodel.float_model()).outputs[0]].step
    off = np.abs(found - expected) / step
    assert off.max() < 1.01 and (off > 0.5).mean() < 0.03


@pytest.mark.parametrize(
    "layer",
    [
        layers.LSTM(4, dropout=0.3, recurrent_dropout=0.2),
        layers.Bidirectional(layers.GRU(4, dropout=0.3)),
        layers.RNN(layers.StackedRNNCells([layers.LSTMCell(4), layers.GRUCell(4, dropout=0.3)])),
        layers.ConvLSTM1D(2, 2, dropout=0.3),
    ],
)
def test_recurrent_layers_with_dropout_are_converted(layer, tmp_path):
    shape = (5, 3, 2) if isinstance(layer, layers.ConvLSTM1D) else (5, 3)
    qmodel = freeze(chain(shape, layer, layers.Flatten(), layers.Dense(3)))
    assert_simulates(qmodel)
    _, report = written(qmodel, tmp_path)
    assert list(report.float_layers)[0] == layer.name
    assert report.verification.largest_quanta <= 2.01
