import importlib
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from helpers.tfmot_configs import ListedConfig
from keras import layers

import dqmq_tf
from dqmq_tf.tfmot.quantize_config import tfmot, to_rule

CORE = "tensorflow_model_optimization.python.core.quantization.keras"
registry = importlib.import_module(f"{CORE}.default_8bit.default_8bit_quantize_registry")
Quantizer = tfmot.quantization.keras.quantizers.Quantizer
LastValueQuantizer = tfmot.quantization.keras.quantizers.LastValueQuantizer
AllValuesQuantizer = tfmot.quantization.keras.quantizers.AllValuesQuantizer
quantize_scope = tfmot.quantization.keras.quantize_scope


class LearnedLimit(Quantizer):
    """Clips values at a limit that is trained, and counts its training steps."""

    def build(self, tensor_shape, name, layer):
        assert tensor_shape.as_list() == [5, 4]
        steps = layer.add_weight(
            name + "_steps", initializer=tf_keras.initializers.Constant(0.0), trainable=False
        )
        # As Keras 3 takes them.
        limit = layer.add_weight(shape=(), initializer="ones", name=name + "_limit")
        return {"steps": steps, "limit": limit}

    def __call__(self, inputs, training, weights, **kwargs):
        if training:
            weights["steps"].assign_add(1.0)
        return tf.minimum(inputs, weights["limit"])

    def get_config(self):
        return {}


def last_value(bits, **arguments):
    return LastValueQuantizer(
        **{"num_bits": bits, "per_axis": False, "symmetric": True, "narrow_range": True} | arguments
    )


def all_values():
    return AllValuesQuantizer(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)


def apply(shape, *body, **arguments):
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input(shape), *body])
    return dqmq_tf.quantize_apply(model, **{"target": "simulation"} | arguments)


def variable(model, name):
    (found,) = [v for v in model.variables if v.path.endswith(name)]
    return found.numpy()


