"""The custom configs of TFMOT's guide, on layers of Keras 3.

The guide is "Quantization aware training comprehensive guide", section "Experiment with
quantization". Its classes stand here as they do there.
"""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import dqmq_tf
from dqmq_tf.tfmot.quantize_config import tfmot

LastValueQuantizer = tfmot.quantization.keras.quantizers.LastValueQuantizer
MovingAverageQuantizer = tfmot.quantization.keras.quantizers.MovingAverageQuantizer
AllValuesQuantizer = tfmot.quantization.keras.quantizers.AllValuesQuantizer
quantize_scope = tfmot.quantization.keras.quantize_scope
n_bit = importlib.import_module(
    "tensorflow_model_optimization.python.core.quantization.keras.experimental.default_n_bit."
    "default_n_bit_quantize_registry"
)


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
        return tf.clip_by_value(inputs, -1.0, 1.0)

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


def annotated(layer, config):
    """The model that the guide builds in each of its examples."""
    keras.utils.set_random_seed(0)
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


@pytest.mark.parametrize(
    "config, layer, bits",
    [
        (DefaultDenseQuantizeConfig, CustomLayer, 8),
        (FourBits, keras.layers.Dense, 4),
        (AllValues, keras.layers.Dense, 4),
        (ThreeBits, keras.layers.Dense, 3),
    ],
)
def test_a_config_of_the_guide_is_quantized(config, layer, bits):
    model = annotated(layer(20, name="dense"), config())
    with quantize_scope({config.__name__: config, "CustomLayer": CustomLayer}):
        qmodel = dqmq_tf.quantize_apply(model, target="simulation")
    (weights,) = qmodel._parts.costs.weights
    assert (weights.name, weights.bit_widths) == ("dense:kernel", (bits,))
    assert isinstance(qmodel._parts.body.get_layer("dense"), layer)
    outputs = {p.name: p.bit_widths for p in qmodel._parts.costs.activations}
    assert outputs["dense"] == (8,)
    qmodel.calibrate(inputs())
    integers = qmodel.freeze().precision().weights["dense"]["kernel"].integers
    assert np.abs(integers).max() == 2 ** (bits - 1) - 1
    assert len(np.unique(integers)) > 2 ** (bits - 1)


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


@pytest.mark.parametrize(
    "config, reason",
    [
        (SkipActivation, "quantizes weights and leaves the output in floating point"),
        (FixedRange, "FixedRangeQuantizer, which does not say how many bits"),
        (Asymmetric, "'kernel' with symmetric=False, but kernels read weights"),
        (SixteenBits, "MovingAverageQuantizer of 16 bits, but tensors have 2 to 8 bits"),
    ],
)
def test_what_no_file_can_hold_is_refused_by_name_before_training(config, reason):
    model = annotated(keras.layers.Dense(20, name="dense"), config())
    with pytest.raises(ValueError, match=f"Layer 'dense': {config.__name__}.*{reason}"):
        dqmq_tf.quantize_apply(model)
