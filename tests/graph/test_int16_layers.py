"""Which tensors may have 16 bits."""

import keras
import pytest
from keras import layers

import dqmq_tf
from dqmq_tf.graph import trace
from dqmq_tf.graph.decision_points import find_points

BOTH = dqmq_tf.LayerRule(pattern=".*", activation_bits=(8, 16))


def network():
    x = inputs = keras.Input((8, 8, 3), name="image")
    x = layers.Conv2D(4, 3, use_bias=False, name="conv")(x)
    x = layers.ReLU(name="relu")(layers.BatchNormalization(name="norm")(x))
    x = layers.MaxPooling2D(name="pool")(layers.Dropout(0.1, name="drop")(x))
    x = layers.Conv2D(4, 1, activation="relu", name="small")(x)
    x = layers.UpSampling2D(name="up")(x)
    x = layers.GlobalAveragePooling2D(name="mean")(x)
    return keras.Model(inputs, layers.Dense(2, name="classes")(x))


def candidates(model, target="ethos_u", rules=BOTH):
    config = dqmq_tf.DQMQConfig(rules=rules)
    activations, weights = find_points(trace(model), dqmq_tf.targets.get(target), config)
    return {point.name: point.bit_widths for point in activations}, weights


@pytest.mark.parametrize("target", ["ethos_u", "microcontroller"])
def test_tensors_between_int16_kernels_may_have_16_bits(target):
    found, weights = candidates(network(), target)
    # A bilinear or nearest resize has no int16 kernel in TFLite Micro.
    assert found == {
        "image": (8, 16), "relu": (8, 16), "small": (8,), "mean": (8, 16), "classes": (8, 16),
    }  # fmt: skip
    assert [point.may_be_int16 for point in weights] == [True, True, True]


def test_without_a_rule_all_activations_have_8_bits():
    found, weights = candidates(network(), rules=())
    assert set(found.values()) == {(8,)}
    assert not any(point.may_be_int16 for point in weights)


def test_the_policy_decides_an_output_that_no_kernel_reads():
    config = dqmq_tf.DQMQConfig(rules=BOTH)
    activations, _ = find_points(trace(network()), dqmq_tf.targets.get("ethos_u"), config)
    assert {point.name: point.decided for point in activations}["classes"]


def test_16_bits_alone_are_refused_where_a_layer_has_no_kernel():
    rule = dqmq_tf.LayerRule(pattern="small", activation_bits=16)
    with pytest.raises(ValueError, match=r"'small'.*16 bits, because layer 'up' \(UpSampling2D\)"):
        candidates(network(), rules=rule)


def test_images_of_uint8_keep_8_bits():
    inputs = keras.Input((8, 8, 3), name="image", dtype="uint8")
    x = layers.Rescaling(1 / 255, name="scaled")(keras.ops.cast(inputs, "float32"))
    x = layers.Flatten(name="flat")(layers.Conv2D(4, 3, name="conv")(x))
    found, _ = candidates(keras.Model(inputs, layers.Dense(2, name="classes")(x)))
    assert (8,) in found.values() and found["scaled"] == found["conv"] == (8, 16)


@pytest.mark.parametrize("target", ["android", "android_small", "simulation"])
def test_other_targets_refuse_16_bits(target):
    with pytest.raises(ValueError, match=rf"\[16\] are not among those of target '{target}'"):
        candidates(network(), target)


def test_adaptive_files_refuse_16_bits_at_their_ends(tmp_path):
    from helpers.frozen_models import images

    model = network()
    rules = [dqmq_tf.LayerRule(pattern="image", activation_bits=16)]
    qmodel = dqmq_tf.quantize_model(
        model,
        target="microcontroller",
        budget=dqmq_tf.Budget(size_bytes=10**6),
        config=dqmq_tf.DQMQConfig(rules=rules, profiles=2),
    )
    data = images(model)
    qmodel.calibrate(data)
    with pytest.raises(dqmq_tf.ConversionError, match="'image' has 16 bits, but the inputs"):
        dqmq_tf.convert(qmodel, tmp_path / "model.tflite", adaptive=2, routing="graph", data=data)
