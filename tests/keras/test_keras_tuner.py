"""KerasTuner searches the settings of a `DQMQModel`, as the guide shows it."""

import pathlib
import re

import keras
import keras_tuner
import numpy as np
import tensorflow as tf

import dqmq_tf

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "watching-and-tuning.md"


def test_the_example_of_the_guide_tunes_and_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
        if "keras_tuner" in block
    ]
    layers = keras.layers
    model = keras.Sequential(
        [layers.Input((4, 4, 1)), layers.Flatten(), layers.Dense(4, activation="softmax")]
    )
    data = (np.random.default_rng(0).uniform(0, 1, (32, 4, 4, 1)), np.arange(32) % 4)
    code = code.replace("epochs=4", "epochs=1").replace("epochs=8", "epochs=1")
    train = tf.data.Dataset.from_tensor_slices(data).batch(16)
    names = {"dqmq_tf": dqmq_tf, "model": model, "train": train, "test": train}
    exec(compile(code, str(PAGE), "exec"), names)
    tuner = names["tuner"]
    trials = tuner.oracle.get_best_trials(2)
    assert len(trials) == 2
    assert all(trial.status == keras_tuner.engine.trial.TrialStatus.COMPLETED for trial in trials)
    values = [trial.hyperparameters.values for trial in trials]
    assert all(value.keys() == {"settle", "bytes", "rate"} for value in values)
    assert isinstance(names["qmodel"], dqmq_tf.DQMQModel)
    assert names["qmodel"].budget.value == values[0]["bytes"]
    # The weights of a trial bring the phase and the bits with them.
    best = tuner.get_best_models(1)[0]
    assert best._parts.policy.phase in ("search", "settled")
    assert best.predict(data[0], verbose=0).shape == (32, 4)