def values(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@pytest.fixture(scope="module")
def learned():
    """A model with groups of samples whose kernels differ, but for the user's quantizer."""
    dense = layers.Dense(4, name="dense")
    config = ListedConfig({"kernel": LearnedLimit()}, all_values())
    qmodel = apply(
        (5,),
        dqmq_tf.quantize_annotate_layer(dense, config),
        dqmq_tf.quantize_annotate_layer(layers.Dense(2, name="last")),
        config=dqmq_tf.DQMQConfig(profiles=2),
    )
    qmodel.compile(keras.optimizers.SGD(0.01), "mse")
    qmodel.fit(values(64, 5), values(64, 2), batch_size=16, epochs=2, verbose=0)
    qmodel._parts.body.get_layer("dense").kernel.assign(values(5, 4))
    return qmodel


def test_a_quantizer_is_called_once_a_step_whatever_the_number_of_groups(learned):
    assert variable(learned, "kernel_steps") == 8.0


def test_a_variable_of_a_quantizer_is_trained_and_saved(learned, tmp_path):
    limit = [v for v in learned.trainable_variables if v.path.endswith("kernel_limit")]
    assert len(limit) == 1
    limit[0].assign(0.5)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(learned(values(8, 5)) ** 2)
    assert abs(float(tape.gradient(loss, limit[0].value))) > 0
    learned.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert variable(loaded, "kernel_limit") == 0.5 and variable(loaded, "kernel_steps") == 8.0
    x = values(8, 5)
    np.testing.assert_array_equal(loaded(x), learned(x))


def test_training_goes_on_after_a_freeze_of_what_no_file_can_hold(learned):
    learned.freeze(profiles=1)
    assert learned.frozen_profiles == 1
    with pytest.raises(dqmq_tf.ConversionError, match="'dense': LearnedLimit runs on 'kernel'"):
        learned.precision()


def test_a_class_that_is_not_in_its_module_is_found_in_a_scope():
    class Local(LearnedLimit):
        pass

    dense = layers.Dense(4, name="dense")
    dense.build((None, 5))
    config = ListedConfig({"kernel": Local()}, all_values())
    saved = json.loads(json.dumps(to_rule(config, dense, "dense").to_dict()))
    with pytest.raises(ValueError, match="'.*Local' from module '.*', which is not found"):
        dqmq_tf.LayerRule.from_dict(saved)
    for scope in (quantize_scope, keras.saving.custom_object_scope):
        with scope({"Local": Local}):
            user = dqmq_tf.LayerRule.from_dict(saved).user_quantizers
        assert type(user.weights["kernel"]) is Local and user.outputs[0][1] == all_values()


def test_a_class_of_another_kind_in_a_file_is_not_created():
    config = dqmq_tf.LayerRule(pattern="x").to_dict()
    quantizer = {"class": "Popen", "module": "subprocess", "arguments": {"args": ["false"]}}
    config["user_quantizers"] = {
        "weights": {"kernel": quantizer}, "weight_bits": {}, "outputs": [], "split_outputs": []
    }  # fmt: skip
    with pytest.raises(ValueError, match="'Popen' from module 'subprocess', which is not found"):
        dqmq_tf.LayerRule.from_dict(config)


def test_a_batch_norm_and_a_relu_of_the_kernel_run_before_the_quantizer_of_its_output(tmp_path):
    conv = layers.Conv2D(4, 3, name="conv", use_bias=False)
    wide = last_value(4, per_axis=True, narrow_range=False)
    config = ListedConfig({"kernel": wide}, all_values())
    norm = layers.BatchNormalization(
        name="norm", gamma_initializer=keras.initializers.Constant(-1.0)
    )
    qmodel = apply(
        (8, 8, 3),
        dqmq_tf.quantize_annotate_layer(conv, config),
        norm,
        layers.ReLU(name="relu"),
        layers.GlobalAveragePooling2D(),
        target="android_small",
    )
    points = {p.name: p.user_path for p in qmodel._parts.costs.activations}
    assert "conv" not in points and points["relu"] == "conv"
    # The lowest of 16 integers is in use, and the batch norm changes its sign.
    kernel = qmodel._parts.body.get_layer("conv").kernel
    kernel.assign(-np.abs(kernel.numpy()))
    qmodel.calibrate(values(32, 8, 8, 3))
    precision = qmodel.freeze().precision().weights["conv"]["kernel"]
    assert precision.integers.min() == -8 and precision.bit_width == 4
    report = dqmq_tf.convert(qmodel, tmp_path / "m.tflite", data=values(32, 8, 8, 3))
    assert [(w.bit_width, w.container) for w in report.weights] == [(5, "INT8")]
    assert not report.float_layers and report.verification.different_numbers == 0
    assert report.verification.rows[0].largest_quanta <= 1


def test_the_parts_of_a_split_layer_share_its_quantizers(tmp_path):
    separable = layers.SeparableConv2D(4, 3, activation="gelu", name="s")
    weights = {"depthwise_kernel": last_value(8), "pointwise_kernel": last_value(4)}
    qmodel = apply(
        (6, 6, 2), dqmq_tf.quantize_annotate_layer(separable, ListedConfig(weights, all_values()))
    )
    bits = {p.name: p.bit_widths for p in qmodel._parts.costs.weights}
    assert bits == {"s_depthwise:kernel": (8,), "s_pointwise:kernel": (4,)}
    users = {
        p.name: [name for name, _ in p.user_quantizers] for p in qmodel._parts.costs.activations
    }
    del users[qmodel.inputs[0].name]
    assert users == {
        "s_depthwise": [],
        "s_pointwise": ["pre_activation"],
        "s_activation": ["post_activation"],
    }
    qmodel.calibrate(values(8, 6, 6, 2))
    qmodel.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    x = values(4, 6, 6, 2)
    np.testing.assert_array_equal(loaded(x), qmodel(x))
    assert [p.user_path for p in loaded._parts.costs.activations] == [
        p.user_path for p in qmodel._parts.costs.activations
    ]


def test_a_recurrent_layer_stays_whole():
    config = registry.Default8BitQuantizeConfigRNN(
        [["kernel", "recurrent_kernel"]], [["activation"]], False
    )
    lstm = dqmq_tf.quantize_annotate_layer(layers.LSTM(3, name="lstm"), config)
    qmodel = apply((5, 2), lstm)
    x = values(4, 5, 2)
    # Quantized from -6 to 6 before training, in steps of 12 / 255.
    levels = qmodel(x).numpy() / (12 / 255)
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-3)
    assert {p.name for p in qmodel._parts.costs.weights} == {
        "lstm:lstm_cell/kernel",
        "lstm:lstm_cell/recurrent_kernel",
    }


def test_weights_with_a_step_for_each_channel_are_refused_where_the_kernel_has_one(tmp_path):
    dense = layers.Dense(4, name="dense")
    config = ListedConfig({"kernel": last_value(8, per_axis=True)}, all_values())
    reason = "'dense': LastValueQuantizer runs on 'kernel', but .* with one step for all of them"
    with pytest.warns(UserWarning, match=reason):
        apply((5,), dqmq_tf.quantize_annotate_layer(dense, config), target="microcontroller")


def test_the_bits_of_a_quantizer_that_does_not_name_them_are_those_of_its_values():
    class Ternary(LearnedLimit):
        def build(self, tensor_shape, name, layer):
            return {}

        def __call__(self, inputs, training, weights, **kwargs):
            return 0.25 * tf.sign(inputs)

    class Levels(Ternary):
        def __call__(self, inputs, training, weights, **kwargs):
            return tf.round(tf.clip_by_value(inputs, -1.0, 2.0))

    config = ListedConfig({"kernel": Ternary()}, outputs=[Levels()])
    dense = layers.Dense(4, name="dense")
    qmodel = apply((5,), dqmq_tf.quantize_annotate_layer(dense, config))
    bits = {p.name: p.bit_widths for p in qmodel._parts.costs.weights}
    bits |= {p.name: p.bit_widths for p in qmodel._parts.costs.activations if p.user_path}
    assert bits == {"dense:kernel": (2,), "dense": (2,)}
    qmodel.calibrate(values(8, 5))
    precision = qmodel.freeze().precision()
    weights = precision.weights["dense"]["kernel"]
    assert set(np.unique(weights.integers)) == {-1, 1} and weights.step.ravel()[0] == 0.25
    outputs = {(p.step, p.zero_point, p.bit_width) for p in precision.activations.values()}
    assert (1.0, 1, 2) in outputs
