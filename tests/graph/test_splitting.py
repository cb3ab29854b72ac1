"""Layers taken apart: the same values, the same rules, and quantizers between the parts."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers.predictions import predicted
from keras import layers, ops

import dqmq_tf
from dqmq_tf.graph import splitting, trace

RNG = np.random.default_rng(0)


def filled(model):
    """The model with weights other than zeros and ones."""
    rng = np.random.default_rng(1)
    for weight in model.weights:
        if "float" in str(weight.dtype):
            low = 0.5 if "variance" in weight.name else -0.4
            weight.assign(rng.uniform(low, low + 0.9, weight.shape))
    return model


def model_of(make, *shapes):
    inputs = [keras.Input(shape) for shape in shapes]
    return filled(keras.Model(inputs if len(inputs) > 1 else inputs[0], make(*inputs)))


def data_of(model, count=6):
    found = [RNG.normal(size=(count, *x.shape[1:])).astype("float32") for x in model.inputs]
    return found if len(found) > 1 else found[0]


def assert_same(a, b, data, atol=1e-5):
    for x, y in zip(keras.tree.flatten(a(data)), keras.tree.flatten(b(data))):
        assert x.shape == y.shape and np.abs(x).max() > 1e-3
        np.testing.assert_allclose(x, y, atol=atol)


def paths_of(parts):
    return {path: [part.path for part in made] for path, made in parts.items()}


def assert_splits(model, expected, tmp_path):
    """Checks the parts and the values, as they are, split again, loaded and quantized."""
    body, parts = splitting.split_layers(model)
    assert paths_of(parts) == expected
    names = {node.path for node in trace(body).nodes}
    assert {path for made in expected.values() for path in made} <= names
    assert body.output_shape == model.output_shape
    data = data_of(model)
    assert_same(model, body, data)
    assert splitting.split_layers(body)[1] == {}
    body.save(tmp_path / "body.keras")
    assert_same(model, keras.models.load_model(tmp_path / "body.keras"), data)
    return body


def assert_trains(model, tmp_path, places=()):
    """Checks that two steps change the weights, and that a saved model is the same."""
    rule = dqmq_tf.LayerRule(pattern=".*", weight_bits=8)
    config = dqmq_tf.DQMQConfig(rules=[rule])
    data = data_of(model)
    exact = dqmq_tf.quantize_model(model, config=config)
    exact.calibrate(data)
    scale = np.abs(model(data)).max()
    assert np.abs(predicted(exact, data) - np.array(model(data))).max() < 0.1 * scale
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    # Tracing would take longer than these two steps.
    qmodel.compile("adam", "mse", run_eagerly=True)
    before = [np.array(w) for w in qmodel.float_model().trainable_weights]
    shape = (6, *model.output_shape[1:])
    history = qmodel.fit(data, np.zeros(shape), batch_size=3, epochs=1, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    after = qmodel.float_model().trainable_weights
    moved = {w.path for w, was in zip(after, before) if np.abs(np.array(w) - was).max() > 0}
    assert all("kernel" not in w.path or w.path in moved for w in after)
    assert set(places) <= {point.name for point in qmodel._parts.costs.activations}
    qmodel.save(tmp_path / "q.keras")
    loaded = keras.models.load_model(tmp_path / "q.keras")
    np.testing.assert_array_equal(predicted(loaded, data), predicted(qmodel, data))


ACTIVATED = {
    "dense": (lambda: layers.Dense(3, activation="tanh", name="a"), (5,)),
    "einsum": (
        lambda: layers.EinsumDense(
            "abc,cde->abde", (5, 2, 3), bias_axes="de", activation="gelu", name="a"
        ),
        (5, 4),
    ),
    "conv": (lambda: layers.Conv2D(3, 3, activation="sigmoid", name="a"), (6, 6, 2)),
    "conv_1d": (lambda: layers.Conv1D(3, 3, activation="silu", name="a"), (6, 2)),
    "depthwise": (lambda: layers.DepthwiseConv2D(3, activation="elu", name="a"), (6, 6, 2)),
    "depthwise_1d": (lambda: layers.DepthwiseConv1D(3, activation="softmax", name="a"), (6, 2)),
    "transpose": (
        lambda: layers.Conv2DTranspose(3, 3, strides=2, activation="sigmoid", name="a"),
        (4, 4, 2),
    ),
    "transpose_1d": (lambda: layers.Conv1DTranspose(3, 3, activation="tanh", name="a"), (4, 2)),
    "layer": (lambda: layers.Dense(3, activation=layers.LeakyReLU(0.2), name="a"), (5,)),
}


@pytest.mark.parametrize("name", ACTIVATED)
def test_an_activation_is_a_layer_of_its_own(name, tmp_path):
    make, shape = ACTIVATED[name]
    body = assert_splits(model_of(make(), shape), {"a": ["a_activation"]}, tmp_path)
    assert body.get_layer("a").activation is keras.activations.linear


@pytest.mark.parametrize("name", ["einsum", "transpose", "depthwise_1d"])
def test_split_activations_train(name, tmp_path):
    make, shape = ACTIVATED[name]
    assert_trains(model_of(make(), shape), tmp_path, ["a", "a_activation"])


@pytest.mark.parametrize("activation", ["linear", "relu", "relu6"])
def test_what_a_kernel_computes_stays_in_its_layer(activation):
    make = layers.Conv2DTranspose(3, 3, activation=activation, name="a")
    body, parts = splitting.split_layers(model_of(make, (4, 4, 2)))
    assert parts == {} and body.get_layer("a").activation is keras.activations.get(activation)


def test_the_model_is_not_changed():
    model = model_of(layers.Dense(3, activation="tanh", name="a", activity_regularizer="l2"), (5,))
    body, _ = splitting.split_layers(model)
    assert model.get_layer("a").activation is keras.activations.tanh
    data = data_of(model)
    model(data), body(data)
    # The penalty is one on what the activation makes.
    np.testing.assert_allclose(sum(body.losses), sum(model.losses), rtol=1e-5)


def test_a_model_that_has_nothing_to_split_is_copied():
    model = filled(keras.Sequential([keras.Input((4,)), layers.Dense(3, activation="relu")]))
    body, parts = splitting.split_layers(model)
    assert parts == {} and body is not model and isinstance(body, keras.Sequential)
    assert_same(model, body, data_of(model))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2, "padding": "same", "depth_multiplier": 2, "activation": "relu"},
        {"dilation_rate": 2, "use_bias": False},
        {"padding": "same", "data_format": "channels_first", "trainable": False},
    ],
)
@pytest.mark.parametrize("kind", [layers.SeparableConv1D, layers.SeparableConv2D])
def test_separable_convolutions(kind, options, tmp_path):
    shape = (7, 4) if kind is layers.SeparableConv1D else (7, 7, 4)
    model = model_of(kind(5, 3, name="a", **options), shape)
    body = assert_splits(model, {"a": ["a_depthwise", "a_pointwise"]}, tmp_path)
    for name in ("a_depthwise", "a_pointwise"):
        layer = body.get_layer(name)
        assert layer.data_format == options.get("data_format", "channels_last")
        assert layer.trainable == options.get("trainable", True)
    assert body.get_layer("a_depthwise").bias is None


def test_a_separable_convolution_between_others(tmp_path):
    def make(x):
        y = layers.SeparableConv2D(5, 3, name="a")(x)
        y = layers.ReLU(name="relu")(layers.BatchNormalization(name="bn")(y))
        return layers.SeparableConv2D(3, 3, activation="sigmoid", name="b")(inputs=y)

    model = model_of(make, (8, 8, 2))
    expected = {
        "a": ["a_depthwise", "a_pointwise"],
        "b": ["b_depthwise", "b_pointwise", "b_activation"],
    }
    body = assert_splits(model, expected, tmp_path)
    assert trace(body).folds == {"bn": "a_pointwise"}
    places = ["a_depthwise", "relu", "b_depthwise", "b_pointwise", "b_activation"]
    assert_trains(model, tmp_path, places)


ATTENTION = ["query", "key", "value", "output", "scale", "query_heads", "key_heads", "value_heads"]
ATTENTION += ["softmax", "joined", "scores", "attended"]


def attention(**options):
    return layers.MultiHeadAttention(2, 3, name="a", **options)


@pytest.mark.parametrize(
    "make,shapes",
    [
        (lambda x: attention()(x, x), [(5, 4)]),
        (lambda x: attention(use_bias=False)(query=x, value=x), [(5, 4)]),
        (lambda x, y: attention(value_dim=6)(x, y), [(5, 4), (7, 3)]),
        (lambda x, y, z: attention(value_dim=1)(x, y, z), [(5, 4), (7, 3), (7, 2)]),
        (lambda x, y, z: attention(output_shape=6)(x, value=y, key=z), [(5, 4), (7, 3), (7, 2)]),
        (lambda x: attention(output_shape=(2, 6))(x, x), [(5, 4)]),
        (lambda x: attention(dropout=0.5)(x, x, training=False), [(5, 4)]),
        (lambda x: attention(dropout=0.5, seed=3)(x, x, use_causal_mask=False), [(5, 4)]),
        (lambda x: attention()(x, x, return_attention_scores=False), [(5, 4)]),
    ],
)
def test_attention(make, shapes, tmp_path):
    model = model_of(make, *shapes)
    parts = paths_of(splitting.split_layers(model)[1])["a"]
    assert set(parts) - {"a_dropout"} == {f"a_{part}" for part in ATTENTION}
    assert ("a_dropout" in parts) == (model.get_layer("a").dropout > 0)
    body = assert_splits(model, {"a": parts}, tmp_path)
    graph = trace(body)
    products = [n for n in graph.nodes if type(n.layer).__name__ == "Matmul"]
    assert [n.path for n in products] == ["a_scores", "a_attended"]
    # Heads are an axis of the batch in both products.
    assert all(graph.shapes[t][1] == 2 for n in products for t in (*n.inputs, *n.outputs))
    assert graph.folds == {"a_scale": "a_query"}


def test_dropout_of_attention_is_on_in_training():
    model = model_of(lambda x: attention(dropout=0.5)(x, x), (5, 4))
    body, _ = splitting.split_layers(model)
    data = data_of(model)
    assert np.abs(body(data, training=True) - body(data)).max() > 1e-3


def test_attention_trains(tmp_path):
    def make(x):
        y = layers.LayerNormalization(name="norm")(x)
        y = layers.Add(name="add")([x, attention(dropout=0.1)(y, y)])
        return layers.Dense(2, name="head")(layers.GlobalAveragePooling1D(name="pool")(y))

    places = ["a_key", "a_scale", "a_value", "a_scores", "a_softmax", "a_attended", "a_output"]
    model = model_of(make, (5, 4))
    assert_trains(model, tmp_path, places)
    qmodel = dqmq_tf.quantize_model(model, target="simulation")
    found = {point.name: point for point in qmodel._parts.costs.activations}
    # The query exists on a device behind its scale only; the softmax has the range of its kernel.
    assert "a_query" not in found and found["a_softmax"].range == "unit"
    kernels = {
        point.name: point.macs for point in qmodel._parts.costs.weights if "a_" in point.name
    }
    assert kernels == {
        f"a_{part}:kernel": 5 * 4 * 2 * 3 for part in ("query", "key", "value", "output")
    }


@keras.saving.register_keras_serializable(package="test_split")
class Subclass(layers.MultiHeadAttention):
    """Attention of the user's own."""


