"""Data in every form in which users of Keras have it, in every step that takes data."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import dqmq_tf
from dqmq_tf import inputs

COUNT = 12
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(0, 1, (COUNT, 8, 8, 3)).astype("float32")
# The first input of the models is the last one by name, as dictionaries are sorted.
FACTS = RANDOM.normal(0, 1, (COUNT, 5)).astype("float32")
LABELS = np.arange(COUNT) % 3
WEIGHTS = np.ones(COUNT, "float32")


class Batches(keras.utils.PyDataset):
    """Four batches, for as long as they are read if it is endless."""

    def __init__(self, x, y, endless=False):
        super().__init__()
        self.x, self.y, self.endless = x, y, endless

    @property
    def num_batches(self):
        return None if self.endless else 4

    def __getitem__(self, index):
        rows = slice(3 * (index % 4), 3 * (index % 4) + 3)
        return keras.tree.map_structure(lambda array: array[rows], (self.x, self.y))


def dataset(*arrays):
    return tf.data.Dataset.from_tensor_slices(arrays if len(arrays) > 1 else arrays[0])


def generator(x, y, endless=False):
    batches = Batches(x, y)
    while True:
        yield from (batches[i] for i in range(4))
        if not endless:
            return


def distributed(data):
    return tf.distribute.get_strategy().experimental_distribute_dataset(data)


# What all steps after `fit` take, of a model of one input.
OF_ONE = {
    "array": lambda x: x,
    "tensor": tf.constant,
    "double precision": lambda x: x.astype("float64"),
    "nested lists": lambda x: x.tolist(),
    "lists of NumPy numbers": lambda x: [list(row) for row in x] if x.ndim == 2 else x.tolist(),
    "list of one": lambda x: [x],
    "dictionary": lambda x: {"image": x},
    "samples": dataset,
    "samples with labels": lambda x: dataset(x, LABELS),
    "batches": lambda x: dataset(x, LABELS).batch(5),
    "batches of one size": lambda x: dataset(x, LABELS).batch(4, drop_remainder=True),
    "batches of one size without labels": lambda x: dataset(x).batch(4, drop_remainder=True),
    "batches with weights": lambda x: dataset(x, LABELS, WEIGHTS).batch(5),
    "samples with weights": lambda x: dataset(x, LABELS, WEIGHTS),
    "dictionaries": lambda x: dataset({"image": x}, LABELS).batch(5),
    "PyDataset": lambda x: Batches(x, LABELS),
    "generator": lambda x: generator(x, LABELS),
    "distributed": lambda x: distributed(dataset(x, LABELS).batch(4)),
}
OF_TWO = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, b),
    "dictionary": lambda a, b: {"facts": b, "image": a},
    "nested lists": lambda a, b: [a.tolist(), b.tolist()],
    "dictionary of lists": lambda a, b: {"image": a.tolist(), "facts": b.tolist()},
    "samples": lambda a, b: dataset((a, b), LABELS),
    "batches of one size": lambda a, b: dataset((a, b), LABELS).batch(4, drop_remainder=True),
    "dictionaries": lambda a, b: dataset({"image": a, "facts": b}, LABELS).batch(5),
    "samples of dictionaries": lambda a, b: dataset({"image": a, "facts": b}, LABELS),
    "PyDataset": lambda a, b: Batches((a, b), LABELS),
    "generator of dictionaries": lambda a, b: generator({"image": a, "facts": b}, LABELS),
}
TRAINED = {
    "arrays": (lambda x: x, True, 1),
    "nested lists": (lambda x: keras.tree.map_structure(np.ndarray.tolist, x), True, 1),
    "batches": (lambda x: dataset(x, LABELS).batch(3), False, 4),
    "batches of one size": (lambda x: dataset(x, LABELS).batch(5, drop_remainder=True), False, 2),
    "distributed": (lambda x: distributed(dataset(x, LABELS).batch(3)), False, 4),
    "PyDataset": (lambda x: Batches(x, LABELS), False, 4),
    "endless PyDataset": (lambda x: Batches(x, LABELS, endless=True), False, 4),
    "generator": (lambda x: generator(x, LABELS, endless=True), False, 4),
}
KNOWN_LENGTH = {"endless PyDataset", "generator"}


def of_one(shape):
    x = keras.Input(shape, name="image")
    y = layers.Dense(4, activation="relu")(layers.Flatten()(x))
    return keras.Model(x, layers.Dense(3, name="classes")(y))


def of_two():
    image, facts = keras.Input((8, 8, 3), name="image"), keras.Input((5,), name="facts")
    y = layers.Concatenate()([layers.Flatten()(image), layers.Dense(4)(facts)])
    return keras.Model([image, facts], layers.Dense(3, name="classes")(y))


def quantized(model, target="android"):
    qmodel = dqmq_tf.quantize_model(model, target=target)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Tracing would take longer than these few steps.
    qmodel.compile(keras.optimizers.SGD(0.01), loss, metrics=["accuracy"], run_eagerly=True)
    return qmodel


@pytest.fixture(scope="module")
def frozen():
    """Frozen models of one image, one vector, and both, with the data of each."""
    models = {}
    arrays = {"image": IMAGES, "vector": FACTS, "two": [IMAGES, FACTS]}
    networks = {"image": of_one((8, 8, 3)), "vector": of_one((5,)), "two": of_two()}
    for name, data in arrays.items():
        qmodel = quantized(networks[name])
        qmodel.calibrate(data)
        models[name] = qmodel.freeze(), data
    return models


def forms(model):
    of = OF_TWO if model == "two" else OF_ONE
    return [pytest.param(model, of[name], id=f"{model}, {name}") for name in of]


ALL_FORMS = [*forms("image"), *forms("vector"), *forms("two")]


def in_form(frozen, model, form):
    qmodel, data = frozen[model]
    return qmodel, data, (form(*data) if isinstance(data, list) else form(data))


@pytest.mark.parametrize("model, form", ALL_FORMS)
def test_every_form_holds_the_same_inputs(frozen, model, form):
    qmodel, data, formed = in_form(frozen, model, form)
    arrays = inputs.collect(formed, qmodel)
    for array, expected in zip(arrays, keras.tree.flatten(data), strict=True):
        np.testing.assert_allclose(array, expected)


@pytest.mark.parametrize("model, form", ALL_FORMS)
def test_steps_after_training_take_every_form(frozen, model, form):
    qmodel, data, formed = in_form(frozen, model, form)
    assert len(qmodel.decisions(formed)) == COUNT
    qmodel, data, formed = in_form(frozen, model, form)
    assert dqmq_tf.summary(qmodel, formed).samples == COUNT
    qmodel, data, formed = in_form(frozen, model, form)
    qmodel.freeze(data=formed)
    assert qmodel.frozen_profiles == 1


@pytest.mark.parametrize("model", ["image", "vector", "two"])
def test_files_are_converted_and_verified_with_every_form(frozen, model, tmp_path):
    qmodel, data = frozen[model]
    path = tmp_path / "model.tflite"
    of = OF_TWO if model == "two" else OF_ONE
    first = next(iter(of.values()))
    dqmq_tf.convert(qmodel, path, data=in_form(frozen, model, first)[2])
    for name in ("nested lists", "samples", "batches of one size", "PyDataset"):
        report = dqmq_tf.verify(qmodel, path, in_form(frozen, model, of[name])[2])
        assert {row.samples for row in report.rows} - {None} == {COUNT}


@pytest.fixture(scope="module")
def searching():
    return quantized(of_one((5,)), target="simulation")


@pytest.fixture
def uncalibrated(searching):
    for quantizer in searching._parts.quantizers:
        quantizer.calibrated.assign(0.0)
    return searching


@pytest.mark.parametrize("form", OF_ONE.values(), ids=list(OF_ONE))
def test_calibration_takes_every_form(uncalibrated, form):
    uncalibrated.calibrate(form(FACTS))
    assert uncalibrated._training.is_calibrated


@pytest.fixture(scope="module")
def searching_two():
    return quantized(of_two(), target="simulation")


@pytest.mark.parametrize(
    "inputs_of, name",
    [("one", name) for name in TRAINED]
    + [("two by name", name) for name in ("nested lists", "batches", "PyDataset")],
)
def test_training_takes_every_form(searching, searching_two, inputs_of, name):
    form, takes_labels, steps = TRAINED[name]
    qmodel, data = searching, FACTS
    if inputs_of != "one":
        qmodel, data = searching_two, {"facts": FACTS, "image": IMAGES}
    qmodel.resume_search()
    for quantizer in qmodel._parts.quantizers:
        quantizer.calibrated.assign(0.0)
    labels = (form(LABELS),) if takes_labels else ()
    options = {"steps_per_epoch": 4} if name in KNOWN_LENGTH else {}
    history = qmodel.fit(form(data), *labels, epochs=2, verbose=0, **options).history
    assert len(history["loss"]) == 2
    assert qmodel._parts.policy.phase == "settled"
    assert qmodel._training.total_steps == 2 * steps


def test_validation_and_weights_may_be_lists(searching):
    x, y, weights = FACTS.tolist(), LABELS.tolist(), WEIGHTS.tolist()
    history = searching.fit(
        x, y, sample_weight=weights, validation_data=(x, y, weights), epochs=2, verbose=0
    ).history
    assert {"val_loss", "val_accuracy"} <= set(history)


@pytest.mark.parametrize("form", ["samples", "samples with labels", "samples with weights"])
def test_training_on_single_samples_asks_for_batches(uncalibrated, form):
    with pytest.raises(ValueError, match=r"single samples: .* x.batch\(batch_size\)"):
        uncalibrated.fit(OF_ONE[form](FACTS), verbose=0)


def test_the_encoder_learns_from_the_first_input_whatever_the_names():
    """Both inputs have the same shape, so that a mistake would raise no error."""
    z, a = keras.Input((5,), name="z"), keras.Input((5,), name="a")
    model = keras.Model([z, a], layers.Dense(3)(layers.Concatenate()([z, a])))
    qmodels = [quantized(model, target="simulation") for _ in range(2)]
    other = 100.0 * FACTS
    for qmodel, data in zip(qmodels, ([FACTS, other], {"z": FACTS, "a": other})):
        keras.utils.set_random_seed(0)
        qmodel.fit(data, LABELS, epochs=2, batch_size=6, shuffle=False, verbose=0)
    one, two = (m._parts.encoder.get_weights() for m in qmodels)
    for value, expected in zip(two, one, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
