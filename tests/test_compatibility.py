"""Models saved by an earlier version load, predict and convert as they did then.

`tests/helpers/saved_models.py` made them, at commit cd948d1.
"""

import keras
import numpy as np
import pytest
from helpers.file_structure import structure
from helpers.saved_models import FOLDER, NETWORKS, TARGETS, inputs_of, write_file

import dqmq_tf
from dqmq_tf.flatbuffer import TFLiteFile

NAMES = [f"{network}_{target}" for network in NETWORKS for target in TARGETS]


def load(name):
    return keras.models.load_model(FOLDER / f"{name}.keras")


@pytest.fixture(scope="module")
def predictions():
    with np.load(FOLDER / "predictions.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", [*NAMES, "settled_simulation", "searching_simulation"])
def test_a_model_saved_by_an_earlier_version_predicts_the_same(name, predictions):
    model = load(name)
    found = model.predict(inputs_of(model), verbose=0)
    np.testing.assert_allclose(found, predictions[name], rtol=0, atol=1e-5)


def test_the_optimizers_of_a_model_saved_by_an_earlier_version_continue(tmp_path):
    model = load("settled_simulation")
    model.save(tmp_path / "again.keras")
    for loaded in (model, keras.models.load_model(tmp_path / "again.keras")):
        training = loaded._training
        for optimizer in (training.policy_optimizer, training.encoder_optimizer):
            assert int(optimizer.iterations) > 0


def assert_same_file(name, found):
    """Where a network branches, the converter may put the branches in another order than it did."""
    recorded = (FOLDER / f"{name}.tflite").read_bytes()
    assert structure(found) == structure(recorded)
    assert TFLiteFile(found).metadata == TFLiteFile(recorded).metadata
    if not name.startswith(("signal", "adaptive")):
        assert found == recorded


@pytest.mark.parametrize("name", NAMES)
def test_a_model_saved_by_an_earlier_version_converts_to_the_same_file(name, tmp_path):
    assert_same_file(name, write_file(FOLDER, name, tmp_path).read_bytes())


def test_a_model_saved_by_an_earlier_version_converts_to_the_same_adaptive_file(tmp_path):
    found = write_file(FOLDER, "adaptive_android", tmp_path, adaptive=2).read_bytes()
    assert_same_file("adaptive_android", found)


def test_the_budget_of_a_model_saved_by_an_earlier_version_stays_one_of_the_file(tmp_path):
    # Its bits were chosen for the bytes of the file. The decoder that counts now would change them.
    model = load("image_microcontroller")
    assert (model.target.name, model.target.decoder_bytes) == ("microcontroller", 0)
    model.save(tmp_path / "again.keras")
    assert keras.models.load_model(tmp_path / "again.keras").target == model.target
    new = dqmq_tf.quantize_model(NETWORKS["image"](), target="microcontroller")
    new.save(tmp_path / "new.keras")
    assert new.target.decoder_bytes > 0
    assert keras.models.load_model(tmp_path / "new.keras").target == new.target


def test_the_search_of_a_model_saved_by_an_earlier_version_has_both_tables_of_bytes():
    model = load("image_microcontroller")
    policy = model._parts.policy
    assert policy.byte_table.numpy().any()
    np.testing.assert_array_equal(policy.coded_byte_table, policy.byte_table)
