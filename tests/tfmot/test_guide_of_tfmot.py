"""The custom configs of TFMOT's guide, on layers of Keras 3.

The guide is "Quantization aware training comprehensive guide", section "Experiment with
quantization". Its classes stand here as they do there.
"""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import dqmq_tf
from dqmq_tf.config import Budget, DQMQConfig, LayerRule
from dqmq_tf.tfmot.quantize_config import tfmot

LastValueQuantizer = tfmot.quantization.keras.quantizers.LastValueQuantizer
MovingAverageQuantizer = tfmot.quantization.keras.quantizers.MovingAverageQuantizer
AllValuesQuantizer = tfmot.quantization.keras.quantizers.AllValuesQuantizer
quantize_scope = tfmot.quantization.keras.quantize_scope
CORE = "tensorflow_model_optimization.python.core.quantization.keras"
n_bit = importlib.import_module(
    f"{CORE}.experimental.default_n_bit.default_n_bit_quantize_registry"
)
quantize_wrapper = importlib.import_module(f"{CORE}.quantize_wrapper")


class DefaultDenseQuantizeConfig(tfmot.quantization.keras.QuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return [
            (
                layer.kernel,
                LastValueQuantizer(num_bits=8, symmetric=True, narrow_range=False, per_axis=False),
            )
        ]

    def get_activations_and_quantizers(self, layer):
        return [
            (
                layer.activation,
                MovingAverageQuantizer(
                    num_bits=8, symmetric=False, narrow_range=False, per_axis=False
                ),
            )
        ]

    def set_quantize_weights(self, layer, quantize_weights):
        layer.kernel = quantize_weights[0]

    def set_quantize_activations(self, layer, quantize_activations):
        layer.activation = quantize_activations[0]

    def get_output_quantizers(self, layer):
        return []

    def get_config(self):
        return {}


class FourBits(DefaultDenseQuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return [
            (
                layer.kernel,
                LastValueQuantizer(num_bits=4, symmetric=True, narrow_range=False, per_axis=False),
            )
        ]


class AllValues(DefaultDenseQuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return [
            (layer.kernel, AllValuesQuantizer(4, per_axis=False, symmetric=True, narrow_range=True))
        ]

    def get_activations_and_quantizers(self, layer):
        return [(layer.activation, AllValuesQuantizer(8, False, False, False))]


class SkipActivation(DefaultDenseQuantizeConfig):
    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_activations(self, layer, quantize_activations):
        return


class FixedRangeQuantizer(tfmot.quantization.keras.quantizers.Quantizer):
    """Quantizer which forces outputs to be between -1 and 1."""

    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        return tf_keras.backend.clip(inputs, -1.0, 1.0)

    def get_config(self):
        return {}


class FixedRange(DefaultDenseQuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, FixedRangeQuantizer())]


class OwnQuantizer(LastValueQuantizer):
    """A quantizer of the user's own, of 3 bits."""

    def __init__(self):
        super().__init__(num_bits=3, per_axis=True, symmetric=True, narrow_range=True)


class ThreeBits(DefaultDenseQuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, OwnQuantizer())]


class Asymmetric(DefaultDenseQuantizeConfig):
    def get_weights_and_quantizers(self, layer):
        return [(layer.kernel, LastValueQuantizer(4, True, False, False))]


class SixteenBits(DefaultDenseQuantizeConfig):
    def get_activations_and_quantizers(self, layer):
        return [(layer.activation, MovingAverageQuantizer(16, False, False, False))]


@keras.saving.register_keras_serializable(package="tests")
class CustomLayer(keras.layers.Dense):
    pass


@pytest.fixture(autouse=True)
def seeded():
    """Seeds TensorFlow, by which `fit` shuffles. `conftest.py` seeds the rest."""
    tf.random.set_seed(0)


def annotated(layer, config):
    """The model that the guide builds in each of its examples."""
    return dqmq_tf.quantize_annotate_model(
        keras.Sequential(
            [
                keras.Input((20,)),
                dqmq_tf.quantize_annotate_layer(layer, config),
                keras.layers.Flatten(),
            ]
        )
    )


def inputs():
    return np.random.default_rng(0).normal(size=(64, 20)).astype("float32")


def labels():
    return np.random.default_rng(1).normal(size=(64, 20)).astype("float32")


def after_one_step(quantizer, kernel):
    """What a quantizer of TFMOT makes of a kernel in its first training step."""
    shape = kernel.shape[-1:] if quantizer.per_axis else ()
    limits = {"min_var": tf.Variable(tf.zeros(shape)), "max_var": tf.Variable(tf.zeros(shape))}
    return quantizer(tf.constant(kernel), True, limits).numpy()


@pytest.mark.parametrize(
    "config, layer, bits",
    [
        (DefaultDenseQuantizeConfig, CustomLayer, 8),
        (FourBits, keras.layers.Dense, 4),
        (AllValues, keras.layers.Dense, 4),
        (ThreeBits, keras.layers.Dense, 3),
        (Asymmetric, keras.layers.Dense, 5),
    ],
)
def test_a_config_of_the_guide_is_quantized(config, layer, bits):
    model = annotated(layer(20, name="dense"), config())
    with quantize_scope({config.__name__: config, "CustomLayer": CustomLayer}):
        qmodel = dqmq_tf.quantize_apply(model, target="simulation")
    (weights,) = qmodel._parts.costs.weights
    assert (weights.name, weights.bit_widths) == ("dense:kernel", (bits,))
    dense = qmodel._parts.body.get_layer("dense")
    assert isinstance(dense, layer)
    outputs = {p.name: p.bit_widths for p in qmodel._parts.costs.activations}
    assert outputs["dense"] == (8,)
    qmodel.calibrate(inputs())
    precision = qmodel.freeze().precision().weights["dense"]["kernel"]
    integers = precision.integers
    if config is not Asymmetric:
        # Without narrow_range, the lowest of the integers may be in use too, such as -8 at 4 bits.
        assert np.abs(integers).max() in (2 ** (bits - 1) - 1, 2 ** (bits - 1))
        assert len(np.unique(integers)) > 2 ** (bits - 1)
    # The weights are those of TFMOT, but for -128, which int8 kernels do not take.
    ((_, quantizer),) = config().get_weights_and_quantizers(dense)
    expected = after_one_step(quantizer, dense.kernel.numpy())
    found = integers * precision.step
    different = np.abs(found - expected) > 1e-6
    assert different.sum() <= (bits == 8) and (integers[different] == -127).all()
    np.testing.assert_allclose(
        found, expected, atol=1.001 * precision.step.max() * (bits == 8) + 1e-6
    )


@pytest.mark.parametrize(
    "config, activation",
    [(FourBits, "relu"), (AllValues, "gelu")],
)
def test_training_is_that_of_tfmot(config, activation):
    """The same network in TFMOT's wrapper, on Keras 2, has the same weights and ranges after it."""
    keras.utils.set_random_seed(3)
    dense = keras.layers.Dense(20, activation=activation, name="dense")
    model = keras.Sequential(
        [keras.Input((20,), name="x"), dqmq_tf.quantize_annotate_layer(dense, config())]
    )
    old_dense = tf_keras.layers.Dense(20, activation=activation)
    old = tf_keras.Sequential(
        [tf_keras.Input((20,)), quantize_wrapper.QuantizeWrapperV2(old_dense, config())]
    )
    # TFMOT's wrapper replaces the variables in its layer.
    for variable, value in zip(old.trainable_variables, dense.get_weights()):
        variable.assign(value)
    # TFMOT's wrapper does not quantize its input.
    rules = [LayerRule(pattern="x|dense_activation", quantize=False)]
    qmodel = dqmq_tf.quantize_apply(
        model,
        target="simulation",
        budget=Budget(mean_bit_width=32),
        config=DQMQConfig(rules=rules, quality_aware=False),
    )
    qmodel.compile(keras.optimizers.SGD(0.1), "mse")
    old.compile(tf_keras.optimizers.SGD(0.1), "mse")

    def assert_same():
        np.testing.assert_allclose(qmodel(inputs()), old(inputs()), atol=1e-5)

    assert_same()
    for network in (qmodel, old):
        network.fit(inputs(), labels(), batch_size=16, epochs=2, shuffle=False, verbose=0)
    assert_same()
    found = {v.path.split("/")[-1]: v.numpy() for v in qmodel.variables}
    expected = {v.name.split("/")[-1].removesuffix(":0"): v.numpy() for v in old.variables}
    del expected["optimizer_step"]
    assert {"kernel", "bias", "kernel_min", "post_activation_max"} <= set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


def test_four_bits_of_the_guide_are_four_bits_in_the_file(tmp_path):
    qmodel = dqmq_tf.quantize_apply(
        annotated(keras.layers.Dense(20), FourBits()), target="android_small"
    )
    qmodel.calibrate(inputs())
    report = dqmq_tf.convert(qmodel, tmp_path / "m.tflite", data=inputs())
    (weights,) = report.weights
    assert (weights.bit_width, weights.container, weights.stored_bytes) == (4, "INT4", 200)
    assert report.verification.top1_agreement == 1.0


def test_the_n_bit_configs_of_tfmot_are_qonnx_files(tmp_path):
    config = n_bit.DefaultNBitQuantizeConfig(
        ["kernel"], ["activation"], False, num_bits_weight=4, num_bits_activation=4
    )
    model = annotated(keras.layers.Dense(20, activation="relu", name="dense"), config)
    with pytest.raises(ValueError, match=r"'dense': activation bit-widths \[4\]"):
        dqmq_tf.quantize_apply(model, target="android")
    qmodel = dqmq_tf.quantize_apply(model, target="simulation")
    qmodel.calibrate(inputs())
    dqmq_tf.export_qonnx(qmodel, tmp_path / "m.onnx")
    bits = {p.bit_width for p in qmodel.precision().activations.values()}
    assert 4 in bits and (tmp_path / "m.onnx").stat().st_size > 0


@pytest.mark.filterwarnings("ignore:.*cannot be converted")
def test_skipping_the_activation_trains_and_gives_a_file_with_a_float_output(tmp_path):
    # The symmetric range ends at the largest weight, which a negative one exceeds by half a step.
    mostly_negative = keras.initializers.RandomUniform(-0.5, 0.2, seed=2)
    dense = keras.layers.Dense(20, kernel_initializer=mostly_negative, name="dense")
    model = annotated(dense, SkipActivation())
    qmodel = dqmq_tf.quantize_apply(model, config=DQMQConfig(quality_aware=False))
    assert [p.name for p in qmodel._parts.costs.activations] == [model.inputs[0].name]
    qmodel.compile("sgd", "mse", run_eagerly=True)
    losses = qmodel.fit(inputs(), labels(), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    with pytest.warns(UserWarning, match="'dense': 1 of the weights in 'kernel' are -128 steps"):
        report = dqmq_tf.convert(qmodel, tmp_path / "m.tflite", data=inputs())
    assert report.float_layers["dense"] == "its output is left in floating point by a rule"
    assert [(w.bit_width, w.container) for w in report.weights] == [(8, "INT8")]
    assert report.verification.top1_agreement == 1.0


def test_what_no_file_can_hold_trains_and_is_refused_by_name(tmp_path):
    reason = "Layer 'dense': FixedRangeQuantizer runs on 'kernel', but .* are not multiples"
    model = annotated(keras.layers.Dense(20, name="dense"), FixedRange())
    with pytest.warns(UserWarning, match=f"cannot be converted .*{reason}"):
        qmodel = dqmq_tf.quantize_apply(model, config=DQMQConfig(quality_aware=False))
    qmodel.compile("sgd", "mse", run_eagerly=True)
    losses = qmodel.fit(inputs(), labels(), epochs=3, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert qmodel.evaluate(inputs(), labels(), verbose=0) < losses[0]
    qmodel.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(inputs()), qmodel(inputs()))
    with pytest.raises(dqmq_tf.ConversionError, match=reason):
        dqmq_tf.convert(loaded, tmp_path / "m.tflite", data=inputs())
    assert not (tmp_path / "m.tflite").exists()


def test_an_output_of_16_bits_runs_and_is_refused_by_name():
    model = annotated(keras.layers.Dense(20, name="dense"), SixteenBits())
    reason = "MovingAverageQuantizer runs on its output, but it has more than 256 levels"
    with pytest.warns(UserWarning, match=f"cannot be converted .*Layer 'dense': {reason}"):
        qmodel = dqmq_tf.quantize_apply(model)
    steps = qmodel(inputs()).numpy() / (12 / (2**16 - 1))
    np.testing.assert_allclose(steps, np.round(steps), atol=0.02)
    assert len(np.unique(steps)) > 256


def test_a_fixed_range_clips_the_weights_that_the_layer_uses():
    layer = keras.layers.Dense(20, name="dense", kernel_initializer="ones", use_bias=False)
    qmodel = dqmq_tf.quantize_apply(annotated(layer, FixedRange()), target="simulation")
    dense = qmodel._parts.body.get_layer("dense")
    dense.kernel.assign(3.0 * dense.kernel)
    ones = np.ones((1, 20), "float32") / 20
    np.testing.assert_allclose(qmodel.float_model()(ones), 3.0 * np.ones((1, 20)), atol=1e-5)
    # MovingAverageQuantizer has steps of 12 / 255 before training.
    np.testing.assert_allclose(qmodel(ones), np.ones((1, 20)), atol=6 / 255)
