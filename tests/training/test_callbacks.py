"""The callbacks for `fit`: what they record, print and save of a real training."""

import copy
import csv
import importlib.util
import io
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.frozen_models import images, small_model

import dqmq_tf
from dqmq_tf.training.callbacks import BitHistory, ParetoCheckpoint, ParetoEntry, ProgressLine

EPOCHS = 5


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    """A trained model, its callbacks, the folder of their files and what `fit` returned."""
    folder = tmp_path_factory.mktemp("callbacks")
    keras.utils.set_random_seed(0)
    model = small_model()
    qmodel = dqmq_tf.quantize_model(
        model, target="simulation", budget=dqmq_tf.Budget(mean_bit_width=5)
    )
    qmodel.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    bits, lines = BitHistory(folder / "logs"), io.StringIO()
    best = ParetoCheckpoint(folder / "models", monitor="loss")
    x, y = images(model, 48), np.arange(48) % 4
    history = qmodel.fit(
        x, y, batch_size=8, epochs=EPOCHS, verbose=0, callbacks=[bits, best, ProgressLine(lines)]
    )
    return qmodel, bits, best, lines.getvalue(), folder, history


def test_the_package_offers_the_callbacks():
    assert dqmq_tf.callbacks.BitHistory is BitHistory
    assert {"BitHistory", "ParetoCheckpoint", "ProgressLine"} <= set(dqmq_tf.callbacks.__all__)


