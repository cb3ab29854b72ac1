import collections
import json

import pytest
from small_networks import network
from study import assignments, plan, results, runs, starts


@pytest.fixture(scope="module")
def costs():
    return dict.fromkeys(starts.NETWORKS, assignments.cost_model(network()))


def test_uniform_pairs_are_the_dearest_within_the_budget(costs):
    model = costs["resnet8"]
    pairs = plan.uniform_bits(model, 5.0)
    prices = [assignments.cost(model, assignments.uniform(model, *pair)) for pair in pairs]
    assert max(prices) <= 5.0 and len(set(prices)) == 1
    larger = {(w + 1, a) for w, a in pairs} | {(w, a + 1) for w, a in pairs}
    near = [pair for pair in larger if abs(pair[0] - pair[1]) <= 1]
    assert all(assignments.cost(model, assignments.uniform(model, *p)) > 5.0 for p in near)


def test_budget_below_two_bits_is_refused(costs):
    with pytest.raises(ValueError, match="budget of 1.5"):
        plan.uniform_bits(costs["resnet8"], 1.5)


def test_every_method_has_every_budget_and_seed(costs, monkeypatch):
    monkeypatch.setattr(plan, "MEAN_BITS", (5.5, 6.5))
    found = list(plan.table(costs, 8, {}))
    # Those without a budget, and the way of HAWQ that lost its trials, apart.
    for method in set(runs.METHODS) - {"float", "tfmot", "hawq_free"}:
        here = {
            (r.network, r.budget, r.seed)
            for r in found
            if r.method == method and r.budget != results.CHECKED_AT
        }
        networks = 1 if method == "hgq2" else len(starts.NETWORKS)
        assert len(here) == networks * 2 * len(plan.SEEDS)
    assert len({run.key for run in found}) == len(found)


def test_runs_take_the_rate_that_validation_chose(costs, monkeypatch):
    monkeypatch.setattr(plan, "MEAN_BITS", (5.5,))
    monkeypatch.setattr(plan, "_TUNED_AT", 5.5)

    def accuracy(run):
        # Larger rates are better, but for files.
        return 0.5 + (-10 if run.kind == "download_bytes" else 10) * run.learning_rate

    records = [
        {"run": json.loads(run.key), "scores": {"validation": {"accuracy": accuracy(run)}}}
        for run in plan.trials(costs)
    ]
    rates = results.chosen_rates(records)
    tried = plan.LEARNING_RATES["resnet8"]
    assert rates["resnet8", "dqmq", "mean_bit_width", None] == max(tried)
    for name, each in plan.LEARNING_RATES.items():
        chosen = {
            r.learning_rate
            for r in (*plan.table(costs, 8, rates), *plan.oracle(8, rates))
            if r.method == "dqmq" and r.network == name
        }
        assert chosen == {max(each)}
    assert {r.learning_rate for r in plan.files(8, rates)} == {min(tried)}


def test_each_method_has_the_same_trials(costs, monkeypatch):
    monkeypatch.setattr(plan, "_TUNED_AT", 5.5)
    trials = list(plan.trials(costs))
    for name, rates in plan.LEARNING_RATES.items():
        here = [run for run in trials if run.network == name]
        counts = collections.Counter((run.method, run.kind, run.ablation) for run in here)
        assert set(counts.values()) == {len(rates)}
    # HGQ2, and files, are on one network alone.
    assert {run.network for run in trials if run.method == "hgq2"} == {"resnet8"}
    assert {run.network for run in trials if run.kind == "download_bytes"} == {"resnet8"}
    assert all(run.tuning for run in trials)


def test_training_as_dqmq_has_a_rate_of_its_own(costs, monkeypatch):
    monkeypatch.setattr(plan, "MEAN_BITS", (5.5,))
    rates = {
        ("resnet8", method, kind, ablation): 0.1 if ablation else 0.2
        for method in results.TRAINED_ALIKE
        for kind in ("mean_bit_width", "download_bytes")
        for ablation in (None, results.SAME_TRAINING)
    }
    for part in (plan.table(costs, 8, rates), plan.files(8, rates)):
        here = [r for r in part if r.network == "resnet8" and r.method in results.TRAINED_ALIKE]
        found = {(r.method, r.ablation, r.learning_rate) for r in here}
        assert found == {
            (method, ablation, 0.1 if ablation else 0.2)
            for method in results.TRAINED_ALIKE
            for ablation in (None, results.SAME_TRAINING)
        }


def test_key_goes_around():
    run = runs.Run(network="resnet8", method="lsq", kind="mean_bit_width", budget=3.0, bits=(3, 2))
    assert runs.Run.of(run.key) == run
