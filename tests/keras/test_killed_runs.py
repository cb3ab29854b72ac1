"""Processes that are killed (kill -9) while they train or convert, and started again."""

import functools
import json
import os
import signal

import keras
import killed_runs

OLD = b"an earlier file"


class KillAt(keras.callbacks.Callback):
    """Kills the process at the beginning of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            os.kill(os.getpid(), signal.SIGKILL)


def train_until(epoch, folder):
    killed_runs.train(folder, [KillAt(epoch)])


def killed_while_writing(folder):
    """Converts a model, and kills the process when the file is written, but not yet in its place."""

    def kill(descriptor):
        os.kill(os.getpid(), signal.SIGKILL)

    killed_runs.convert(folder, lambda: setattr(os, "fsync", kill))


def ended_with(function, folder):
    process = killed_runs.start(function, folder)
    process.join()
    return process.exitcode


def test_a_killed_training_and_a_killed_conversion_end_as_if_they_were_not(tmp_path):
    assert ended_with(functools.partial(train_until, 3), tmp_path) == -signal.SIGKILL
    assert ended_with(killed_runs.train, tmp_path) == 0
    report = json.loads((tmp_path / killed_runs.REPORT).read_text())
    assert report["phase"] == "settled" and report["epochs"] == killed_runs.EPOCHS - 3
    assert report["cost"] <= killed_runs.BUDGETS["mean_bit_width"]

    (tmp_path / killed_runs.FILE).write_bytes(OLD)
    assert ended_with(killed_while_writing, tmp_path) == -signal.SIGKILL
    assert (tmp_path / killed_runs.FILE).read_bytes() == OLD
    names = {path.name for path in tmp_path.iterdir()}
    assert ended_with(killed_runs.convert, tmp_path) == 0
    assert (tmp_path / killed_runs.FILE).read_bytes()[4:8] == b"TFL3"
    assert {path.name for path in tmp_path.iterdir()} | {"started"} == names
    assert names == {killed_runs.MODEL, killed_runs.FILE, killed_runs.REPORT, "started"}