@keras.saving.register_keras_serializable(package="test_split")
class OwnMask(layers.Layer):
    """A layer that says what its mask is."""

    def call(self, x):
        return x

    def compute_mask(self, inputs, mask=None):
        return ops.any(ops.not_equal(inputs, 0.0), axis=-1)


@pytest.mark.parametrize(
    "make,shapes",
    [
        (lambda x: attention()(x, x, use_causal_mask=True), [(5, 4)]),
        (lambda x, m: attention()(x, x, attention_mask=m), [(5, 4), (5, 5)]),
        (lambda m, x: attention()(x, x, attention_mask=m), [(5, 5), (5, 4)]),
        (lambda x: attention()(x, x, return_attention_scores=True), [(5, 4)]),
        (lambda x: attention()(*[layers.Masking()(x)] * 2), [(5, 4)]),
        (lambda x: attention()(*[OwnMask()(x)] * 2), [(5, 4)]),
        (lambda x: attention(attention_axes=(2,))(x, x), [(5, 3, 4)]),
        (lambda x: attention()(x, x), [(5, 3, 4)]),
        (lambda x: attention(sliding_window=2)(x, x), [(5, 4)]),
        (lambda x: attention(use_gate=True)(x, x), [(5, 4)]),
        (lambda x: Subclass(2, 3)(x, x), [(5, 4)]),
        (lambda x: layers.GroupQueryAttention(2, 4, 2)(x, x), [(5, 4)]),
    ],
)
def test_other_attention_stays_whole(make, shapes):
    assert splitting.split_layers(model_of(make, *shapes))[1] == {}


