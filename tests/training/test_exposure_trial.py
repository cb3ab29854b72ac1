"""`try_exposure` on real digits, in daylight and at night."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import dqmq_tf
from dqmq_tf import quality
from dqmq_tf.layers import Exposure
from dqmq_tf.training import exposure_trial

SHAPE = (16, 16, 1)


def compiled(model, loss="sparse_categorical_crossentropy"):
    model.compile("adam", loss)
    return model


def classifier(shape=SHAPE, scale=1 / 255):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([layers.Input(shape), layers.Rescaling(scale)], name="net")
    model.add(layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="conv"))
    model.add(layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"))
    model.add(layers.Flatten())
    model.add(layers.Dense(10, activation="softmax"))
    return compiled(model)


def first(data, count):
    return tuple(array[:count] for array in data)


@pytest.fixture(scope="module")
def digits():
    """Images in floating point, shape `[1437, 16, 16, 1]`, and their classes."""
    x, y = next(iter(quality.digits("train", size=16, channels=1).batch(2000)))
    return x.numpy().astype("float32"), y.numpy()


@pytest.fixture(scope="module")
def night(digits):
    """Every other image is dark and has little contrast."""
    x, y = digits
    is_dark = (np.arange(len(x)) % 2 == 0)[:, None, None, None]
    return np.where(is_dark, (0.1 * x + 20).round(), x), y


@pytest.fixture(scope="module")
def trained(digits):
    """A network that knows images by day alone."""
    model = classifier()
    model.fit(*digits, epochs=6, verbose=0)
    return model


def test_it_pays_at_night_for_a_network_that_knows_the_day(trained, night):
    before = trained.get_weights()
    trial = dqmq_tf.try_exposure(trained, night)
    assert "may still gain" not in str(trial)
    assert trial.pays and trial.gain > 2 * trial.error > 0
    assert trial.gain == pytest.approx(trial.loss - trial.exposed_loss, rel=1e-4)
    # 45 batches of 32, of which 9 are held back. The others are read again and again.
    assert trial.steps == 200 and trial.samples == 9 * 32
    assert "pays" in str(trial) and "200 steps" in str(trial)
    assert isinstance(trial.model.layers[0], Exposure)
    assert [layer.name for layer in trial.model.layers[1:]] == [la.name for la in trained.layers]
    assert isinstance(trial.model, keras.Sequential) and trial.model.name == "net"
    for found, expected in zip(trained.get_weights(), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    # The figures are those of the model that is returned.
    x, y = night
    held_back = np.random.default_rng(0).permutation(len(x)).tolist()
    held_back = np.concatenate([held_back[i : i + 32] for i in range(0, len(x), 160)])
    loss = compiled(trial.model).evaluate(x[held_back], y[held_back], verbose=0)
    assert trial.exposed_loss == pytest.approx(loss, rel=1e-3)


def test_it_does_not_pay_by_day(trained, digits):
    trial = dqmq_tf.try_exposure(trained, digits, digits, steps=10)
    assert not trial.pays and trial.model is trained
    assert "does not pay" in str(trial)
    # It is no verdict on a network that grows up behind the layer.
    assert str(trial).endswith("A network trained behind it from the start may still gain.")
    assert trial.samples == len(digits[0]) and trial.steps == 10


def test_a_gain_that_is_not_clear_does_not_pay(trained, night):
    trial = dqmq_tf.try_exposure(trained, night, first(night, 32), steps=1)
    assert trial.steps == 1 and not trial.pays and trial.gain < 2 * trial.error


def test_batches_are_read_once_and_sample_weights_count(trained, night):
    x, y = night
    # A generator can be read once. Samples without weight change nothing, and their loss is 0.
    weights = np.ones(32, "float32")
    rows = [slice(start, start + 32) for start in (0, 32, 64)]
    batches = ((x[row], y[row], weights * (row.start > 0)) for row in rows)
    with pytest.warns(UserWarning, match="as validation_data or, on the command line, in --data"):
        trial = dqmq_tf.try_exposure(trained, batches, steps=5)
    assert (trial.steps, trial.samples) == (5, 32)
    assert trial.loss == trial.gain == 0.0 and not trial.pays
    dataset = tf.data.Dataset.from_tensor_slices((x[:96], y[:96])).batch(32)
    trial = dqmq_tf.try_exposure(trained, dataset, steps=3)
    assert (trial.steps, trial.samples) == (3, 32) and trial.loss > 0


def test_too_few_samples_to_compare_are_refused_before_the_first_step(trained, night, monkeypatch):
    monkeypatch.setattr(keras.Model, "train_on_batch", None)
    few = tuple(array[:20] for array in night)
    with pytest.raises(ValueError, match="validation_data of 20 samples: give at least 30"):
        dqmq_tf.try_exposure(trained, night, few, steps=3)


def test_more_data_than_are_kept_do_not_shorten_the_trial(trained, night):
    more = tuple(np.concatenate([array, array]) for array in night)
    assert len(more[0]) > exposure_trial._ADAPT_IMAGES
    # 90 batches, of which one of five is held back.
    trial = dqmq_tf.try_exposure(trained, more, steps=80)
    assert trial.steps == 80


@pytest.mark.parametrize("batched", [True, False])
def test_a_dataset_without_an_end_gives_its_first_batches(trained, night, batched):
    x, y = night
    dataset = tf.data.Dataset.from_tensor_slices((x[:96], y[:96])).repeat()
    trial = dqmq_tf.try_exposure(trained, dataset.batch(32) if batched else dataset, steps=3)
    # One batch of five is held back.
    assert (trial.steps, trial.samples) == (3, 32)
    with pytest.raises(ValueError, match="`validation_data` is a dataset without an end"):
        dqmq_tf.try_exposure(trained, dataset, dataset.batch(32), steps=3)


@pytest.mark.parametrize(
    "low, high, expected", [(0, 1, (0, 1)), (-1, 1, (-1, 1)), (0, 255, (0, 255))]
)
def test_the_range_of_the_images_is_found(night, low, high, expected):
    x, y = night
    x = low + (high - low) * x / 255
    model = classifier(scale=1 / (high - low))
    images = x[:64], y[:64]
    exposure = dqmq_tf.training.exposure_trial._behind_exposure(model, 0, [images])
    layer = exposure.layers[0]
    assert layer.value_range == pytest.approx(expected, abs=0.01)
    assert layer.level == pytest.approx(images[0].mean(), rel=1e-3)


def test_the_image_input_of_several(night):
    x, y = night
    keras.utils.set_random_seed(0)
    size, image = keras.Input((2,), name="size"), keras.Input(SHAPE, name="image")
    features = keras.layers.Concatenate()([keras.layers.Flatten(name="exposure")(image), size])
    outputs = keras.layers.Dense(10, activation="softmax", name="head")(features)
    model = compiled(keras.Model({"image": image, "size": size}, {"head": outputs}))
    data = {"image": x / 255, "size": np.ones((len(x), 2), "float32")}
    trial = dqmq_tf.try_exposure(model, (data, {"head": y}), steps=3)
    assert trial.steps == 3
    exposed = dqmq_tf.training.exposure_trial._behind_exposure(model, 0, [(data, y)])
    assert exposed.get_layer("exposure_1").input is exposed.input["image"]


def test_an_input_without_a_name(night):
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPE)
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    outputs = keras.layers.Dense(10, activation="softmax")(features)
    model = compiled(keras.Model(inputs, outputs))
    trial = dqmq_tf.try_exposure(model, night, steps=3)
    assert trial.gain != 0.0
    exposed = dqmq_tf.training.exposure_trial._behind_exposure(model, 0, [night])
    assert isinstance(exposed.layers[1], Exposure)


def test_batch_norms_are_compared_with_statistics_of_what_they_see(night):
    """Their moving statistics follow new values slowly."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([layers.Input(SHAPE), layers.Rescaling(1 / 255)])
    for filters in (8, 16):
        model.add(layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False))
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(layers.Flatten())
    model.add(layers.Dense(10, activation="softmax"))
    x, y = night
    compiled(model).fit(x, y, epochs=8, verbose=0)
    trial = dqmq_tf.try_exposure(model, (x[:1000], y[:1000]), (x[1000:], y[1000:]), steps=100)
    assert trial.pays
    norms = [layer for layer in trial.model.layers if hasattr(layer, "moving_mean")]
    before = [norm.moving_mean.numpy() for norm in norms]
    assert [norm.momentum for norm in norms] == [0.99, 0.99]
    # More data has the same statistics.
    for step in range(200):
        for norm in norms:
            norm.momentum = step / (step + 1)
        trial.model(x[step % 31 * 32 :][:32], training=True)
    for norm, mean in zip(norms, before):
        spread = np.sqrt(norm.moving_variance.numpy())
        np.testing.assert_allclose(mean / spread, norm.moving_mean / spread, atol=0.1)


