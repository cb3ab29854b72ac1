"""Checks the numbers of a summary against the model and against sums by hand."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from helpers.summarized_models import KINDS, small_network

import dqmq_tf
from dqmq_tf import quality
from dqmq_tf.report.summary import summary


@pytest.fixture(scope="module")
def static(arrays):
    """A frozen model for android, with the same bits for every input."""
    keras.utils.set_random_seed(0)
    qmodel = dqmq_tf.quantize_model(small_network(), target="android")
    qmodel.calibrate(arrays[0])
    return qmodel.freeze()


class TestLayers:
    def test_bits_are_those_of_the_decisions(self, per_sample, report, arrays):
        table = per_sample.decisions(arrays[0])
        rows = {row.name: row for row in (*report.layers, *report.activations)}
        assert set(rows) == set(table.points)
        for name, row in rows.items():
            bits = table[name]
            assert row.bits.mean == pytest.approx(bits.mean())
            assert (row.bits.least, row.bits.most) == (bits.min(), bits.max())
            for kind, mean in row.bits.by_kind.items():
                which = arrays[2] == ("clean", *quality.KINDS).index(kind)
                assert mean == pytest.approx(bits[which].mean())
        assert any(row.bits.least < row.bits.most for row in report.activations)
        assert set(report.layers[0].bits.by_kind) == {"clean", *KINDS}

    def test_input_bits_are_those_of_the_activation_read(self, report, static):
        decided = {row.name: row.bits for row in report.activations}
        assert all(row.input_bits == decided[row.input] for row in report.layers)
        assert {row.input_bits.mean for row in summary(static).layers} == {8.0}

    def test_totals_are_the_costs(self, per_sample, report, arrays):
        table, count = per_sample.decisions(arrays[0]), len(report.activations)
        weights, activations = table.bits[:, count:], table.bits[:, :count]
        costs = per_sample._parts.costs
        assert report.total("bit_ops") == pytest.approx(
            costs.bit_ops(weights, activations) - costs.overhead
        )
        assert report.cost == pytest.approx(costs.exact(weights, activations))
        assert report.total("macs") == 7 * 7 * 8 * 27 + 5 * 5 * 8 * 9 + 80
        assert report.total("weights") == 8 * 27 + 8 * 9 + 80
        assert report.other_parameters == 8 + 8 + 10

    def test_bytes_are_those_of_the_current_weights(self, static):
        static._training.keeper.measure()
        report, bits = summary(static), [row.bits.least for row in summary(static).layers]
        assert report.budget.kind == "download_bytes"
        assert report.cost == static._parts.costs.of_file(bits, [])
        # All weights share one stream, so their size is close to the sum of the layers, not equal.
        parts = report.total("download_bytes") + report.other_bytes
        assert parts == pytest.approx(report.cost, rel=0.05)
        assert [r.stored_bytes for r in report.layers] == [r.weights for r in report.layers]
        # A measurement from before the weights changed or were loaded does not matter.
        tables = static._parts.costs.bytes.tables
        static._parts.costs.bytes.tables = tuple([{b: 0 for b in row} for row in t] for t in tables)
        assert summary(static).cost == report.cost
        static._training.keeper.measure()

    def test_the_largest_of_several_profiles_is_the_cost(self, arrays):
        keras.utils.set_random_seed(0)
        budget = dqmq_tf.Budget(download_bytes=1_950)
        qmodel = dqmq_tf.quantize_model(small_network(), target="android", budget=budget)
        qmodel.calibrate(arrays[0])
        directions = np.random.default_rng(2).normal(0, 3.0, qmodel._parts.policy.direction.shape)
        qmodel._parts.policy.direction.assign(directions)
        qmodel.freeze(profiles=2, data=arrays[0])
        report, table = summary(qmodel), qmodel.decisions(arrays[0])
        assert (report.bits_vary_by, report.profiles) == ("profile", 2)
        files = [qmodel._parts.costs.of_file(bits, []) for bits in np.unique(table.bits, axis=0)]
        assert len(files) == 2
        assert report.cost == max(files)

    def test_phase_and_meaning(self, per_sample, report, static):
        assert (report.phase, report.bits_vary_by, report.profiles) == ("settled", "sample", 2)
        assert (summary(static).phase, summary(static).bits_vary_by) == ("frozen", "static")
        encoder = per_sample._parts.encoder.multiply_accumulates((None, 16, 16, 3))
        assert report.encoder_macs == encoder

    def test_without_data_the_inputs_are_those_of_training(self, per_sample, static):
        trained = summary(per_sample)
        assert (trained.source, trained.samples) == (
            "training",
            len(per_sample._parts.policy.seen.values()),
        )
        assert trained.qualities == ()
        assert (summary(static).source, summary(static).samples) == ("none", 0)

    def test_a_summary_does_not_change_the_model(self, per_sample, data):
        before = [v.numpy() for v in per_sample.variables]
        summary(per_sample, data)
        assert all((v.numpy() == b).all() for v, b in zip(per_sample.variables, before))


class TestText:
    def test_piped_text_is_plain_and_of_sensible_width(self, report, monkeypatch, capsys):
        monkeypatch.delenv("COLUMNS", raising=False)
        print(report)
        text = capsys.readouterr().out
        assert "\x1b" not in text
        assert 80 < max(map(len, text.splitlines())) <= 110
        for name in ("stem", "depthwise", "classes", "gaussian_noise", "motion_blur"):
            assert name in text
        assert "budget mean_bit_width" in text
        assert "per sample: activation bits follow each input" in text
        assert "simulation only" in text

    def test_width_follows_columns(self, report, monkeypatch):
        monkeypatch.setenv("COLUMNS", "90")
        assert max(map(len, str(report).splitlines())) <= 90

    def test_a_terminal_gets_colors(self, report, monkeypatch):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\x1b[" in str(report)

    def test_static_models_say_so(self, static):
        text = str(summary(static))
        assert "static: the same bits for every input" in text
        assert "simulation only" not in text
        assert "bytes under deflate" in text

    def test_json_round_trips(self, report):
        data = report.to_dict()
        assert json.loads(json.dumps(data)) == data
        assert data["budget"] == {"mean_bit_width": 7.0}
        assert data["layers"][0]["bits"]["mean"] == report.layers[0].bits.mean
        assert len(data["qualities"]) == len(report.qualities)
        assert set(data) == {field.name for field in dataclasses.fields(report)}


class TestErrors:
    def test_a_float_model_is_rejected(self):
        with pytest.raises(ValueError, match="`qmodel`.*Functional.*quantize_model"):
            summary(small_network())
