"""The runs of the comparison."""

import dataclasses
import itertools

from study import assignments, float_networks, results, runs

MEAN_BITS = results.MEAN_BITS
SEEDS = tuple(range(results.SEEDS))
ALL_SEEDS = tuple(range(max(results.FILE_SEEDS.values())))
# Each method has one trial at each learning rate. The smaller network needs larger rates.
LEARNING_RATES = {"resnet8": (0.001, 0.002), "mobilenet_v2": (0.002, 0.004)}
# To save time, MobileNetV2 has trials at one budget only.
_TUNED_AT = {"resnet8": MEAN_BITS, "mobilenet_v2": (3.0,)}
# With few bits, runs with different seeds differ by a percentage point or more.
_TRIAL_SEEDS = {2.5: SEEDS}
_TUNED_FILE, _HAWQ_FREE_AT, _TUNING_STEPS = 40_000, 3.0, 400
_ABLATED_AT = 2.5
_HGQ2_ON = float_networks.NETWORKS[0]


def uniform_bits(costs, budget):
    """Returns the pairs `(weight bits, activation bits)` that use a budget best.

    Args:
        costs: The `CostModel` of the network.
        budget: Largest cost, in the unit of `costs`.

    Returns:
        The pairs with the largest cost within the budget, among those that differ by at most one bit.
        These can be two pairs, such as (2, 3) and (3, 2).

    Raises:
        ValueError: If 2 bits everywhere except in the first and the last layer exceed the budget.
    """
    widths = range(2, 9)
    found = {}
    for pair in itertools.product(widths, widths):
        if abs(pair[0] - pair[1]) <= 1:
            cost = assignments.cost(costs, assignments.uniform(costs, *pair))
            if cost <= budget:
                found.setdefault(round(cost, 6), []).append(pair)
    if not found:
        raise ValueError(f"No uniform bit-widths keep a budget of {budget:g}.")
    return found[max(found)]


def table(bench_costs, steps, rates):
    """Yields the runs of the main table, all methods of one seed and network after each other.

    Args:
        bench_costs: `{network: CostModel}`, in mean bits.
        steps: Training steps of each run.
        rates: A `learning_rates.Rates`. Methods without trials get the smallest rate.
    """
    for seed, network in itertools.product(SEEDS, float_networks.NETWORKS):

        def run(method, network=network, seed=seed, **fields):
            for ablation in results.trainings(method):
                run = runs.Run(
                    network=network,
                    method=method,
                    ablation=ablation,
                    seed=seed,
                    steps=steps,
                    **fields,
                )
                yield _tuned(run, rates)

        for budget in MEAN_BITS:
            at = {"kind": "mean_bit_width", "budget": budget}
            # HAWQ with bits of its own for activations (hawq_free) was worse in the trials on both
            # networks.
            for method in ("dqmq", "static", "hawq"):
                yield from run(method, **at)
            for pair, method in itertools.product(
                uniform_bits(bench_costs[network], budget), results.UNIFORM
            ):
                yield from run(method, bits=pair, **at)
            if network == _HGQ2_ON:
                yield from run("hgq2", **at)
        yield from run("float")
        yield from run("tfmot")
        checked = {"kind": "mean_bit_width", "budget": results.CHECKED_AT}
        yield from run("lsq", bits=results.CHECKED_BITS, **checked)


def ablations(steps, rates):
    """Yields the ablations of DQMQ on ResNet-8, and the runs at 8 bits."""
    for seed in SEEDS:
        at = {
            "kind": "mean_bit_width",
            "steps": steps,
            "seed": seed,
            "network": float_networks.NETWORKS[0],
        }
        for name in runs.ABLATIONS:
            run = runs.Run(method="dqmq", budget=_ABLATED_AT, ablation=name, **at)
            yield _tuned(run, rates)
        for method in ("dqmq", "static"):
            yield _tuned(runs.Run(method=method, budget=8.0, **at), rates)


def oracle(steps, rates):
    """Yields the runs of the oracle, and those without curvature, whose bits hardly depend on quality."""
    for seed, network, budget, ablation in itertools.product(
        SEEDS, float_networks.NETWORKS, MEAN_BITS, (runs.TOLD, "no_curvature")
    ):
        run = runs.Run(
            network=network,
            method="dqmq",
            kind="mean_bit_width",
            budget=budget,
            ablation=ablation,
            steps=steps,
            seed=seed,
        )
        yield _tuned(run, rates)


def behind_fronts(steps, rates):
    """Yields the runs behind a standardization and behind `Exposure`, on ResNet-8.

    They use the learning rates of the same methods without a front. The oracle is told the kind of the
    degradation and whether it is severe.
    """
    for budget, front, seed in itertools.product(results.FRONT_MEAN_BITS, results.FRONTS, SEEDS):
        for method, ablation in results.FRONTS[front]:
            run = runs.Run(
                network=float_networks.NETWORKS[0],
                method=method,
                kind="mean_bit_width",
                budget=budget,
                ablation=ablation,
                steps=steps,
                seed=seed,
                front=front,
            )
            yield _tuned(run, rates)


def files(steps, rates):
    """Yields the runs that end in a `.tflite` file, on ResNet-8."""
    for budget, seed in [(b, s) for b, count in results.FILE_SEEDS.items() for s in range(count)]:
        at = {"kind": "download_bytes", "budget": budget, "seed": seed, "steps": steps}
        for method in results.FILE_METHODS:
            for ablation in results.trainings(method):
                run = runs.Run(
                    network=float_networks.NETWORKS[0], method=method, ablation=ablation, **at
                )
                yield _tuned(run, rates)


def trials(bench_costs):
    """Yields the trials that choose a learning rate for each method, network and kind of budget."""
    for network in float_networks.NETWORKS:

        def run(method, network=network, **fields):
            seeds = _TRIAL_SEEDS.get(fields["budget"], SEEDS[:1])
            for rate, ablation, seed in itertools.product(
                LEARNING_RATES[network], results.trainings(method), seeds
            ):
                yield runs.Run(
                    network=network,
                    method=method,
                    ablation=ablation,
                    learning_rate=rate,
                    seed=seed,
                    steps=_TUNING_STEPS,
                    tuning=True,
                    **fields,
                )

        for budget in _TUNED_AT[network]:
            at = {"kind": "mean_bit_width", "budget": budget}
            pair = uniform_bits(bench_costs[network], budget)[-1]
            for method in results.UNIFORM:
                yield from run(method, bits=pair, **at)
            hgq2 = ("hgq2",) if network == _HGQ2_ON else ()
            for method in ("hawq", "static", "dqmq", *hgq2):
                yield from run(method, **at)
        yield from run("hawq_free", kind="mean_bit_width", budget=_HAWQ_FREE_AT)
        if network == float_networks.NETWORKS[0]:
            for method in results.FILE_METHODS:
                yield from run(method, kind="download_bytes", budget=_TUNED_FILE)


def _tuned(run, rates):
    rate = rates.of(run) or LEARNING_RATES[run.network][0]
    return dataclasses.replace(run, learning_rate=rate)
