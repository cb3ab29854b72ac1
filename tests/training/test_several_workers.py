"""Two worker processes train one model; one of them is killed, and both start again."""

import json
import signal
import socket

import keras
import numpy as np
import pytest
from helpers import worker_process
from helpers.new_process import finished, started

import dqmq_tf


def _free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _train(folder, killed=None):
    """Runs two workers; returns their exit statuses and what they print on standard error."""
    ports = _free_ports(2)
    workers = [started(worker_process.train, index, ports, folder, killed) for index in range(2)]
    ended = [finished(worker, timeout=300) for worker in workers]
    return [status for status, _, _ in ended], [errors for _, _, errors in ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What two workers left that were killed once and started again."""
    folder = tmp_path_factory.mktemp("workers")
    statuses, errors = _train(folder, killed=1)
    assert statuses[1] == -signal.SIGKILL, errors[1][-2000:]
    assert statuses[0] != 0, "the other worker goes on alone"
    assert not list(folder.glob("weights*"))
    statuses, errors = _train(folder)
    assert statuses == [0, 0], errors[0][-2000:] + errors[1][-2000:]
    return folder


def _facts(folder, index):
    return json.loads((folder / f"facts{index}.json").read_text())


def test_the_workers_have_the_same_weights_and_bits(folder):
    first, second = (np.load(folder / f"weights{index}.npz") for index in range(2))
    assert len(first.files) > 20
    for name in first.files:
        np.testing.assert_array_equal(first[name], second[name])


def test_a_restarted_training_goes_on_after_the_last_whole_epoch(folder):
    assert [len(_facts(folder, index)["history"]["loss"]) for index in range(2)] == [4, 4]


def test_the_workers_report_the_metrics_of_all_data(folder):
    first, second = (_facts(folder, index) for index in range(2))
    assert first["history"] == second["history"] and first["evaluated"] == second["evaluated"]
    assert {"val_loss", "mean_bits", "cost"} <= set(first["history"])
    assert first["shape"] == [64, 3]


def test_convert_on_one_worker_is_refused_by_name(folder):
    assert "several workers" in _facts(folder, 0)["convert"]
    assert not (folder / "model.tflite").exists()


def test_the_model_of_the_chief_becomes_a_file(folder):
    qmodel = keras.models.load_model(folder / "model.keras")
    assert qmodel._parts.policy.phase == "settled"
    images = np.random.default_rng(1).normal(size=(16, 8, 8, 3)).astype("float32")
    report = dqmq_tf.convert(qmodel, folder / "model.tflite", data=images)
    assert report.download_bytes <= qmodel.budget.download_bytes
