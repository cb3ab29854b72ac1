"""The assertions of TFMOT's own tests, on layers of Keras 3.

TFMOT's package does not contain its tests, so their assertions stand here, under the names of the
files in its repository: `quantizers_test`, `quant_ops_test`, `quantize_wrapper_test`,
`quantize_aware_activation_test`, `default_8bit_quantizers_test`, `quantize_integration_test` and
`quantize_annotate_test`. The numbers are TFMOT's.
"""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.tfmot_configs import ListedConfig
from keras import layers

import dqmq_tf
from dqmq_tf.layers import UserActivationQuantizer, UserQuantizer
from dqmq_tf.tfmot.user_quantizers import UserQuantizers, around_activation

CORE = "tensorflow_model_optimization.python.core.quantization.keras"
quantizers = importlib.import_module(f"{CORE}.quantizers")
default_8bit = importlib.import_module(f"{CORE}.default_8bit.default_8bit_quantizers")
registry = importlib.import_module(f"{CORE}.default_8bit.default_8bit_quantize_registry")
configs = importlib.import_module(f"{CORE}.default_8bit.default_8bit_quantize_configs")
NoOpActivation = importlib.import_module(f"{CORE}.quantize_aware_activation").NoOpActivation
RANGE_RATIO = 127 / 128

PLAIN = {"num_bits": 8, "per_axis": False, "symmetric": False, "narrow_range": False}
FIXED = {"num_bits": 8, "init_min": 0.0, "init_max": 1.0, "narrow_range": False}
ALL_QUANTIZERS = [
    (quantizers.LastValueQuantizer, PLAIN),
    (quantizers.MovingAverageQuantizer, PLAIN),
    (quantizers.AllValuesQuantizer, PLAIN),
    (quantizers.FixedQuantizer, FIXED),
    (quantizers.NoQuantizer, {}),
]


def named(layer):
    """The values of a layer's variables by the end of their names."""
    return {v.path.split("/")[-1].split("_")[-1]: float(v.numpy()) for v in layer.variables}


class TestQuantizers:
    @pytest.mark.parametrize("kind, arguments", ALL_QUANTIZERS)
    def test_quantizer(self, kind, arguments):
        inputs = np.array([[-1.0, 0.5], [0.0, 1.0]], "float32")
        layer = UserQuantizer([("inputs", kind(**arguments))], inputs.shape)
        for variable in layer.variables:
            variable.assign(0.0)
        found = layer(inputs, training=True)
        own = {"min_var": tf.Variable(0.0), "max_var": tf.Variable(0.0)}
        expected = kind(**arguments)(tf.constant(inputs), training=True, weights=own)
        np.testing.assert_array_equal(found, expected)
        limits = named(layer)
        if "min" in limits:
            assert (limits["min"], limits["max"]) == (float(own["min_var"]), float(own["max_var"]))

    @pytest.mark.parametrize("kind, arguments", ALL_QUANTIZERS)
    def test_serialization(self, kind, arguments):
        quantizer = kind(**arguments)
        config = UserQuantizers({"kernel": quantizer}, {"kernel": (8,)}, []).get_config()
        assert config["weights"]["kernel"]["class"] == kind.__name__
        assert config["weights"]["kernel"]["arguments"] == arguments
        assert UserQuantizers.from_config(config).weights["kernel"] == quantizer


class TestQuantOps:
    """The ranges that remain in the variables of a Keras 3 layer after calls in training."""

    def range_after(self, kind, values, from_zero=True, **arguments):
        layer = UserQuantizer([("x", kind(**(PLAIN | arguments)))], None)
        if from_zero:
            for variable in layer.variables:
                variable.assign(0.0)
        for value in values:
            layer(np.array(value, "float32"), training=True)
        limits = named(layer)
        return limits["min"], limits["max"]

    @pytest.mark.parametrize(
        "kind, values, arguments, expected",
        [
            ("AllValues", [[-5, 1], [-1, 5]], {}, (-5, 5)),
            ("AllValues", [[-RANGE_RATIO, RANGE_RATIO]], {"symmetric": True}, (-1, RANGE_RATIO)),
            ("AllValues", [[-1, 0.5]], {"symmetric": True, "narrow_range": True}, (-1, 1)),
            ("LastValue", [[-1, 1]], {}, (-1, 1)),
            ("LastValue", [[-RANGE_RATIO, RANGE_RATIO]], {"symmetric": True}, (-1, RANGE_RATIO)),
            ("LastValue", [[-1, 0.5]], {"symmetric": True, "narrow_range": True}, (-1, 1)),
            ("MovingAverage", [[-1, 1], [0, 0]], {}, (-0.000999, 0.000999)),
            (
                "MovingAverage",
                [[-1, 0.5], [0, 0]],
                {"symmetric": True},
                (-0.000999, 0.000999 * RANGE_RATIO),
            ),
            (
                "MovingAverage",
                [[-1, 0.5], [0, 0]],
                {"symmetric": True, "narrow_range": True},
                (-0.000999, 0.000999),
            ),
        ],
    )
    def test_training_assigns_the_range(self, kind, values, arguments, expected):
        found = self.range_after(getattr(quantizers, f"{kind}Quantizer"), values, **arguments)
        assert found == pytest.approx(expected, abs=1e-6)

    def test_the_range_does_not_move_at_inference(self):
        layer = UserQuantizer([("x", quantizers.LastValueQuantizer(**PLAIN))], None)
        layer(np.array([-1.0, 1.0], "float32"), training=False)
        assert (named(layer)["min"], named(layer)["max"]) == (-6.0, 6.0)