def test_attention_that_is_masked_in_one_of_its_calls_stays_whole():
    shared = attention()
    model = model_of(lambda x: shared(shared(x, x), x, use_causal_mask=True), (5, 4))
    assert splitting.split_layers(model)[1] == {}


def test_shared_layers_and_nested_models(tmp_path):
    x = keras.Input((8, 4))
    y = layers.SeparableConv1D(4, 3, padding="same", activation="tanh", name="conv")(x)
    inner = keras.Model(x, layers.MultiHeadAttention(2, 3, name="a")(y, y), name="inner")
    shared = layers.SeparableConv1D(4, 1, activation="silu", name="shared")

    def make(x):
        return shared(inner(shared(inner(x))))

    model = model_of(make, (8, 4))
    body, parts = splitting.split_layers(model)
    expected = {
        "shared": ["shared_depthwise", "shared_pointwise", "shared_activation"],
        "inner/conv": ["inner/conv_depthwise", "inner/conv_pointwise", "inner/conv_activation"],
        "inner/a": [part.path for part in parts["inner/a"]],
    }
    assert {f"inner/a_{part}" for part in ATTENTION} == set(expected["inner/a"])
    assert_splits(model, expected, tmp_path)
    assert body.get_layer("inner").get_layer("a_query").kernel.shape == (4, 2, 3)
    assert_trains(model, tmp_path, ["inner/a_scores", "shared_activation"])