def test_quantize_model_keeps_it_where_it_pays(trained, digits, night, tmp_path):
    config = dqmq_tf.DQMQConfig(exposure="auto")
    qmodel = dqmq_tf.quantize_model(trained, config=config, data=first(night, 640))
    assert "exposure_gray:kernel" in qmodel.decision_points
    assert dqmq_tf.DQMQConfig.from_dict(config.to_dict()) == config
    path = tmp_path / "model.tflite"
    qmodel.calibrate(night[0])
    report = dqmq_tf.convert(qmodel.freeze(profiles=1), path, data=night[0][:64])
    assert report.verification.different_numbers == 0
    plain = dqmq_tf.quantize_model(trained, config=config, data=first(digits, 160))
    assert not any("exposure" in name for name in plain.decision_points)
    # A model that has the layer keeps it, and nothing is tried.
    behind = keras.Sequential([keras.Input(SHAPE), Exposure(), trained])
    again = dqmq_tf.quantize_model(behind, target="simulation", config=config, data=night)
    assert sum(name.endswith("gray:kernel") for name in again.decision_points) == 1


def test_losses_with_one_value_for_a_batch_have_one_for_each_sample(night):
    def mean_of_batch(y, p):
        return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, p))

    loss, held_back = "sparse_categorical_crossentropy", first(night, 64)
    trials = [
        dqmq_tf.try_exposure(compiled(classifier(), loss), night, held_back, steps=3)
        for loss in (loss, mean_of_batch)
    ]
    assert trials[1].samples == 64
    for name in ("loss", "exposed_loss", "gain", "error"):
        found, expected = (getattr(trial, name) for trial in reversed(trials))
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-6), name


