"""`quantize_model`: the models that it takes, what it returns, and what it refuses."""

import warnings

import keras
import numpy as np
import pytest
from helpers.eight_bits import converted, largest_error, quantized
from helpers.new_process import in_bare_process
from helpers.small_networks import network

import dqmq_tf
from dqmq_tf.export import ConversionError
from dqmq_tf.layers import FusedBatchNormalization, QuantizeWrapper

layers = keras.layers

IMAGES = np.random.default_rng(0).random((8, 16, 16, 3)).astype("float32")


class Block(keras.layers.Layer):
    """A custom layer with a kernel."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape):
        self.mixing = self.add_weight(name="mixing", shape=(shape[-1], self.units))

    def call(self, x):
        return keras.ops.relu(keras.ops.matmul(x, self.mixing))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class TestModel:
    def test_the_quantized_model_keeps_inputs_outputs_names_and_weights(self):
        model = network()
        qmodel = dqmq_tf.quantize_model(model)
        assert isinstance(qmodel, keras.Model) and qmodel.name == model.name
        assert [x.name for x in qmodel.inputs] == [x.name for x in model.inputs]
        assert [x.shape for x in qmodel.outputs] == [x.shape for x in model.outputs]
        names = {layer.name for layer in qmodel.layers}
        assert {layer.name for layer in model.layers} <= names
        again = qmodel.float_model()
        for kept, given in zip(again.get_weights(), model.get_weights()):
            np.testing.assert_array_equal(kept, given)
        np.testing.assert_allclose(
            again.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), atol=1e-6
        )

    def test_the_float_model_is_not_changed(self):
        model = network()
        before = [w.copy() for w in model.get_weights()]
        qmodel = dqmq_tf.quantize_model(model)
        qmodel.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        qmodel.train_on_batch(IMAGES, np.zeros(8))
        for was, now in zip(before, model.get_weights()):
            np.testing.assert_array_equal(was, now)
        assert not model.compiled

    def test_at_eight_bits_predictions_are_close_to_those_of_the_float_model(self):
        model = network()
        rule = dqmq_tf.LayerRule(pattern=".*", weight_bits=8)
        config = dqmq_tf.DQMQConfig(rules=[rule])
        qmodel = dqmq_tf.quantize_model(model, config=config)
        qmodel.calibrate(IMAGES)
        np.testing.assert_allclose(
            qmodel.predict(IMAGES, verbose=0), model.predict(IMAGES, verbose=0), atol=0.02
        )

    @pytest.mark.parametrize("name", ["seed", "profiles"])
    def test_integers_of_numpy_in_a_config_train_save_and_load(self, name, tmp_path):
        config = dqmq_tf.DQMQConfig(**{name: np.int64(2)})
        qmodel = dqmq_tf.quantize_model(network(), config=config)
        qmodel.compile("adam", "sparse_categorical_crossentropy", run_eagerly=True)
        qmodel.train_on_batch(IMAGES, np.zeros(8))
        qmodel.save(tmp_path / "model.keras")
        assert keras.models.load_model(tmp_path / "model.keras").config == qmodel.config

    def test_nested_shared_and_custom_layers_train_save_and_load(self, tmp_path):
        keras.saving.register_keras_serializable(package="test_quantize")(Block)
        inner_inputs = keras.Input((16,))
        inner = keras.Model(inner_inputs, Block(16, name="block")(inner_inputs), name="inner")
        shared = keras.layers.Dense(16, activation="relu", name="shared")
        inputs = keras.Input((8,))
        x = keras.layers.Dense(16, name="first")(inputs)
        x = inner(shared(inner(shared(x))))
        model = keras.Model(
            inputs, {"a": keras.layers.Dense(2, name="head")(x), "b": x[:, :1] + 1.0}
        )
        qmodel = dqmq_tf.quantize_model(model, target="simulation")
        assert set(qmodel._parts.wrappers) == {"first", "shared", "inner/block", "head"}
        assert isinstance(qmodel.get_layer("inner").get_layer("block"), QuantizeWrapper)
        qmodel.compile("sgd", {"a": "mse", "b": "mse"}, run_eagerly=True)
        x = np.random.default_rng(0).random((12, 8)).astype("float32")
        qmodel.fit(x, {"a": np.zeros((12, 2)), "b": np.zeros((12, 1))}, epochs=2, verbose=0)
        qmodel.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        for key, value in qmodel.predict(x, verbose=0).items():
            np.testing.assert_array_equal(loaded.predict(x, verbose=0)[key], value)

    def test_fused_layers_keep_their_names(self):
        inputs = keras.Input((16, 16, 3))
        x = keras.layers.Conv2D(8, 3, use_bias=False, name="conv")(inputs)
        x = keras.layers.BatchNormalization(name="norm")(x)
        x = keras.layers.ReLU(max_value=6.0, name="first")(x)
        shared = keras.layers.ReLU(name="shared")
        x = shared(keras.layers.Conv2D(8, 3, name="conv_1")(x))
        x = shared(keras.layers.Conv2D(8, 3, name="conv_2")(x))
        x = keras.layers.Conv2D(8, 3, name="conv_3")(x)
        x = keras.layers.Activation("relu", activity_regularizer="l2", name="priced")(x)
        x = keras.layers.GlobalAveragePooling2D()(x)
        model = keras.Model(inputs, keras.layers.Dense(3, name="head")(x))
        qmodel = dqmq_tf.quantize_model(model)
        for name in [layer.name for layer in model.layers]:
            assert qmodel.get_layer(name) is not None
        assert qmodel.get_layer("first").ceiling == 6
        assert type(qmodel.get_layer("norm")) is FusedBatchNormalization
        # Not fused: each of two calls has its own quantizer, and a regularizer needs the output itself.
        assert type(qmodel.get_layer("shared")) is keras.layers.ReLU
        assert type(qmodel.get_layer("priced")) is keras.layers.Activation
        qmodel.calibrate(IMAGES)
        before = qmodel.float_model().get_layer("norm").moving_mean.numpy()
        with qmodel.custom_training(steps=2):
            qmodel(IMAGES, training=True)
        assert (qmodel.float_model().get_layer("norm").moving_mean.numpy() != before).any()
        assert len(qmodel.losses) == 1

    def test_attention_with_a_causal_mask_trains(self):
        inputs = keras.Input((6, 8))
        attention = keras.layers.MultiHeadAttention(2, 4, name="attention")
        x = attention(inputs, inputs, key=inputs, use_causal_mask=True)
        model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(x)))
        qmodel = dqmq_tf.quantize_model(model, target="simulation")
        qmodel.compile("adam", "mse", run_eagerly=True)
        x = np.random.default_rng(0).random((10, 6, 8)).astype("float32")
        qmodel.fit(x, np.zeros((10, 3)), verbose=0)
        assert len(qmodel._parts.wrappers["attention"].points) == 4

    def test_the_encoder_costs_less_than_two_percent_of_the_network(self):
        qmodel = dqmq_tf.quantize_model(network())
        macs = qmodel._parts.encoder.multiply_accumulates((None, 16, 16, 3))
        assert macs <= 0.02 * qmodel._parts.costs.macs.sum()


def operation_names(model):
    names = [operation.name for operation in model.operations]
    nested = [x for x in model.operations if isinstance(x, keras.Model)]
    return names + [name for inner in nested for name in operation_names(inner)]


def test_no_name_that_is_added_comes_from_a_count_over_the_process():
    # A model that was loaded may use such a name, and a model with one name twice fails.
    inner = keras.Sequential([keras.Input((6, 6, 4)), layers.Conv2D(4, 3), layers.ReLU()])
    inputs = keras.Input((8, 8, 3))
    x = layers.SeparableConv2D(4, 3, activation="relu")(inputs)
    x = layers.Flatten()(layers.BatchNormalization()(inner(x)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    first, second = (operation_names(dqmq_tf.quantize_model(model)) for _ in range(2))
    assert first == second


class TestRules:
    def test_rules_limit_the_candidates_and_leave_layers_out(self):
        rules = [
            dqmq_tf.LayerRule(pattern="conv_0", quantize=False),
            dqmq_tf.LayerRule(pattern="conv_.*", weight_bits=(2, 4, 8)),
        ]
        qmodel = dqmq_tf.quantize_model(network(), config=dqmq_tf.DQMQConfig(rules=rules))
        assert "conv_0" not in qmodel._parts.wrappers
        bits = {point.path: point.bit_widths for point in qmodel._parts.costs.weights}
        assert bits["conv_1"] == (2, 4, 8) and bits["classes"] == (2, 3, 4, 5, 6, 7, 8)

    def test_a_rule_that_matches_no_layer_is_named_in_a_warning(self):
        rules = [dqmq_tf.LayerRule(pattern=p, weight_bits=8) for p in ("conv", "conv_0", "image")]
        expected = r"pattern='conv'\) matches no layer.*whole path.*such as conv_0, conv_1, conv_2"
        with pytest.warns(UserWarning, match=expected) as caught:
            dqmq_tf.quantize_model(network(), config=dqmq_tf.DQMQConfig(rules=rules))
        assert [w.filename for w in caught if w.category is UserWarning] == [__file__]

    def test_rules_for_a_whole_layer_or_for_a_part_of_it_cause_no_warning(self):
        image = keras.Input((8, 8, 3))
        x = layers.SeparableConv2D(4, 3, activation="silu", name="sep")(image)
        model = keras.Model(image, layers.Dense(2, name="classes")(layers.Flatten()(x)))
        names = ("sep", "sep_pointwise", "sep_activation", ".*")
        rules = [dqmq_tf.LayerRule(pattern=name) for name in names]
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            dqmq_tf.quantize_model(model, config=dqmq_tf.DQMQConfig(rules=rules))

    def test_a_rule_with_bits_that_the_target_lacks_is_an_error(self):
        rules = [dqmq_tf.LayerRule(pattern="relu_0", activation_bits=(4,))]
        with pytest.raises(ValueError, match=r"relu_0.*\[4\].*android"):
            dqmq_tf.quantize_model(network(), config=dqmq_tf.DQMQConfig(rules=rules))


class TestRefused:
    def test_a_subclassed_model_is_an_error(self):
        class Own(keras.Model):
            def call(self, x):
                return x

        with pytest.raises(ValueError, match="subclassed"):
            dqmq_tf.quantize_model(Own())

    def test_a_model_without_an_input_shape_is_an_error(self):
        with pytest.raises(ValueError, match="no input shape"):
            dqmq_tf.quantize_model(keras.Sequential([keras.layers.Dense(2)]))

    def test_an_unknown_target_is_an_error(self):
        with pytest.raises(ValueError, match="choose one of android"):
            dqmq_tf.quantize_model(network(), target="toaster")

    def test_the_error_for_a_budget_that_is_too_small_names_the_smallest(self):
        budget = dqmq_tf.Budget(mean_bit_width=1.5)
        with pytest.raises(ValueError, match=r"smallest possible.*is 2\b"):
            dqmq_tf.quantize_model(network(), target="simulation", budget=budget)
        with pytest.raises(ValueError, match="smallest possible"):
            dqmq_tf.quantize_model(network(), budget=dqmq_tf.Budget(download_bytes=1000))

    def test_a_number_as_budget_is_an_error(self):
        with pytest.raises(ValueError, match="Budget"):
            dqmq_tf.quantize_model(network(), budget=50_000)

    def test_another_backend_is_an_error(self, monkeypatch):
        # No other backend is installed with the package, so only its name can be set here.
        monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
        with pytest.raises(
            RuntimeError, match="needs Keras on the TensorFlow backend. Found 'jax'"
        ):
            dqmq_tf.quantize_model(network())

    def test_a_model_for_simulation_cannot_be_converted(self, tmp_path):
        qmodel = dqmq_tf.quantize_model(network(), target="simulation")
        qmodel.calibrate(IMAGES)
        with pytest.raises(ConversionError, match="simulation"):
            dqmq_tf.convert(qmodel, tmp_path / "m.tflite")
        assert not list(tmp_path.iterdir())


def test_importing_the_package_changes_no_environment_variable():
    code = (
        "import os\n"
        "before = dict(os.environ); import tensorflow as tf; after_tf = dict(os.environ)\n"
        "import dqmq_tf\n"
        "assert dict(os.environ) == after_tf\n"
        "assert 'tensorflow_model_optimization' not in sys.modules\n"
        "assert tf.keras.__version__.startswith('3')\n"
    )
    in_bare_process(code, timeout=300)


def test_a_rule_applies_to_an_activation_that_is_split_from_its_layer(tmp_path):
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh", name="hidden")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax", name="head")(hidden))
    rules = [
        dqmq_tf.LayerRule(pattern="hidden", weight_bits=8, activation_bits=(3, 5)),
        dqmq_tf.LayerRule(pattern="head", quantize=False),
    ]
    config = dqmq_tf.DQMQConfig(rules=rules)
    qmodel = dqmq_tf.quantize_model(model, target="simulation", config=config)
    bits = {point.name: point.bit_widths for point in qmodel._parts.costs.activations}
    assert bits["hidden_activation"] == (3, 5)
    assert not any(name.startswith("head") for name in bits)
    qmodel.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.decision_points == qmodel.decision_points


def test_an_activation_that_is_split_from_its_layer_keeps_the_dtype():
    inputs = keras.Input((6,))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        outputs = keras.layers.Dense(3, activation="softmax", dtype="float32")(
            keras.layers.Dense(4, activation="relu")(inputs)
        )
        qmodel = dqmq_tf.quantize_model(keras.Model(inputs, outputs))
        qmodel.compile("adam", "sparse_categorical_crossentropy")
        x = np.random.default_rng(0).normal(size=(16, 6)).astype("float32")
        losses = qmodel.fit(x, np.arange(16) % 3, epochs=2, verbose=0).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(losses).all()
    assert qmodel.predict(x, verbose=0).dtype == np.float32


def test_embeddings_and_upsampling_networks_train_on_every_target(tmp_path):
    tokens = keras.Input((6,))
    y = keras.layers.Embedding(9, 4, name="embedding")(tokens)
    y = keras.layers.Reshape((6, 1, 4))(y)
    y = keras.layers.Conv2DTranspose(3, 3, activation="sigmoid", padding="same", name="up")(y)
    y = keras.layers.GlobalAveragePooling2D()(y)
    model = keras.Model(tokens, keras.layers.Dense(2, name="head")(y))
    x = np.random.default_rng(0).integers(0, 9, (8, 6)).astype("float32")
    for name in ("android", "android_small", "microcontroller"):
        qmodel = dqmq_tf.quantize_model(model, target=name)
        qmodel.compile("adam", "mse", run_eagerly=True)
        qmodel.fit(x, np.zeros((8, 2)), batch_size=4, verbose=0)
        steps = {path: w.log_steps[0].shape[1:] for path, w in qmodel._parts.wrappers.items()}
        per_tensor = qmodel.target.per_tensor
        assert steps["embedding"] == ((1, 1) if "embedding" in per_tensor else (9, 1))
        assert steps["head"] == ((1, 1) if "dense" in per_tensor else (1, 2))
        assert steps["up"] == (1, 1, 3, 1)
        # Token indices are not quantized.
        assert "embedding" in [point.name for point in qmodel._parts.costs.activations][0]


def test_kernels_of_zeros_cause_a_warning_that_names_their_layers():
    image = keras.Input((4,))
    hidden = keras.layers.Dense(3, name="hidden")(image)
    head = keras.layers.Dense(2, kernel_initializer="zeros", name="head")(hidden)
    with pytest.warns(UserWarning, match=r"all weights of 'head' are 0.*Train the float model"):
        dqmq_tf.quantize_model(keras.Model(image, head))


def test_a_nested_model_that_was_frozen_trains_when_it_is_unfrozen(tmp_path):
    inputs = keras.Input((8, 8, 3))
    base = keras.Model(inputs, keras.layers.Conv2D(4, 3, name="conv")(inputs), name="base")
    base.trainable = False
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(base(image))
    model = keras.Model(image, keras.layers.Dense(2, name="head")(pooled))
    qmodel = dqmq_tf.quantize_model(model)

    def trained(of=qmodel):
        return {v.path for v in of.trainable_variables if v.path.endswith("kernel")}

    assert len(trained()) == 1
    nested = qmodel.get_layer("base")
    assert not nested.trainable
    nested.trainable = True
    assert len(trained()) == 2
    assert len(trained(qmodel.float_model())) == 2
    qmodel.save(tmp_path / "m.keras")
    assert trained(keras.models.load_model(tmp_path / "m.keras")) == trained()
    resized = dqmq_tf.change_input_shape(qmodel, (16, 16, 3))
    assert trained(resized) == trained()
    # What was quantized unfrozen can be frozen and unfrozen.
    nested.trainable = False
    assert len(trained()) == 1


def test_subclasses_of_layers_are_not_taken_for_the_originals(tmp_path):
    class Capped(keras.layers.ReLU):
        def call(self, x):
            return keras.ops.minimum(super().call(x), 0.25) + 0.5

    class Shifted(keras.layers.BatchNormalization):
        def call(self, x, training=None, mask=None):
            return super().call(x, training=training, mask=mask) + 1.0

    class Twice(keras.layers.Activation):
        def call(self, x):
            return 2 * super().call(x)

    class Brighter(keras.layers.Rescaling):
        def call(self, x):
            return super().call(x) + 0.5

    keras.utils.set_random_seed(0)
    custom = {c.__name__: c for c in (Capped, Shifted, Twice, Brighter)}
    x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
    for layer in (Capped(), Shifted(), Twice("relu"), Brighter(0.5), Twice("softmax")):
        inputs = keras.Input((6,))
        hidden = keras.layers.Dense(5)(inputs)
        model = keras.Model(inputs, keras.layers.Dense(3)(layer(hidden)))
        with keras.saving.custom_object_scope(custom):
            qmodel = quantized(model, x)
            assert largest_error(model, qmodel, x) < 0.1
            report = converted(qmodel, x, tmp_path)
        assert list(report.float_layers) == [layer.name]