def test_names_that_are_taken_are_numbered(tmp_path):
    def make(x):
        y = layers.Dense(4, activation="tanh", name="a")(x)
        y = layers.Activation("relu", name="a_activation")(y)
        return ops.matmul(y, ops.transpose(y))

    body, parts = splitting.split_layers(model_of(make, (4,)))
    assert paths_of(parts) == {"a": ["a_activation_1"]}
    assert body.get_layer("a_activation").activation is keras.activations.relu


def test_products_have_names_of_their_own():
    # Keras names operations by a count, which starts again in a process that loads a model.
    def make(x):
        y = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
        return attention()(y, y)

    model = model_of(make, (4, 4))
    again = keras.Model.from_config(model.get_config())
    body, _ = splitting.split_layers(again)
    names = [operation.name for operation in body.operations]
    assert {"a_scores", "a_attended"} <= set(names) and len(names) == len(set(names))


def rules_for(model, *rules):
    config = dqmq_tf.DQMQConfig(rules=rules)
    return splitting.with_part_rules(config, splitting.split_layers(model)[1])


def test_a_rule_for_a_layer_holds_for_its_parts():
    model = model_of(layers.SeparableConv2D(3, 3, activation="tanh", name="a"), (6, 6, 2))
    own = dqmq_tf.LayerRule(pattern="a_pointwise", weight_bits=3)
    rule = dqmq_tf.LayerRule(
        pattern="a", weight_bits=(4, 8), activation_bits=5, weights=("pointwise_kernel",)
    )
    rest = dqmq_tf.LayerRule(pattern=".*", weight_bits=2, activation_bits=2)
    config = rules_for(model, rule, rest)
    depthwise, pointwise, activation = map(
        config.rule_for, ("a_depthwise", "a_pointwise", "a_activation")
    )
    assert depthwise.weights == () and pointwise.weights == ("kernel",)
    assert depthwise.weight_bits == pointwise.weight_bits == (4, 8)
    assert activation.weight_bits is None and activation.weights is None
    assert {r.activation_bits for r in (depthwise, pointwise, activation)} == {(5,)}
    assert config.rule_for("other").weight_bits == (2,)
    # A rule above may name a part by itself, one below may not.
    assert rules_for(model, own, rule).rule_for("a_pointwise").weight_bits == (3,)
    assert rules_for(model, rule, own).rule_for("a_pointwise").weight_bits == (4, 8)
    assert rules_for(model, own).rules == (own,)
    # A pattern that matches the parts by itself names kernels of the whole layer nevertheless.
    config = rules_for(model, dataclasses.replace(rule, pattern="a.*"))
    assert config.rule_for("a_pointwise").weights == ("kernel",)


def test_a_rule_names_kernels_of_whole_attention():
    model = model_of(lambda x: attention()(x, x), (5, 4))
    weights = ("query/kernel", "attention_output/kernel")
    rule = dqmq_tf.LayerRule(pattern="a", weights=weights, weight_bits=(4,))
    config = dqmq_tf.DQMQConfig(rules=[rule])
    qmodel = dqmq_tf.quantize_model(model, config=config)
    assert {p.name: p.bit_widths for p in qmodel._parts.costs.weights} == {
        "a_query:kernel": (4,), "a_output:kernel": (4,),
    }  # fmt: skip
    with pytest.raises(ValueError, match="Layer 'a' has no kernel 'gate/kernel'.*query/kernel"):
        rules_for(model, dqmq_tf.LayerRule(pattern="a", weights=("gate/kernel",)))


def test_a_layer_that_a_rule_leaves_in_floating_point_is_so_in_all_its_parts(tmp_path):
    def make(x):
        y = layers.SeparableConv1D(4, 3, activation="tanh", name="conv")(x)
        return layers.Dense(2, name="head")(attention()(y, y))

    rule = dqmq_tf.LayerRule(pattern="conv|a", quantize=False)
    config = dqmq_tf.DQMQConfig(rules=[rule])
    qmodel = dqmq_tf.quantize_model(model_of(make, (8, 4)), target="simulation", config=config)
    assert set(qmodel._parts.wrappers) == {"head"}
    assert [p.name for p in qmodel._parts.costs.activations][1:] == ["head"]
    qmodel.save(tmp_path / "m.keras")
    assert keras.models.load_model(tmp_path / "m.keras").decision_points == qmodel.decision_points