def test_the_weights_of_the_losses_count(night):
    x, y = night
    keras.utils.set_random_seed(0)
    image = keras.Input(SHAPE)
    features = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(image))
    digit = keras.layers.Dense(10, activation="softmax", name="digit")(features)
    light = keras.layers.Dense(1, name="light")(features)
    model = keras.Model(image, [digit, light])
    losses = {"digit": "sparse_categorical_crossentropy", "light": "mse"}
    model.compile("adam", losses, loss_weights={"digit": 3.0, "light": 0.0})
    labels = [y, np.full(len(x), 1e3, "float32")]
    trial = dqmq_tf.try_exposure(model, (x, labels), (x[:64], [y[:64], labels[1][:64]]), steps=3)
    # Without weights, the second loss is about a million.
    assert 0 < trial.loss < 30 and 0 < trial.exposed_loss < 30


def test_wrong_use(trained, night):
    x, y = night
    with pytest.raises(ValueError, match=r"data=\.\.\., the labeled training data"):
        dqmq_tf.quantize_model(trained, config=dqmq_tf.DQMQConfig(exposure="auto"))
    with pytest.raises(ValueError, match="Unknown target 'phone'"):
        config = dqmq_tf.DQMQConfig(exposure="auto")
        dqmq_tf.quantize_model(trained, target="phone", config=config, data=[])
    with pytest.raises(ValueError, match=r'DQMQConfig\(exposure="auto"\) alone'):
        dqmq_tf.quantize_model(trained, data=night)
    with pytest.raises(ValueError, match="exposure='always' is not valid"):
        dqmq_tf.DQMQConfig(exposure="always")
    with pytest.raises(ValueError, match="steps=0 is not valid"):
        dqmq_tf.try_exposure(trained, night, steps=0)
    uncompiled = keras.Sequential([keras.Input(SHAPE), *trained.layers], name="again")
    with pytest.raises(ValueError, match="'again' is not compiled with a loss"):
        dqmq_tf.try_exposure(uncompiled, night)
    with pytest.raises(ValueError, match="`data` has no labels"):
        dqmq_tf.try_exposure(trained, x)
    with pytest.raises(ValueError, match="validation_data of 8 samples: give at least 30"):
        dqmq_tf.try_exposure(trained, (x[:40], y[:40]), (x[:8], y[:8]))
    behind = compiled(keras.Sequential([keras.Input(SHAPE), Exposure(), trained]))
    with pytest.raises(ValueError, match=r"float32 .16, 16, 1. and an Exposure"):
        dqmq_tf.try_exposure(behind, night)
    dense = compiled(keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(2)]))
    with pytest.raises(ValueError, match=r"has x float32 \[4\]"):
        dqmq_tf.try_exposure(dense, night)
