"""Inputs of any size, of another size than in training, and images as cameras give them (uint8)."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.eight_bits import converted, quantized, trained
from keras import layers, ops

import dqmq_tf
from dqmq_tf.export import ConversionError

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 3)).astype("uint8")


def classifier(size, dtype=None, first=None, last=None):
    """A small network for images, whose first layers may be given."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input((size, size, 3), dtype=dtype, name="image")
    x = first(inputs) if first else inputs
    x = layers.Conv2D(4, 3, name="conv")(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = (last or layers.GlobalAveragePooling2D())(x)
    return keras.Model(inputs, layers.Dense(3, activation="softmax", name="classes")(x))


def cast(x):
    return ops.cast(x, "float32") / 255


def centered(x):
    return layers.Rescaling(1 / 127.5, offset=-1)(x)


@pytest.mark.parametrize(
    "first, target",
    [(layers.Rescaling(1 / 255), "android"), (centered, "microcontroller"), (cast, "android")],
    ids=["rescaling", "centered on a microcontroller", "cast"],
)
def test_uint8_images_train_and_convert(first, target, tmp_path):
    qmodel = trained(quantized(classifier(8, "uint8", first), PIXELS, target), PIXELS)
    converted(qmodel, None, tmp_path)  # Verified on random pixels.
    dqmq_tf.verify(qmodel, tmp_path / "model.tflite", data=PIXELS)


def augmented(x):
    x = layers.Cropping2D(1)(layers.ZeroPadding2D(1)(x))
    x = layers.RandomTranslation(0.1, 0.1)(layers.RandomFlip()(x))
    return layers.Rescaling(1 / 255)(ops.cast(x, "float32"))


def test_what_only_casts_uint8_images_keeps_their_integers(tmp_path):
    qmodel = quantized(classifier(8, "uint8", augmented), PIXELS)
    for quantizer in qmodel._parts.quantizers:
        if quantizer.trainable:  # Training moves learned steps.
            quantizer.log_step.assign(1.01 * quantizer.log_step)
    converted(qmodel, PIXELS, tmp_path)


def test_uint8_arrays_for_a_float_input(tmp_path):
    qmodel = trained(quantized(classifier(8, None, layers.Rescaling(1 / 255)), PIXELS), PIXELS)
    converted(qmodel, PIXELS, tmp_path)
    same = qmodel.predict(PIXELS.astype("float32"), verbose=0)
    np.testing.assert_allclose(qmodel.predict(PIXELS, verbose=0), same, atol=1e-6)


def nested(size):
    inner = keras.Input((size, size, 3))
    x = layers.Conv2D(4, 3, strides=2)(inner)
    backbone = keras.Model(inner, layers.BatchNormalization()(x), name="backbone")
    inputs = keras.Input((size, size, 3))
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(backbone(inputs)))
    return keras.Model(inputs, layers.Dense(3)(x))


def reshaped(size):
    return classifier(size, last=lambda x: layers.GlobalMaxPooling1D()(layers.Reshape((-1, 4))(x)))


@pytest.mark.parametrize(
    "model, size", [(classifier, None), (nested, None), (reshaped, 8), (classifier, 8)]
)
def test_a_trained_model_moves_to_a_fixed_size(model, size, tmp_path):
    images = (PIXELS / 255).astype("float32")
    if size is None:
        with pytest.warns(UserWarning, match="change_input_shape"):
            qmodel = quantized(model(size), images)
    else:
        qmodel = quantized(model(size), images)
    trained(qmodel, images)
    if size is None:
        with pytest.raises(ConversionError, match="change_input_shape"):
            converted(qmodel, images, tmp_path)
    larger = np.repeat(np.repeat(images, 2, axis=1), 2, axis=2)
    moved = dqmq_tf.change_input_shape(qmodel, (16, 16, 3))
    assert moved.input_shape == (None, 16, 16, 3)
    assert moved.decision_points == qmodel.decision_points
    if size is None:
        expected = qmodel.predict(larger, verbose=0)
        np.testing.assert_allclose(moved.predict(larger, verbose=0), expected, atol=1e-5)
    moved.save(tmp_path / "moved.keras")
    moved = keras.models.load_model(tmp_path / "moved.keras")
    converted(moved, larger, tmp_path)


