import keras
import numpy as np
import pytest
import tensorflow as tf

import dqmq_tf
from dqmq_tf import quality

CLASSES = 10


def classifier(activation="softmax", nested=False):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Conv2D(4, 3, strides=4)(inputs)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.Flatten()(x)
    head = keras.layers.Dense(CLASSES, activation=activation)
    if nested:
        head = keras.Sequential([keras.Input(x.shape[1:]), head])
    return keras.Model(inputs, head(x))


@pytest.fixture(scope="module")
def digits():
    """A dataset of real images and classes in batches of 50, and its first batch."""
    data = quality.digits("train").take(200).batch(50)
    data = data.map(lambda x, y: (tf.cast(x, tf.float32) / 255.0, y))
    return data, next(iter(data))


@pytest.mark.parametrize("activation", ["softmax", None])
@pytest.mark.parametrize("nested", [False, True])
def test_labels_are_mixed_with_what_the_model_predicts(digits, activation, nested):
    data, (x, y) = digits
    model = classifier(activation, nested)
    predicted = model(x, training=False)
    predicted = keras.ops.softmax(predicted) if activation is None else predicted
    expected = 0.7 * np.eye(CLASSES)[y] + 0.3 * np.asarray(predicted)
    images, labels = next(iter(dqmq_tf.distill_labels(data, model, share=0.3)))
    np.testing.assert_array_equal(images, x)
    np.testing.assert_allclose(labels, expected, atol=1e-5)
    np.testing.assert_allclose(np.sum(labels, axis=-1), 1.0, atol=1e-5)


def test_one_hot_labels_columns_and_weights_are_taken(digits):
    data, (_, y) = digits
    model = classifier()
    _, expected = next(iter(dqmq_tf.distill_labels(data, model)))
    for form in (lambda y: tf.one_hot(y, CLASSES), lambda y: tf.reshape(y, (-1, 1))):
        given = data.map(lambda x, y, form=form: (x, form(y), tf.ones_like(y)))
        _, labels, weights = next(iter(dqmq_tf.distill_labels(given, model)))
        np.testing.assert_allclose(labels, expected, atol=1e-6)
        np.testing.assert_array_equal(weights, np.ones_like(y))


def test_training_the_model_changes_no_label(digits):
    data, _ = digits
    model = classifier()
    dataset = dqmq_tf.distill_labels(data, model)
    before = next(iter(dataset))[1].numpy()
    model.compile("sgd", "sparse_categorical_crossentropy")
    model.fit(data, verbose=0)
    np.testing.assert_array_equal(next(iter(dataset))[1], before)


def test_a_quantized_model_learns_from_it(digits):
    data, _ = digits
    model = classifier()
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(data.repeat(), epochs=1, steps_per_epoch=60, verbose=0)
    # With bits enough: four filters learn too little at 2 bits.
    budget = dqmq_tf.Budget(mean_bit_width=6.5)
    qmodel = dqmq_tf.quantize_model(model, target="simulation", budget=budget)
    qmodel.compile(keras.optimizers.Adam(0.01), "categorical_crossentropy")
    dataset = dqmq_tf.distill_labels(data, model, share=1.0)
    qmodel.fit(dataset, epochs=20, verbose=0)
    # The float model's own labels: to agree with it is all there is to learn.
    x, labels = next(iter(dataset))
    agreed = np.argmax(qmodel(x), axis=-1) == np.argmax(labels, axis=-1)
    assert np.mean(agreed) > 0.8


def test_what_does_not_go_together_is_refused(digits):
    data, _ = digits
    model = classifier()
    with pytest.raises(ValueError, match=r"share=1.5"):
        dqmq_tf.distill_labels(data, model, share=1.5)
    with pytest.raises(ValueError, match="Batch the dataset first"):
        dqmq_tf.distill_labels(data.unbatch(), model)
    with pytest.raises(ValueError, match=r"\(images, labels\)"):
        dqmq_tf.distill_labels(data.map(lambda x, y: x), model)
    with pytest.raises(ValueError, match="has 10 classes"):
        dqmq_tf.distill_labels(data.map(lambda x, y: (x, tf.one_hot(y, 7))), model)
    two = keras.Model(model.input, [model.output, model.output])
    with pytest.raises(ValueError, match="one output"):
        dqmq_tf.distill_labels(data, two)


def test_arrays_and_quantized_models_are_refused_by_name(digits):
    data, batch = digits
    with pytest.raises(ValueError, match=r"tf.data.Dataset of batches. Found tuple.*slices"):
        dqmq_tf.distill_labels(batch, classifier())
    with pytest.raises(ValueError, match=r"float model, but .* is quantized.*float_model\(\)"):
        dqmq_tf.distill_labels(data, dqmq_tf.quantize_model(classifier()))
    with pytest.raises(ValueError, match="subclassed"):
        dqmq_tf.distill_labels(data, type("Own", (keras.Model,), {})())
