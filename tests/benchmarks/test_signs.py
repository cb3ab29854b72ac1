"""Traffic signs: their batches, and the fifths by which a network is scored."""

import keras
import numpy as np
import pytest
from helpers.networks import chain
from study import sign_tables, signs

import dqmq_tf


@pytest.fixture(scope="module")
def ten():
    """Ten images of one pixel value each, which is their class."""
    values = np.arange(10)
    x = np.broadcast_to(values[:, None, None, None], (10, 32, 32, 3)).astype("uint8")
    return signs.Signs(
        x=x,
        y=values,
        quality=values,
        brightness=-values,
        sharpness=values % 5,
        size=(values - 4) ** 2,
    )


def predicting(wrong):
    def predict(x):
        found = x[:, 0, 0, 0].astype(int)
        return np.eye(11)[np.where(np.isin(found, wrong), 10, found)]

    return predict


def test_fifths_are_the_lowest_by_each_measure(ten):
    perfect = signs.scores(predicting([]), ten)
    assert perfect.pop("fifths") == [1.0] * 5
    assert set(perfect.values()) == {1.0}
    # The fifths are the images 0 and 1, 9 and 8, 4 and 3, 0 and 5.
    found = signs.scores(predicting([0, 3, 8, 9]), ten)
    assert found == {
        "all": 0.6, "worst_fifth": 0.5, "darkest_fifth": 0.0, "smallest_fifth": 0.5,
        "least_sharp_fifth": 0.5, "fifths": [0.5, 0.5, 1.0, 1.0, 0.0],
    }  # fmt: skip


def test_batches_are_the_same_for_all_methods_of_a_seed_and_whatever_comes_with_an_image(ten):
    first, again = (
        list(signs.batches(ten.x, values, 3, 2).as_numpy_iterator()) for values in (ten.y, -ten.y)
    )
    for (x, y), (same, negative) in zip(first, again):
        np.testing.assert_array_equal(x, same)
        np.testing.assert_array_equal(y, -negative)
        np.testing.assert_array_equal(x[:, 0, 0, 0], y)
    other = next(signs.batches(ten.x, ten.y, 4, 2).as_numpy_iterator())
    assert (other[1] != first[0][1]).any()


def test_a_float_network_is_trained_once_behind_a_method(ten, tmp_path):
    small = chain((32, 32, 3), keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10))
    small.save(tmp_path / "small.keras")
    images = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 3)).astype("uint8")

    def start(method):
        settings = {"body": tmp_path / "small.keras", "cache": tmp_path, "steps": 1}
        return signs.float_start(method, 1_000, images, ten.y, **settings)

    first, again, other = start("exposure"), start("exposure"), start("nothing")
    assert first.output_shape == other.output_shape == (None, 43)
    assert any(type(layer) is dqmq_tf.layers.Exposure for layer in first.layers)
    outputs = (model.predict(images, verbose=0) for model in (first, again))
    np.testing.assert_array_equal(*outputs)
    assert not any(type(layer) is dqmq_tf.layers.Exposure for layer in other.layers)


def test_the_table_of_signs_has_leads_over_static_bits_paired_by_seed_in_each_fifth(ten):
    def record(method, seed, accuracy, fall, **more):
        scores = {part: accuracy - n * fall for n, part in enumerate(sign_tables.PARTS)}
        return {"method": method, "seed": seed, "scores": scores, **more}

    shuffled = {"shuffled": dict.fromkeys(sign_tables.PARTS, 0.5)}
    records = [
        record("static", 0, 0.90, 0.01),
        record("static", 1, 0.94, 0.01),
        record("static", 2, 0.1, 0.01),
        record("told", 1, 0.96, 0.02, **shuffled),
        record("told", 0, 0.91, 0.02, **shuffled),
    ]
    assert {*sign_tables.PARTS, "fifths"} == set(signs.scores(predicting([]), ten))
    table = sign_tables.leads(records, "Signs")
    shown = {row[0]: dict(zip(table.columns[1:], row[1:])) for row in table.rows}
    assert shown["static"]["seeds"] == "3" and shown["static"]["lead, all"] == "-"
    assert shown["told"]["all"] == "93.50 ± 2.50"
    assert shown["told"]["lead, all"] == "+1.50 ± 0.50"
    assert shown["told"]["smallest_fifth"] == "87.50 ± 2.50"
    assert shown["told"]["lead, smallest_fifth"] == "-1.50 ± 0.50"
    assert shown["told, shuffled in the test"]["lead, worst_fifth"] == "-41.00 ± 2.00"
    only = sign_tables.leads(records[3:], "No static bits")
    assert set(only.rows[0][7:]) == {"-"}
