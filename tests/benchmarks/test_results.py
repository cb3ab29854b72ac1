"""`study.results` and `study.paired_differences`: statistics, compared with values computed by hand."""

import math

import numpy as np
import pytest
from helpers.comparison_records import MACS, record, study
from hypothesis import given, settings
from hypothesis import strategies as st
from study import datasets, float_networks, paired_differences, plan, results, runs

from dqmq_tf import quality

AT = {"network": "resnet8", "kind": "mean_bit_width", "budget": 2.5}
DQMQ, STATIC = (results.Cell(method=method, **AT) for method in ("dqmq", "static"))


def gathered(*records):
    return results.Results(records, 600)


def by_seed(method, *accuracies, **fields):
    """Returns records with the seeds 0, 1 and so on."""
    return [
        record(fields.get("network", "resnet8"), method, accuracy, seed=seed,
               **{k: v for k, v in fields.items() if k != "network"})
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip


def test_tables_and_runs_use_the_same_names():
    assert tuple(results.NETWORKS) == float_networks.NETWORKS
    assert results.MEAN_BITS == plan.MEAN_BITS and results.SEEDS == len(plan.SEEDS)
    assert results.KINDS == quality.KINDS and results.TESTS == datasets.TESTS


def test_the_records_in_these_tests_have_the_fields_of_real_runs():
    for made in study(np.random.default_rng(0), seeds=1):
        key = runs.Run(
            **{**made["run"], "bits": made["run"]["bits"] and tuple(made["run"]["bits"])}
        )
        assert made["run"] == {**vars(key), "bits": made["run"]["bits"]}


def test_an_estimate_has_the_mean_and_its_standard_error():
    estimate = results.Estimate.of([70.0, 71.0, 75.0])
    # The deviations are -2, -1 and 3, so the variance is 14 / 2.
    assert (estimate.mean, estimate.count) == (72.0, 3)
    assert estimate.error == pytest.approx(math.sqrt(7 / 3))


def test_one_seed_has_no_error_and_no_seed_has_no_estimate():
    assert results.Estimate.of([70.0]) == results.Estimate(70.0, None, 1)
    assert not results.Estimate.of([70.0]).clear
    assert results.Estimate.of([]) is None


def test_differences_are_paired_by_seed():
    ours, theirs = {0: 70.0, 1: 80.0, 2: 90.0, 3: 0.0}, {2: 88.0, 0: 69.0, 1: 77.0}
    found = results.difference(ours, theirs)
    # The differences are 1, 3 and 2, although the values spread over 20.
    assert found.mean == 2.0 and found.count == 3
    assert found.error == pytest.approx(1 / math.sqrt(3))
    assert found.clear and not results.difference(theirs, ours).clear
    assert results.difference(ours, {}) is None


@given(
    values=st.dictionaries(st.integers(0, 9), st.floats(0, 100), min_size=2),
    shift=st.floats(-5, 5),
)
@settings(deadline=None)
def test_a_constant_lead_has_no_error(values, shift):
    found = results.difference({seed: v + shift for seed, v in values.items()}, values)
    assert found.mean == pytest.approx(shift, abs=1e-9)
    assert found.error == pytest.approx(0, abs=1e-9)


@given(order=st.permutations(range(12)))
@settings(deadline=None, max_examples=25)
def test_the_order_of_records_does_not_matter(order):
    records = [
        *by_seed("dqmq", 0.73, 0.71, 0.74, cost=2.5), *by_seed("static", 0.72, 0.70, 0.71, cost=2.5),
        *by_seed("lsq", 0.6, 0.7, 0.8, bits=(2, 3), cost=2.4),
        *by_seed("lsq", 0.8, 0.7, 0.6, bits=(3, 2), cost=2.4),
    ]  # fmt: skip
    expected = gathered(*records)
    found = gathered(*(records[i] for i in order))
    assert list(paired_differences.leads(found)) == list(paired_differences.leads(expected))
    assert found.cells() == expected.cells()


def test_trials_and_runs_with_other_steps_are_left_out():
    found = gathered(
        record("resnet8", "dqmq", 0.7), record("resnet8", "dqmq", 0.1, seed=1, steps=8)
    )
    assert found.values(DQMQ, results.accuracy, "a") == {0: 70.0}
    assert found.left_out == 1
    trial = record("resnet8", "dqmq", 0.9, tuning=True)
    trial["scores"] = {"validation": {"accuracy": 0.9}}
    assert gathered(trial).cells() == []


def test_of_two_records_the_one_with_the_chosen_learning_rate_counts():
    two = [record("resnet8", "dqmq", rate, learning_rate=rate) for rate in (0.1, 0.2)]
    trials = [
        record("resnet8", "dqmq", 0.5, learning_rate=rate, tuning=True) for rate in (0.1, 0.2)
    ]
    for trial, accuracy in zip(trials, (0.6, 0.5)):
        trial["scores"] = {"validation": {"accuracy": accuracy}}
    for trial in trials:
        trial["run"]["steps"] = 200
    found = gathered(*two, *trials)
    assert found.left_out == 0
    assert found.values(DQMQ, results.accuracy, "a") == {0: 10.0}
    with pytest.raises(ValueError, match="seed 0: there are several records"):
        gathered(*two)
    # Files have separate trials.
    for trial in trials:
        trial["run"]["kind"] = "download_bytes"
    with pytest.raises(ValueError, match="seed 0: there are several records"):
        gathered(*two, *trials)


def test_mean_bits_are_the_square_root_of_bit_operations_per_mac():
    ours, uniform = record("resnet8", "dqmq", 0.7), record("resnet8", "lsq", 0.7, bits=(3, 2))
    ours["scores"]["a"]["cost"] = 6.25 * MACS["resnet8"]
    uniform["bit_ops"] = 6.0 * MACS["resnet8"]
    assert results.mean_bits(ours, "a") == pytest.approx(2.5)
    assert results.mean_bits(uniform, "d") == pytest.approx(math.sqrt(6))
    assert results.mean_bits(record("resnet8", "hawq", 0.7), "a") is None
    assert results.mean_bits(record("resnet8", "tfmot", 0.7), "a") == 8


def test_corruption_error_is_relative_to_the_float_network():
    ours, base = record("resnet8", "dqmq", 0.7), record("resnet8", "float", 0.7)
    ours["scores"]["a"]["cells"] = {
        # Errors of 20 and 40 % average to 30 %, errors of 10 and 20 % to 15 %.
        "jpeg:1": [100, 80, 4.0], "jpeg:5": [50, 30, 14.0], "fog:1": [10, 9, 1], "fog:2": [10, 8, 1],
    }  # fmt: skip
    base["scores"]["a"]["cells"] = {
        # 20 and 10 %.
        "jpeg:1": [100, 90, 0], "jpeg:5": [50, 35, 0], "fog:1": [10, 9, 0], "fog:2": [10, 9, 0],
    }  # fmt: skip
    found = gathered(ours, base)
    reference = found.reference("resnet8", "a")
    assert reference == pytest.approx({"jpeg": 20, "fog": 10})
    assert results.kind_errors(ours, "a") == pytest.approx({"jpeg": 30, "fog": 15})
    assert results.corruption_error(ours, "a", reference) == pytest.approx(150)
    assert results.corruption_error(ours, "a", {}) is None
    assert results.kind_bits(ours, "a") == {}
    ours["scores"]["a"]["cost"], ours["macs"] = 5.0, 1.0
    assert results.kind_bits(ours, "a") == pytest.approx({"jpeg": 3, "fog": 1})


def test_the_mean_corruption_error_of_the_reference_is_100_percent():
    found = gathered(*by_seed("float", 0.7, 0.75, 0.8))
    cell = results.Cell("resnet8", "float")
    reference = found.reference("resnet8", "b")
    own = found.estimate(cell, results.corruption_error, "b", reference)
    assert own.mean == pytest.approx(100)
    # Errors of 30, 25 and 20 % divided by their mean are 120, 100 and 80 %.
    assert own.error == pytest.approx(20 / math.sqrt(3))


def test_the_best_uniform_method_is_the_best_on_test_a():
    found = gathered(
        *by_seed("lsq", (0.7, 0.9, 0.9, 0.9), bits=(2, 3)), *by_seed("lsq", 0.72, bits=(3, 2)),
        *by_seed("pact", 0.71, 0.74, bits=(2, 3)), *by_seed("hawq", 0.9),
    )  # fmt: skip
    best = found.best("resnet8", 2.5, results.UNIFORM)
    assert (best.method, best.bits, best.label) == ("pact", (2, 3), "PACT w2a3")
    assert found.best("resnet8", 3.0, results.UNIFORM) is None


def test_rivals_trained_as_dqmq_count_only_if_they_are_asked_for():
    alike = {"ablation": results.SAME_TRAINING}
    found = gathered(
        *by_seed("hawq", 0.7), *by_seed("hawq", 0.8, **alike),
        *by_seed("lsq", 0.7, bits=(2, 2)), *by_seed("lsq", 0.8, bits=(2, 2), **alike),
    )  # fmt: skip
    rivals = {
        lead.against: lead.rival
        for lead in paired_differences.leads(found)
        if (lead.network, lead.budget) == ("resnet8", 2.5)
    }
    assert rivals["uniform"].label == "LSQ w2a2, trained as DQMQ"
    assert rivals["hawq"].label == "HAWQ"
    assert rivals["hawq_alike"].label == "HAWQ, trained as DQMQ"


@pytest.mark.parametrize(
    ("lead", "count", "word"),
    [(0.5, 3, "reached"), (0.49, 3, "short"), (-1.0, 4, "short"), (9.0, 2, "open")],
)
def test_a_verdict_depends_on_the_lead_its_error_and_the_number_of_seeds(lead, count, word):
    assert paired_differences.verdict(results.Estimate(lead, 0.1, count), 0.5) == word
    # A lead that is not clear of its error does not count.
    assert paired_differences.verdict(results.Estimate(lead, 10.0, count), 0.5) in ("short", "open")
    assert paired_differences.verdict(None, 0.5) == "open"


def test_a_lead_that_misses_its_target_only_by_rounding_reaches_it():
    points = results.difference({s: 100 * (0.703 + s / 1000) for s in range(3)},
                                {s: 100 * (0.7 + s / 1000) for s in range(3)})  # fmt: skip
    assert points.mean != 0.3 and paired_differences.verdict(points, 0.3) == "reached"


def test_leads_are_compared_with_the_targets_of_their_budget():
    found = gathered(
        *by_seed("dqmq", (0.74, 0.6, 0.8, 0.75), (0.75, 0.6, 0.8, 0.75), (0.76, 0.6, 0.8, 0.75)),
        *by_seed("static", (0.73, 0.6, 0.9, 0.75), (0.74, 0.6, 0.9, 0.75), (0.755, 0.6, 0.9, 0.75)),
        *by_seed("hawq", 0.7), *by_seed("hawq_free", 0.69, 0.69, 0.69),
    )  # fmt: skip
    by = {
        (lead.network, lead.budget, lead.against): lead for lead in paired_differences.leads(found)
    }
    assert len(by) == 2 * 3 * 4
    assert by["resnet8", 2.5, "hawq_alike"].targets == {}
    static = by["resnet8", 2.5, "static"]
    # The leads on (a) are 1, 1 and 0.5 points.
    assert static.points["a"].mean == pytest.approx(2.5 / 3)
    assert static.points["a"].error == pytest.approx(0.5 / 3)
    assert static.points["a"].clear and not static.points["c"].clear
    assert static.targets == {"a": 0.3, "d": 0.5}
    assert static.verdicts == {"a": "reached", "d": "short"}
    hawq = by["resnet8", 2.5, "hawq"]
    assert hawq.rival.method == "hawq" and hawq.points["a"].count == 1
    assert hawq.verdicts == dict.fromkeys("abc", "open")
    uniform = by["resnet8", 2.5, "uniform"]
    assert uniform.rival is None and uniform.targets == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert uniform.verdicts == dict.fromkeys("abc", "open")
    aims = [by["mobilenet_v2", budget, "uniform"].targets for budget in results.MEAN_BITS]
    assert aims == [{}, *({"a": lead, "b": 0.0, "c": 0.0} for lead in (2.0, 1.0))]


def test_bits_by_kind_are_means_over_seeds():
    tables = [
        {"jpeg": {"relu": b + 1, "dense:kernel": 8}, "clean": {"relu": b, "dense:kernel": 8}}
        for b in (2.0, 4.0)
    ]
    found = gathered(
        *(record("resnet8", "dqmq", 0.7, seed=s, bits_by_kind=t) for s, t in enumerate(tables)),
        record("resnet8", "static", 0.7),
    )
    kinds, points, bits, count = found.bits_by_kind(DQMQ)
    assert (kinds, points, count) == (["clean", "jpeg"], ["relu", "dense:kernel"], 2)
    np.testing.assert_allclose(bits, [[3, 4], [8, 8]])
    assert found.bits_by_kind(STATIC) is None


def test_runs_behind_a_front_are_apart_from_those_without_one():
    plain, behind = record("resnet8", "dqmq", 0.7), record("resnet8", "dqmq", 0.8)
    behind["run"]["front"] = results.STANDARDIZATION
    # Earlier records do not name a front.
    del plain["run"]["front"]
    found = gathered(plain, behind)
    assert found.values(DQMQ, results.accuracy, "a") == {0: 70.0}
    assert found.values(
        results.Cell(method="dqmq", front=results.STANDARDIZATION, **AT), results.accuracy, "a"
    ) == {0: 80.0}
