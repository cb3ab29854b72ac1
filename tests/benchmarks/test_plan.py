import collections
import json

import pytest
from helpers.small_networks import network
from study import assignments, float_networks, learning_rates, plan, results, runs

NONE = learning_rates.Rates([])


@pytest.fixture(scope="module")
def costs():
    return dict.fromkeys(float_networks.NETWORKS, assignments.cost_model(network()))


@pytest.fixture
def few_budgets(monkeypatch):
    monkeypatch.setattr(plan, "MEAN_BITS", (5.5, 6.5))
    monkeypatch.setattr(plan, "_TUNED_AT", {"resnet8": (5.5, 6.5), "mobilenet_v2": (6.5,)})


def test_uniform_pairs_have_the_largest_cost_within_the_budget(costs):
    model = costs["resnet8"]
    pairs = plan.uniform_bits(model, 5.0)
    prices = [assignments.cost(model, assignments.uniform(model, *pair)) for pair in pairs]
    assert max(prices) <= 5.0 and len(set(prices)) == 1
    larger = {(w + 1, a) for w, a in pairs} | {(w, a + 1) for w, a in pairs}
    near = [pair for pair in larger if abs(pair[0] - pair[1]) <= 1]
    assert all(assignments.cost(model, assignments.uniform(model, *p)) > 5.0 for p in near)


def test_a_budget_below_two_bits_is_an_error(costs):
    with pytest.raises(ValueError, match="budget of 1.5"):
        plan.uniform_bits(costs["resnet8"], 1.5)


def test_every_method_runs_at_every_budget_with_every_seed(costs, few_budgets):
    found = list(plan.table(costs, 8, NONE))
    # Except methods without a budget, and the variant of HAWQ that was worse in the trials.
    for method in set(runs.METHODS) - {"float", "tfmot", "hawq_free"}:
        here = {
            (r.network, r.budget, r.seed)
            for r in found
            if r.method == method and r.budget != results.CHECKED_AT
        }
        networks = 1 if method == "hgq2" else len(float_networks.NETWORKS)
        assert len(here) == networks * 2 * len(plan.SEEDS)
    assert len({run.key for run in found}) == len(found)


def tried(costs, accuracy):
    """Returns the `Rates` from trials whose accuracy is a given function of the run."""
    return learning_rates.Rates(
        {"run": json.loads(run.key), "scores": {"validation": {"accuracy": accuracy(run)}}}
        for run in plan.trials(costs)
    )


def taken(part, *names):
    """Returns the learning rates of runs, by the values of the fields with these names."""
    found = {}
    for run in part:
        found.setdefault(tuple(getattr(run, n) for n in names), set()).add(run.learning_rate)
    return found


def test_runs_use_the_rate_with_the_best_validation_accuracy(costs, few_budgets):
    # Larger rates are better, except for files.
    chosen = tried(costs, lambda r: r.learning_rate * (-1 if r.kind == "download_bytes" else 1))
    for name, each in plan.LEARNING_RATES.items():
        made = (*plan.table(costs, 8, chosen), *plan.oracle(8, chosen), *plan.ablations(8, chosen))
        found = taken([r for r in made if r.budget and r.network == name], "network")
        assert found == {(name,): {max(each)}}
    assert taken(plan.files(8, chosen)) == {(): {min(plan.LEARNING_RATES["resnet8"])}}


def test_a_budget_without_trials_uses_the_rate_of_the_nearest_budget(costs, few_budgets):
    low, high = plan.LEARNING_RATES["resnet8"]
    chosen = tried(costs, lambda r: r.learning_rate * (1 if r.budget == 5.5 else -1))
    made = [r for r in plan.table(costs, 8, chosen) if r.network == "resnet8" and r.budget]
    # The check of the baseline has a budget below all others here, the runs at 8 bits one above.
    assert taken(made, "budget") == {(4.25,): {high}, (5.5,): {high}, (6.5,): {low}}
    eight = [r for r in plan.ablations(8, chosen) if r.budget == 8.0]
    assert taken(eight) == {(): {low}}


def test_rates_are_chosen_by_the_mean_over_seeds(costs, few_budgets, monkeypatch):
    monkeypatch.setattr(plan, "_TRIAL_SEEDS", {5.5: (0, 1)})
    low, high = plan.LEARNING_RATES["resnet8"]
    # The larger rate is the best with one seed, and the worst with the other.
    by_seed = {(low, 0): 0.7, (high, 0): 0.8, (low, 1): 0.7, (high, 1): 0.1}
    chosen = tried(costs, lambda r: by_seed.get((r.learning_rate, r.seed), 0.5))
    made = [r for r in plan.table(costs, 8, chosen) if r.network == "resnet8" and r.budget]
    assert taken(made, "budget") == {(4.25,): {low}, (5.5,): {low}, (6.5,): {high}}


def test_methods_trained_as_dqmq_have_their_own_rate(costs, few_budgets):
    low, high = plan.LEARNING_RATES["resnet8"]
    chosen = tried(costs, lambda r: r.learning_rate * (1 if r.ablation else -1))
    for part in (plan.table(costs, 8, chosen), plan.files(8, chosen)):
        here = [r for r in part if r.network == "resnet8" and r.method in results.TRAINED_ALIKE]
        expected = {(None,): {low}, (results.SAME_TRAINING,): {high}}
        assert taken(here, "ablation") == expected


def test_all_methods_have_the_same_trials(costs, few_budgets):
    trials = list(plan.trials(costs))
    for name, each in plan.LEARNING_RATES.items():
        here = [run for run in trials if run.network == name]
        counts = collections.Counter((r.method, r.kind, r.ablation, r.budget) for r in here)
        assert set(counts.values()) == {len(each)}
        budgets = collections.Counter(
            (r.method, r.ablation) for r in here if r.budget in (5.5, 6.5)
        )
        assert set(budgets.values()) == {len(each) * len(plan._TUNED_AT[name])}
    # HGQ2 and files run on one network only.
    assert {run.network for run in trials if run.method == "hgq2"} == {"resnet8"}
    assert {run.network for run in trials if run.kind == "download_bytes"} == {"resnet8"}
    assert all(run.tuning for run in trials)


def test_a_run_can_be_restored_from_its_key():
    run = runs.Run(network="resnet8", method="lsq", kind="mean_bit_width", budget=3.0, bits=(3, 2))
    assert runs.Run.of(run.key) == run


def test_every_front_has_the_same_methods_seeds_and_rates(costs, few_budgets, monkeypatch):
    monkeypatch.setattr(results, "FRONT_MEAN_BITS", plan.MEAN_BITS)
    chosen = tried(costs, lambda r: r.learning_rate)
    found = list(plan.behind_fronts(8, chosen))
    assert len({run.key for run in found}) == len(found)
    assert {run.network for run in found} == {"resnet8"}
    for front, methods in results.FRONTS.items():
        for budget in results.FRONT_MEAN_BITS:
            here = [r for r in found if (r.front, r.budget) == (front, budget)]
            expected = collections.Counter(methods * len(plan.SEEDS))
            assert collections.Counter((r.method, r.ablation) for r in here) == expected
    # A run without a front, with the same rate, is already part of the other plans.
    plain = {(r.method, r.ablation, r.budget): r.learning_rate for r in plan.table(costs, 8, chosen)
             if r.network == "resnet8"}  # fmt: skip
    for run in found:
        without_oracle = None if run.ablation == runs.TOLD else run.ablation
        assert run.learning_rate == plain[run.method, without_oracle, run.budget]
