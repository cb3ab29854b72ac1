"""Checks what inputs of each kind, and of each fifth by quality, get against counts by hand."""

import collections

import numpy as np
import pytest
from helpers.summarized_models import KINDS, SAMPLES

from dqmq_tf import quality
from dqmq_tf.report.summary import summary


class TestQualityRows:
    def test_rows_agree_with_counts_by_hand(self, per_sample, report, arrays):
        images, labels, kinds, severities = arrays
        right = per_sample.predict(images, verbose=0).argmax(axis=1) == labels
        table = per_sample.decisions(images)
        cases = collections.defaultdict(list)
        for i in range(SAMPLES):
            name = ("clean", *quality.KINDS)[kinds[i]]
            bits, bit_ops, weight_bits, input_bits = table.bits[i], 0, 0, 0
            for row in report.layers:
                w, a = bits[table.points.index(row.name)], bits[table.points.index(row.input)]
                bit_ops += row.macs * w * a
                weight_bits += row.weights * w
                input_bits += row.macs * a
            values = (right[i], weight_bits, input_bits, bit_ops)
            cases[name, int(severities[i])].append(values)
            cases["all", None].append(values)
        assert {(row.kind, row.severity) for row in report.qualities} == set(cases)
        for row in report.qualities:
            share, weight_bits, input_bits, bit_ops = np.mean(cases[row.kind, row.severity], axis=0)
            assert row.samples == len(cases[row.kind, row.severity])
            assert row.accuracy == pytest.approx(share)
            assert row.loss is None
            assert row.weight_bits == pytest.approx(weight_bits / report.total("weights"))
            assert row.activation_bits == pytest.approx(input_bits / report.total("macs"))
            # The overhead is the cost of the encoder and the policy.
            assert row.bit_ops == pytest.approx(bit_ops + per_sample._parts.costs.overhead)

    def test_rows_are_ordered_clean_then_kinds_then_all(self, report):
        kinds = list(dict.fromkeys(row.kind for row in report.qualities))
        assert kinds == ["clean", *KINDS, "all"]
        severities = [row.severity for row in report.qualities if row.kind == KINDS[0]]
        assert severities == [2, 3, 4]


class TestFifthRows:
    @pytest.fixture(scope="class")
    def fifths(self, per_sample, arrays):
        images, labels, *_ = arrays
        return summary(per_sample, (images, labels)).fifths

    def test_rows_agree_with_counts_by_hand(self, per_sample, fifths, arrays):
        images, labels, *_ = arrays
        right = per_sample.predict(images, verbose=0).argmax(axis=1) == labels
        costs, table = per_sample._parts.costs, per_sample.decisions(images)
        bit_ops = np.full(SAMPLES, float(costs.overhead))
        for point in costs.weights:
            read = costs.activations[point.input].name
            weight_bits, input_bits = (
                table.bits[:, table.points.index(n)] for n in (point.name, read)
            )
            bit_ops += point.macs * weight_bits * input_bits
        measures = quality.measure(images)
        assert [row.measure for row in fifths] == [name for name in measures for _ in range(5)]
        assert [row.fifth for row in fifths] == 3 * [1, 2, 3, 4, 5]
        for row in fifths:
            values = measures[row.measure]
            members = (values >= row.least) & (values <= row.most)
            assert row.samples == members.sum() in (SAMPLES // 5, SAMPLES // 5 + 1)
            assert row.accuracy == pytest.approx(right[members].mean())
            assert row.bit_ops == pytest.approx(bit_ops[members].mean())

    def test_lower_fifths_have_lower_values(self, fifths):
        for lower, higher in zip(fifths, fifths[1:]):
            if lower.measure == higher.measure:
                assert lower.least <= lower.most <= higher.least <= higher.most

    def test_measures_in_the_data_take_the_place_of_ours(self, per_sample, arrays):
        images, labels, *_ = arrays
        values = np.random.default_rng(0).permutation(SAMPLES)
        found = summary(per_sample, (images, labels, {"focus": values})).fifths
        assert [(row.measure, row.fifth) for row in found] == [("focus", i + 1) for i in range(5)]
        assert (found[0].least, found[-1].most) == (0, SAMPLES - 1)

    def test_kinds_and_measures_stand_side_by_side(self, per_sample, report, arrays):
        images, labels, kinds, severities = arrays
        drawn = {"kind": kinds, "severity": severities, "focus": np.arange(SAMPLES)}
        found = summary(per_sample, (images, labels, drawn))
        assert len(found.qualities) == len(report.qualities)
        assert len(found.fifths) == 5

    def test_kinds_alone_have_no_fifths(self, report):
        assert report.fifths == ()

    def test_equal_or_few_inputs_have_no_fifths(self, per_sample, arrays):
        images, labels, *_ = arrays
        same = (images, labels, {"focus": np.ones(SAMPLES)})
        assert summary(per_sample, same).fifths == ()
        assert summary(per_sample, (images[:4], labels[:4])).fifths == ()

    def test_the_report_prints_them_in_80_columns(self, per_sample, arrays, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        images, labels, *_ = arrays
        text = str(summary(per_sample, (images, labels)))
        assert "brightness" in text and "sharpness" in text and "shuffled" in text