class TestBitHistory:
    def test_a_row_has_the_logs_the_phase_the_budget_and_the_bits_of_each_point(self, training):
        qmodel, bits, *_, history = training
        assert [row["epoch"] for row in bits.rows] == list(range(EPOCHS))
        assert [row["phase"] for row in bits.rows] == ["search"] * 3 + ["settled"] * 2 or [
            row["phase"] for row in bits.rows
        ] == ["search"] * 2 + ["settled"] * 3
        for name, values in history.history.items():
            assert [row[name] for row in bits.rows] == pytest.approx(values)
        points = {f"bits/{point}" for point in qmodel.decision_points}
        assert points and all(points <= row.keys() for row in bits.rows)
        assert bits.rows[0]["budget_kind"] == "mean_bit_width" and bits.rows[0]["budget"] == 5

    def test_the_bits_of_a_settled_epoch_are_those_that_the_model_decides(self, training):
        qmodel, bits, *_ = training
        table = qmodel.decisions(images(qmodel, 8))
        for point in qmodel.decision_points:
            if ":" in point:  # weights: the same for all inputs
                assert bits.rows[-1][f"bits/{point}"] == pytest.approx(table[point].mean(), abs=1)
        sizes = {"conv:kernel": 6 * 27, "head:kernel": 24}
        mean = sum(bits.rows[-1][f"bits/{p}"] * n for p, n in sizes.items()) / sum(sizes.values())
        assert bits.rows[-1]["mean_bits"] == pytest.approx(mean, abs=0.01)

    def test_the_table_is_written_as_csv(self, training, tmp_path):
        bits = training[1]
        bits.to_csv(tmp_path / "bits.csv")
        with (tmp_path / "bits.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["phase"] for row in rows] == [row["phase"] for row in bits.rows]
        assert [float(row["cost"]) for row in rows] == [row["cost"] for row in bits.rows]
        with pytest.raises(ValueError, match="has no rows"):
            BitHistory().to_csv(tmp_path / "none.csv")

    def test_tensorboard_gets_the_numbers_as_scalars(self, training):
        _, bits, _, _, folder, _ = training
        (path,) = (folder / "logs").iterdir()
        scalars = {}
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                scalars[value.tag, event.step] = float(tf.make_ndarray(value.tensor))
        names = ("cost", "mean_bits", "loss", "bits/conv:kernel")
        for row in bits.rows:
            assert {n: scalars[n, row["epoch"]] for n in names} == pytest.approx(
                {n: row[n] for n in names}
            )

    def test_missing_tensorboard_is_named_before_any_training(self, monkeypatch):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        with pytest.raises(ImportError, match="pip install tensorboard"):
            BitHistory(log_dir="logs")
        BitHistory()

    def test_it_is_for_quantized_models(self):
        with pytest.raises(ValueError, match="must be a DQMQModel"):
            BitHistory().set_model(small_model())


class TestProgressLine:
    def test_each_epoch_has_a_line_with_phase_bits_and_cost(self, training):
        _, bits, _, lines, *_ = training
        lines = lines.splitlines()
        assert len(lines) == EPOCHS
        for number, (line, row) in enumerate(zip(lines, bits.rows), 1):
            assert line.startswith(f"epoch {number}/{EPOCHS}  {row['phase']} ")
            share = 100 * row["cost"] / 5
            assert f"{row['mean_bits']:.2f} bits" in line
            assert f"{row['cost']:.3g} of 5 mean_bit_width ({share:.0f} %)" in line
            assert f"loss {row['loss']:.4g}" in line and "accuracy" in line
            assert "multiplier" not in line

    def test_a_terminal_shows_the_steps_in_the_same_line(self, training):
        class Terminal(io.StringIO):
            def isatty(self):
                return True

        qmodel, output = training[0], Terminal()
        qmodel.fit(images(qmodel, 8), np.zeros(8), 4, verbose=0, callbacks=[ProgressLine(output)])
        first, last = output.getvalue().split("\r")[1], output.getvalue().split("\r")[-1]
        assert "step 1/2" in first and "\n" not in first
        assert "mean_bit_width" in last and output.getvalue().count("\n") == 1


class TestParetoCheckpoint:
    def test_the_best_settled_epoch_within_the_budget_is_saved(self, training):
        qmodel, bits, best, _, folder, _ = training
        (entry,) = best.entries()
        counted = [r for r in bits.rows if r["phase"] == "settled" and r["cost"] <= r["budget"]]
        assert counted
        row = min(counted, key=lambda row: row["loss"])
        assert (entry.epoch, entry.value, entry.cost) == (row["epoch"], row["loss"], row["cost"])
        assert entry.file == f"{qmodel.name}_mean_bit_width_5.keras"
        assert best.front() == (entry,)
        assert {p.name for p in (folder / "models").iterdir()} == {entry.file, "pareto.json"}
        restored = keras.models.load_model(folder / "models" / entry.file)
        assert restored._parts.policy.phase == "settled"

    def test_only_a_better_epoch_replaces_the_model_of_its_budget(self, training, tmp_path):
        best = ParetoCheckpoint(tmp_path, monitor="val_accuracy")
        best.set_model(training[0])
        for epoch, (cost, accuracy) in enumerate([(4.9, 0.5), (4.8, 0.4), (5.1, 0.9), (4.7, 0.6)]):
            best.on_epoch_end(epoch, {"cost": cost, "val_accuracy": accuracy})
            (entry,) = best.entries()
            assert entry.epoch == (3 if epoch == 3 else 0)
        # Another process goes on in the folder, but not with another metric.
        assert ParetoCheckpoint(tmp_path, monitor="val_accuracy").entries() == (entry,)
        with pytest.raises(ValueError, match="holds values of 'val_accuracy', not of 'loss'"):
            ParetoCheckpoint(tmp_path, monitor="loss")

    def test_each_budget_has_a_file_of_its_own(self, tmp_path):
        best, model = ParetoCheckpoint(tmp_path, monitor="loss"), small_model()
        for value in (1_234_561, 1_234_562, 1_234_562.5, 9e6):
            qmodel = dqmq_tf.quantize_model(model, budget=dqmq_tf.Budget(bit_ops=value))
            qmodel.calibrate(images(model))
            best.set_model(qmodel.freeze())
            best.on_epoch_end(0, {"cost": value, "loss": 1.0})
        names = [f"{qmodel.name}_bit_ops_{value}.keras" for value in
                 ("1234561", "1234562", "1234562.5", "9000000")]  # fmt: skip
        assert sorted(entry.file for entry in best.entries()) == sorted(names)

    def test_the_front_leaves_out_models_that_a_cheaper_one_beats(self, tmp_path):
        values = [("download_bytes", 10, 0.5), ("download_bytes", 20, 0.8),
                  ("download_bytes", 30, 0.7), ("download_bytes", 40, 0.8),
                  ("download_bytes", 50, 0.9), ("bit_ops", 5, 0.1)]  # fmt: skip
        entries = [
            dict(file=f"{n}.keras", model="m", kind=kind, budget=cost, cost=cost, monitor="accuracy",
                 value=value, epoch=0)
            for n, (kind, cost, value) in enumerate(values)
        ]  # fmt: skip
        (tmp_path / "pareto.json").write_text(json.dumps(entries))
        best = ParetoCheckpoint(tmp_path, monitor="accuracy")
        assert best.mode == "max"
        kept = [(e.kind, e.cost) for e in best.front()]
        assert kept == [("download_bytes", c) for c in (10, 20, 50)] + [("bit_ops", 5)]
        assert len(best.entries()) == len(values) and isinstance(best.entries()[0], ParetoEntry)

    def test_wrong_use_is_named(self, training, tmp_path):
        with pytest.raises(ValueError, match="mode='best' must be one of"):
            ParetoCheckpoint(tmp_path, mode="best")
        best = ParetoCheckpoint(tmp_path)
        best.set_model(training[0])
        with pytest.raises(ValueError, match="monitors 'val_loss', but fit logs accuracy, cost"):
            best.on_epoch_end(0, {"cost": 1.0, "accuracy": 1.0})

    def test_epochs_without_validation_are_passed_over(self, training, tmp_path):
        qmodel, best = training[0], ParetoCheckpoint(tmp_path)
        x, y = images(qmodel, 16), np.arange(16) % 4
        with pytest.warns(UserWarning, match="No model is saved before an epoch that validates"):
            qmodel.fit(
                x,
                y,
                epochs=2,
                verbose=0,
                callbacks=[best],
                validation_data=(x, y),
                validation_freq=2,
            )
        assert [entry.epoch for entry in best.entries()] == [1]

    def test_a_value_that_is_not_finite_does_not_count(self, training, tmp_path):
        best = ParetoCheckpoint(tmp_path, monitor="loss")
        best.set_model(training[0])
        for epoch, loss in enumerate((float("nan"), 0.5, float("nan"), 0.7)):
            best.on_epoch_end(epoch, {"cost": 1.0, "loss": loss})
        assert [entry.epoch for entry in best.entries()] == [1]


def test_metrics_of_one_number_for_each_class_are_kept_in_the_rows_alone(training, tmp_path):
    qmodel = copy.deepcopy(training[0])
    qmodel.compile(
        "adam", "categorical_crossentropy", metrics=[keras.metrics.F1Score(average=None, name="f1")]
    )
    bits, lines = BitHistory(tmp_path / "logs"), io.StringIO()
    x, y = images(qmodel, 16), np.eye(4)[np.arange(16) % 4]
    qmodel.fit(x, y, verbose=0, callbacks=[bits, ProgressLine(lines)])
    (row,) = bits.rows
    assert len(row["f1"]) == 4 and "f1" not in lines.getvalue() and "loss" in lines.getvalue()
    bits.to_csv(tmp_path / "bits.csv")
    assert str(row["f1"]) in (tmp_path / "bits.csv").read_text()


class TestPlots:
    def test_plot_bits_draws_each_point_the_mean_and_the_cost(self, training, tmp_path):
        qmodel, bits, *_, history = training
        figure = dqmq_tf.plot_bits(bits, tmp_path / "bits.png")
        assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")
        cells, mean, cost = (figure.axes[i] for i in range(3))
        assert [t.get_text() for t in cells.get_yticklabels()] == list(qmodel.decision_points)
        assert cells.images[0].get_array().shape == (len(qmodel.decision_points), EPOCHS)
        assert mean.get_lines()[0].get_ydata() == pytest.approx(history.history["mean_bits"])
        assert cost.get_lines()[0].get_ydata() == pytest.approx(history.history["cost"])
        assert set(cost.get_lines()[1].get_ydata()) == {5}
        assert {t.get_text() for t in mean.texts} == {row["phase"] for row in bits.rows}
        # What `fit` returns has the same curves, and neither layers nor phases.
        mean, cost = dqmq_tf.plot_bits(history).axes
        assert cost.get_lines()[0].get_ydata() == pytest.approx(history.history["cost"])
        for nothing in (BitHistory(), keras.callbacks.History()):
            with pytest.raises(ValueError, match="plot_bits needs epochs"):
                dqmq_tf.plot_bits(nothing)

    def test_plot_pareto_draws_the_front_and_the_others(self, training, tmp_path):
        entry = training[2].entries()[0]
        entries = [
            ParetoEntry(**{**vars(entry), "cost": cost, "budget": cost + 0.5, "value": value,
                           "file": f"{cost}.keras"})
            for cost, value in ((3.0, 0.9), (4.0, 0.5), (5.0, 0.7))
        ]  # fmt: skip
        (tmp_path / "pareto.json").write_text(json.dumps([vars(e) for e in entries]))
        best = ParetoCheckpoint(tmp_path, monitor="loss")
        (axes,) = dqmq_tf.plot_pareto(best, tmp_path / "x.png", float_value=0.4).axes
        front, beaten, reference = axes.get_lines()
        assert list(front.get_xdata()) == [3.0, 4.0] and list(beaten.get_xdata()) == [5.0]
        assert list(reference.get_ydata()) == [0.4, 0.4]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("cost, mean_bit_width", "loss")
        with pytest.raises(ValueError, match="one kind. Found none"):
            dqmq_tf.plot_pareto([])