def default_config(layer):
    """The config of TFMOT's registry, which knows the classes of Keras 2 only."""
    if isinstance(layer, layers.ReLU):
        return configs.Default8BitOutputQuantizeConfig()
    kind = "Conv" if isinstance(layer, layers.Conv2D) else ""
    kind = getattr(registry, f"Default8Bit{kind}QuantizeConfig")
    return kind(["kernel"], ["activation"], False)


def quantized(shape, *body, **arguments):
    model = keras.Sequential([keras.Input(shape), *body])
    return dqmq_tf.quantize_apply(model, target="simulation", **arguments)


class TestQuantizeWrapper:
    def test_quantizes_weights_in_layer(self):
        kernel = keras.initializers.Constant([[-1.0, 0.0], [0.0, 1.0]])
        layer = layers.Dense(2, kernel_initializer=kernel)
        model = quantized((2,), dqmq_tf.quantize_annotate_layer(layer, default_config(layer)))
        found = model(np.ones((1, 2)))
        np.testing.assert_allclose(found, [[-0.9882355, 0.9882355]], rtol=1e-6)

    @pytest.mark.parametrize(
        "kind, shape, arguments",
        [
            (layers.Conv2D, (4, 6, 1), {"filters": 4, "kernel_size": (2, 2)}),
            (layers.Dense, (3,), {"units": 2}),
        ],
    )
    def test_quantizes_weights_of_keras_layers(self, kind, shape, arguments):
        layer = kind(kernel_initializer=keras.initializers.RandomUniform(0, 1), **arguments)
        model = quantized(shape, dqmq_tf.quantize_annotate_layer(layer, default_config(layer)))
        plain = keras.Sequential([keras.Input(shape), kind(**arguments)])
        kernel, bias = layer.get_weights()
        kernel = tf.quantization.fake_quant_with_min_max_vars(kernel, -6.0, 6.0, 8, True)
        plain.set_weights([kernel.numpy(), bias])
        inputs = np.random.default_rng(0).random((1, *shape)).astype("float32")
        expected = tf.quantization.fake_quant_with_min_max_vars(
            plain(inputs), -6.0, 6.0, num_bits=8, narrow_range=False
        )
        np.testing.assert_allclose(model(inputs), expected, atol=1e-6)

    def test_quantizes_outputs_from_layer(self):
        relu = layers.ReLU(name="relu")
        model = quantized(
            (3,),
            dqmq_tf.quantize_annotate_layer(relu, default_config(relu)),
            dqmq_tf.quantize_annotate_layer(layers.Dense(2, name="last")),
        )
        until_relu = keras.Model(model.inputs, model.get_layer("relu").output)
        inputs = np.random.default_rng(0).normal(size=(5, 3)).astype("float32")
        expected = tf.quantization.fake_quant_with_min_max_vars(
            np.maximum(inputs, 0.0), -6.0, 6.0, num_bits=8, narrow_range=False
        )
        np.testing.assert_allclose(until_relu([inputs]), expected, atol=1e-6)

    def test_fails_with_a_model(self):
        layer = layers.Dense(5, activation="relu")
        model = keras.Sequential([keras.Input((10,)), layer])
        with pytest.raises(ValueError):
            dqmq_tf.quantize_annotate_layer(model, default_config(layer))


SYMMETRIC = quantizers.MovingAverageQuantizer(
    num_bits=8, per_axis=False, symmetric=True, narrow_range=False
)


class PassThrough(quantizers.Quantizer):
    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        return inputs

    def get_config(self):
        return {}


class OfActivation(ListedConfig):
    """Quantizes the activation of a layer, and passes its weights through."""

    def __init__(self):
        super().__init__({"kernel": PassThrough()}, SYMMETRIC)


