"""Models with `Exposure` from float to a file: 8 bits, every target, images of all kinds."""

import keras
import numpy as np
import pytest
from helpers.eight_bits import converted, quantized, trained
from helpers.predictions import predicted
from keras import layers

import dqmq_tf
from dqmq_tf.graph import splitting
from dqmq_tf.layers import Exposure

PARTS = (
    "gray", "mean", "center", "difference", "excess", "deviation", "curve", "reach", "gain",
    "black", "lifted", "exposed", "clipped",
)  # fmt: skip


def pixels(channels=3, count=24, least=0):
    """Images of any brightness and contrast, the first black and the second white."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(count, 8, 8, channels))
    means, log_spreads = random.uniform([[0], [least]], [[255], [6]], (2, count))[
        ..., None, None, None
    ]
    images = np.clip(means + 2.0**log_spreads * noise, 0, 255).round()
    images[0], images[1] = 0, 255
    return images.astype("uint8")


def classifier(channels=3, first=(), dtype=None, **options):
    keras.utils.set_random_seed(0)
    stem = [layers.Conv2D(4, 3, padding="same", name="conv"), layers.BatchNormalization()]
    head = [layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(3, activation="softmax")]
    exposure = Exposure(name="exposure", **options)
    inputs = keras.Input((8, 8, channels), dtype=dtype)
    return keras.Sequential([inputs, *first, exposure, *stem, *head])


def test_the_layer_is_split_into_parts_that_compute_the_same():
    model, images = classifier(strength=0.7), pixels().astype("float32")
    model.get_layer("exposure").trainable = False
    body, parts = splitting.split_layers(model)
    assert [part.path for part in parts["exposure"]] == [f"exposure_{name}" for name in PARTS]
    np.testing.assert_allclose(body(images), model(images), atol=1e-6)
    assert not any("exposure" in weight.path for weight in body.trainable_weights)


@pytest.mark.parametrize("rules", [(), (dqmq_tf.LayerRule(pattern=".*", weight_bits=(2,)),)])
def test_all_parts_have_8_bits_whatever_the_rules_say(rules):
    config = dqmq_tf.DQMQConfig(rules=rules)
    qmodel = dqmq_tf.quantize_model(classifier(), target="simulation", config=config)
    costs = qmodel._parts.costs
    bits = {point.name: point.bit_widths for point in (*costs.weights, *costs.activations)}
    ours = {name: bits[name] for name in bits if name.startswith("exposure_")}
    assert len(ours) > 12 and set(ours.values()) == {(8,)}
    assert bits["conv:kernel"] != (8,)
    names = set(dqmq_tf.DQMQModel.from_config(qmodel.get_config()).decision_points)
    assert names == set(qmodel.decision_points)


def test_a_layer_left_in_float_stays_there():
    rule = dqmq_tf.LayerRule(pattern="exposure", quantize=False)
    qmodel = dqmq_tf.quantize_model(classifier(), config=dqmq_tf.DQMQConfig(rules=[rule]))
    points = (*qmodel._parts.costs.weights, *qmodel._parts.costs.activations)
    assert not any(point.name.startswith("exposure_") for point in points)


@pytest.mark.parametrize(
    "target, channels",
    [("android", 3), ("android_small", 1), ("microcontroller", 1), ("ethos_u", 3)],
)
def test_a_file_computes_what_was_trained(target, channels, tmp_path):
    images = pixels(channels)
    qmodel = quantized(classifier(channels), images, target)
    if target == "android":
        trained(qmodel, images)
    report = converted(qmodel, images, tmp_path)
    assert report.verification.different_numbers == 0 and not report.float_layers
    rows = [row for row in report.verification.rows if row.note is None]
    assert rows and all(row.top1_agreement >= 0.98 for row in rows)
    assert report.vela is None or report.vela.cpu_operators == 0


def test_pixels_in_uint8_and_values_from_0_to_1(tmp_path):
    images = pixels()
    model = classifier(first=[layers.Rescaling(1 / 255)], dtype="uint8", value_range=(0, 1))
    report = converted(quantized(model, images), images, tmp_path)
    assert report.verification.different_numbers == 0


def test_8_bits_come_close_to_float_and_a_saved_model_is_the_same(tmp_path):
    images = pixels(count=64, least=3)[2:]
    inputs = keras.Input((8, 8, 3))
    exposure, shown = Exposure(name="exposure"), layers.Conv2D(3, 1, use_bias=False, name="shown")
    model = keras.Model(inputs, shown(exposure(inputs)))
    shown.kernel.assign(np.eye(3)[None, None])
    exposure.adapt(images)
    qmodel = quantized(model, images)
    differences = predicted(qmodel, images) - predicted(model, images)
    # The gain of dark images is up to 12, so that one gray level in them is 12 afterwards.
    assert exposure.spread > 10 and np.abs(differences.mean(axis=(1, 2, 3))).max() < 8
    assert np.abs(differences).mean() < 2
    qmodel.compile("adam", "mse", run_eagerly=True)
    qmodel.fit(images, model(images), epochs=1, verbose=0)
    qmodel.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    outputs = predicted(qmodel, images)
    np.testing.assert_array_equal(predicted(loaded, images), outputs)
    floats = qmodel.float_model()
    assert "exposure_curve" in {layer.name for layer in floats.layers}
    assert np.abs(predicted(floats, images) - outputs).mean() < 4