def test_a_size_that_a_layer_does_not_accept_is_refused():
    qmodel = dqmq_tf.quantize_model(classifier(8, last=layers.Flatten()), target="simulation")
    with pytest.raises(ValueError, match="cannot run on inputs of shapes.*16, 16, 3"):
        dqmq_tf.change_input_shape(qmodel, (16, 16, 3))
    with pytest.raises(ValueError, match="as many axes"):
        dqmq_tf.change_input_shape(qmodel, (16, 16))
    with pytest.raises(ValueError, match=r"Input .* has shape \(8, 8, 3\).* got 16\. Pass a shape"):
        dqmq_tf.change_input_shape(qmodel, 16)
    with pytest.raises(ValueError, match="one shape for each"):
        dqmq_tf.change_input_shape(qmodel)
    with pytest.raises(ValueError, match="must be a DQMQModel. Found Functional"):
        dqmq_tf.change_input_shape(qmodel.float_model(), (16, 16, 3))


@pytest.mark.parametrize("shape, given", [((8, 8, 1), (8, 8)), ((1,), ()), ((6,), (6, 1))])
def test_a_last_axis_of_one_may_be_missing_or_added_as_in_keras(shape, given):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = layers.Dense(4, activation="relu")(layers.Flatten()(inputs))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    x = np.random.default_rng(0).random((16, *shape)).astype("float32")
    same, y = x.reshape(16, *given), np.zeros(16, int)
    qmodels = []
    for data in (x, same, tf.data.Dataset.from_tensor_slices((same, y)).batch(16)):
        qmodels.append(dqmq_tf.quantize_model(model, target="simulation"))
        qmodels[-1].compile("sgd", "sparse_categorical_crossentropy", run_eagerly=True)
        labels = () if isinstance(data, tf.data.Dataset) else (y,)
        qmodels[-1].fit(data, *labels, epochs=2, batch_size=16, shuffle=False, verbose=0)
        qmodels[-1].calibrate(data)
        np.testing.assert_array_equal(qmodels[-1].predict(same), qmodels[0].predict(x))
        decided = [qmodels[-1].decisions(d).bits for d in (same, x)]
        np.testing.assert_array_equal(*decided)


def test_sequences_of_any_length_train_from_batches_that_are_padded():
    def sequences():
        random = np.random.default_rng(0)
        for length in random.integers(4, 9, 12):
            yield random.normal(size=(length, 3)).astype("float32"), int(length > 6)

    signature = (tf.TensorSpec((None, 3)), tf.TensorSpec((), tf.int32))
    data = tf.data.Dataset.from_generator(sequences, output_signature=signature).padded_batch(4)
    inputs = keras.Input((None, 3))
    x = layers.GlobalMaxPooling1D()(layers.Conv1D(4, 3, activation="relu")(inputs))
    model = keras.Model(inputs, layers.Dense(2)(x))
    with pytest.warns(UserWarning, match="change_input_shape"):
        qmodel = dqmq_tf.quantize_model(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    qmodel.compile("sgd", loss, run_eagerly=True)
    history = qmodel.fit(data, epochs=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()


@pytest.mark.parametrize("budget", [None, dqmq_tf.Budget(download_bytes=5_000)])
def test_a_fixed_size_keeps_settled_bits_or_says_that_the_budget_does_not(budget, tmp_path):
    signals = np.random.default_rng(0).normal(size=(16, 8, 6)).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 6))
    x = layers.Dense(16)(inputs)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 8)(x, x))
    model = keras.Model(inputs, layers.Dense(2)(layers.GlobalMaxPooling1D()(x)))
    message = "change_input_shape" if budget is None else "leave some room"
    with pytest.warns(UserWarning, match=message):
        qmodel = trained(dqmq_tf.quantize_model(model, budget=budget), signals, epochs=2)
    assert qmodel._parts.policy.phase == "settled"
    if budget is not None:
        with pytest.warns(UserWarning, match=r"takes about [\d,]+ bytes, but its budget is 5,000"):
            dqmq_tf.change_input_shape(qmodel, (8, 6))
        return
    bits = ops.convert_to_numpy(qmodel._parts.policy.assigned)
    moved = dqmq_tf.change_input_shape(qmodel, (8, 6))
    report = converted(moved, signals, tmp_path)
    np.testing.assert_array_equal(moved._parts.policy.assigned, bits)
    assert report.download_bytes <= moved.budget.value