class TestQuantizeAwareActivation:
    def identity(self, size, activation):
        dense = layers.Dense(size, activation, kernel_initializer="identity", name="dense")
        return quantized((size,), dqmq_tf.quantize_annotate_layer(dense, OfActivation()))

    def names_of(self, model):
        return " ".join(v.path for v in model.variables if "activation_m" in v.path)

    def test_quantizes_behind_a_relu(self):
        model = self.identity(7, "relu")
        x = np.array([[-6.0, -3.0, 0.0, 0.05, 0.1, 3.0, 6.0]])
        expected = [[0.0, 0.0, 0.0, 0.04705906, 0.09411764, 3.011765, 5.9764705]]
        np.testing.assert_allclose(model(x), expected, atol=1e-6)
        names = self.names_of(model)
        assert "post_activation" in names and "pre_activation" not in names

    def test_quantizes_before_a_softmax(self):
        model = self.identity(2, "softmax")
        found = model(np.array([[1.0, 2.0]]))
        np.testing.assert_allclose(found, [[0.27126083, 0.72873914]], atol=1e-6)
        names = self.names_of(model)
        assert "pre_activation" in names and "post_activation" not in names

    def test_quantizes_on_both_sides_of_a_gelu(self):
        names = self.names_of(self.identity(2, "gelu"))
        assert "pre_activation" in names and "post_activation" in names

    def test_does_not_quantize_a_no_op_activation(self):
        assert around_activation(NoOpActivation()) == (False, False)


@pytest.mark.parametrize(
    "kind, arguments",
    [
        (layers.Conv2D, {"filters": 5, "kernel_size": (2, 2)}),
        (layers.DepthwiseConv2D, {"kernel_size": (2, 2), "depth_multiplier": 5}),
    ],
)
def test_the_quantizer_of_convolutions_has_a_range_per_channel(kind, arguments):
    layer = kind(**arguments)
    layer.build((None, 5, 2, 3))
    quantizer = default_8bit.Default8BitConvWeightsQuantizer()
    user = UserQuantizer([("kernel", quantizer)], layer.kernel.shape)
    user(layer.kernel.value, training=True)
    assert [tuple(v.shape) for v in user.variables if "kernel_m" in v.path] == [(5,), (5,)]


def test_custom_weight_quantizers_run():
    # Configs may share a quantizer. The guide's FixedRangeQuantizer is in test_guide_of_tfmot.
    quantizer = quantizers.LastValueQuantizer(**PLAIN)

    class DenseQuantizeConfig(OfActivation):
        def get_weights_and_quantizers(self, layer):
            return [(layer.kernel, quantizer)]

        def get_activations_and_quantizers(self, layer):
            return [(layer.activation, quantizers.MovingAverageQuantizer(**PLAIN))]

    model = quantized(
        (10,),
        dqmq_tf.quantize_annotate_layer(layers.Dense(8), DenseQuantizeConfig()),
        dqmq_tf.quantize_annotate_layer(layers.Dense(5), DenseQuantizeConfig()),
        config=dqmq_tf.DQMQConfig(quality_aware=False),
    )
    model.compile(loss="mse", optimizer="sgd", run_eagerly=True)
    x, y = np.random.default_rng(0).random((20, 10)), np.eye(5)[np.arange(20) % 5]
    model.fit(x, y, batch_size=20, verbose=0)
    variables = [v for v in model.variables if v.path.endswith("post_activation_max")]
    # TFMOT's moving average: 6 - 0.001 * (6 - largest value of the batch).
    assert len(variables) == 2 and all(5.994 < float(v.numpy()) < 6.0 for v in variables)


def test_annotation_does_not_affect_computation_and_is_saved(tmp_path):
    layer = layers.Dense(5, activation="relu")
    model = keras.Sequential([keras.Input((10,)), layer])
    annotated = keras.Sequential(
        [keras.Input((10,)), dqmq_tf.quantize_annotate_layer(layer, OfActivation())]
    )
    x = np.random.default_rng(0).random((10, 10))
    expected = model(x)
    np.testing.assert_array_equal(annotated.predict(x, verbose=0), expected)
    annotated.save(tmp_path / "annotated.keras")
    loaded = keras.models.load_model(tmp_path / "annotated.keras")
    rules = [m.layers[0].rule("dense") for m in (annotated, loaded)]
    assert rules[0].to_dict() == rules[1].to_dict()
    assert type(rules[1].user_quantizers.weights["kernel"]) is PassThrough


def test_an_activation_quantizer_calls_its_quantizer_behind_a_relu_of_its_layer():
    layer = UserActivationQuantizer([("post_activation", SYMMETRIC)], (None, 3), "conv", (8,))
    found = layer(np.array([[-1.0, 0.05, 6.0]], "float32"), ceiling=np.inf)
    np.testing.assert_allclose(found, [[0.0, 0.04705906, 5.9764705]], atol=1e-6)