@pytest.mark.filterwarnings("ignore:.*cannot be converted")
@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize(
    "target, budget",
    [
        ("android", None),
        ("android", dqmq_tf.Budget(download_bytes=4_000)),
        ("microcontroller", None),
        ("simulation", None),
    ],
)
def test_an_untrained_model_gets_another_size(target, budget, size):
    qmodel = dqmq_tf.quantize_model(classifier(size), target=target, budget=budget)
    moved = dqmq_tf.change_input_shape(qmodel, (16, 16, 3))
    assert moved.input_shape == (None, 16, 16, 3)
    if budget is not None or target == "simulation":
        assert moved.budget == qmodel.budget
    else:
        fresh = dqmq_tf.quantize_model(classifier(16), target=target)
        assert moved.budget.value == pytest.approx(fresh.budget.value, rel=0.02)


def test_a_model_of_another_size_remembers_the_qualities_that_training_saw():
    images = (PIXELS / 255).astype("float32")
    qmodel = trained(quantized(classifier(8), images), images)
    moved = dqmq_tf.change_input_shape(qmodel, (16, 16, 3))
    policies = [model._parts.policy for model in (qmodel, moved)]
    seen, moved_seen = (policy.seen.values() for policy in policies)
    assert len(seen)
    np.testing.assert_array_equal(moved_seen, seen)
    np.testing.assert_array_equal(*(policy.random.state.numpy() for policy in policies))


def test_a_model_for_an_npu_gets_another_size():
    budget = dqmq_tf.Budget(vela_cycles=1e6)
    rules = dqmq_tf.LayerRule(pattern=".*", weight_bits=(4, 8), activation_bits=(8, 16))
    qmodel, fresh = (
        dqmq_tf.quantize_model(
            classifier(size),
            target="ethos_u",
            budget=budget,
            config=dqmq_tf.DQMQConfig(rules=rules),
        )
        for size in (8, 16)
    )
    moved = dqmq_tf.change_input_shape(qmodel, (16, 16, 3))
    assert moved.input_shape == (None, 16, 16, 3) and moved.budget == budget
    # Vela's cycles are those of the new size.
    policies = [model._parts.policy for model in (qmodel, fresh, moved)]
    before, expected, found = (policy.byte_table.numpy() for policy in policies)
    assert not np.allclose(before, expected, rtol=0.1)
    np.testing.assert_allclose(found, expected)
    before, expected, found = (policy.activation_cycles for policy in policies)
    assert not np.allclose(before, expected, rtol=0.1)
    np.testing.assert_allclose(found, expected)


def test_a_scalar_is_an_input(tmp_path):
    age, x = keras.Input((), name="age"), keras.Input((5,), name="x")
    both = layers.Concatenate()([ops.expand_dims(age, -1), x])
    model = keras.Model({"age": age, "x": x}, layers.Dense(2)(both))
    random = np.random.default_rng(0)
    data = {"age": random.uniform(size=16), "x": random.uniform(size=(16, 5))}
    data = {name: values.astype("float32") for name, values in data.items()}
    converted(trained(quantized(model, data), data), data, tmp_path)


@pytest.mark.parametrize("floatx", ["float16", "float64"])
def test_another_type_of_all_weights_is_refused(floatx):
    model = classifier(8)
    keras.config.set_floatx(floatx)
    try:
        with pytest.raises(ValueError, match=f"floatx.*{floatx!r}.*needs float32"):
            dqmq_tf.quantize_model(model)
    finally:
        keras.config.set_floatx("float32")
