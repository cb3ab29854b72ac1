"""The tables of the comparison."""

import functools
import itertools

from study import corruptions, paired_differences, results
from study.markdown_table import MISSING, Table, figure, seeds

_ABLATED_NETWORK = "resnet8"
_ABLATED_AT = 2.5
_ABLATIONS = {
    "no_pathwise": "without pathwise gradients",
    "no_curvature": "without curvature",
    "no_score_function": "without the score function",
    "no_pathwise_and_score_function": "without pathwise gradients and the score function",
    "no_priced_start": "from equal bits",
    "no_priced_start_and_pathwise": "from equal bits, without pathwise gradients",
    "no_priced_start_and_score_function": "from equal bits, without the score function",
    "no_priced_start_and_pathwise_and_score_function": "from equal bits, without both",
    "no_priced_start_and_slow_search": "from equal bits, fast search",
    "no_priced_start_and_slow_search_and_pathwise": (
        "from equal bits, fast search, without pathwise gradients"
    ),
    "no_priced_start_and_slow_search_and_score_function": (
        "from equal bits, fast search, without the score function"
    ),
    "no_priced_start_and_slow_search_and_pathwise_and_score_function": (
        "from equal bits, fast search, without both"
    ),
    "no_model_cost": "without the model's cost",
    "no_entropy": "without the entropy",
    "no_supervised": "without the supervised loss",
    "random_encoder": "encoder left random",
    "no_sample_bits": "bits do not follow the image",
    "no_normalization": "without normalization by quality",
    "no_distillation": "without distillation",
}
_KNOWING = {
    None: "DQMQ",
    "no_curvature": "without curvature",
    "told_quality": "oracle",
}
_bits_shuffled = functools.partial(results.shuffled_accuracy, name="shuffled_bits")
_RIVALS = {"uniform": "uniform", "hawq": "HAWQ", "hawq_alike": "HAWQ", "static": "static"}


def tables(found):
    """Yields all tables.

    Args:
        found: The `Results`.
    """
    for network in results.NETWORKS:
        yield accuracies(found, network)
    yield lead_table(found)
    yield files(found)
    yield ablations(found)
    yield headroom(found)
    yield behind_fronts(found)
    for network in results.NETWORKS:
        yield corruptions.mean_errors(found, network)
        yield corruptions.kinds(found, network)
        yield corruptions.severities(found, network)


def accuracies(found, network):
    """Returns the table of all methods at all budgets of a network."""
    cells = found.compared(network)
    rows = [
        (
            MISSING if cell.budget is None else f"{cell.budget:g}",
            cell.label,
            *_accuracy_figures(found, cell),
            *(_bit_figure(found, cell, test) for test in ("a", "d")),
        )
        for cell in cells
    ]
    hgq2 = (
        " HGQ2 gives each weight and each channel of activations its own bits; the sign counts as a bit, as "
        "for all methods."
        if any(cell.method == "hgq2" for cell in cells)
        else ""
    )
    return Table(
        f"{results.NETWORKS[network]}: accuracy in %, mean bit-width",
        ("budget", "method", "seeds", *results.TESTS, "bits on a", "bits on d"),
        tuple(rows), 2,
        ("The bits of float and TFMOT are fixed. Those of the others are measured: the square root of bit "
         "operations per MAC, including those of what decides the bits. HAWQ gives the weights and the "
         "input of a layer the same bits; with separate bits it was worse in the trials." + hgq2,),
    )  # fmt: skip


def lead_table(found):
    """Returns the table of DQMQ's leads."""
    rows = []
    for lead in paired_differences.leads(found):
        against = _RIVALS[lead.against]
        if lead.rival:
            several = len(paired_differences.RIVALS[lead.against][0]) > 1
            against = lead.rival.label + (f" (best {against})" if several else "")
        rows.append(
            (
                results.NETWORKS[lead.network],
                f"{lead.budget:g}",
                against,
                _by_test(lead.targets, "{:+g}".format),
                _by_test(lead.verdicts, str),
                seeds(lead.points["a"]),
                *(_lead_figure(lead.points[test]) for test in results.TESTS),
            )
        )
    return Table(
        "Leads of DQMQ, percentage points",
        ("network", "budget", "against", "target", "verdict", "seeds", *results.TESTS),
        tuple(rows), 5,
        ("Differences are paired by seed. †: more than two standard errors above zero.",
         'Reached: the mean is at least the target and, if the target is above 0, more than two standard '
         f'errors above zero. Open: fewer than {results.SEEDS} seeds. '
         "The best of several methods is the one with the best mean on test (a).",
        ),
    )  # fmt: skip


def files(found):
    """Returns the table of `.tflite` files."""
    rows = []
    for network, name in results.NETWORKS.items():
        at = {"network": network, "kind": "download_bytes"}
        budgets = {cell.budget for cell in found.cells(**at)}
        if network == _ABLATED_NETWORK:
            budgets |= set(results.FILE_SEEDS)
        for budget in sorted(budgets):
            plain = (results.Cell(method=m, budget=budget, **at) for m in results.FILE_METHODS)
            for cell in itertools.chain(*map(results.by_training, plain)):
                sizes = found.values(cell, lambda record: record["download_bytes"])
                most = f"{100 * max(sizes.values()) / budget:.1f}" if sizes else MISSING
                size = results.Estimate.of(sizes.values())
                rows.append(
                    (name, f"{budget:,.0f}", cell.label, *_accuracy_figures(found, cell),
                     figure(size, 0), most)
                )  # fmt: skip
    return Table(
        "Files: accuracy in % in LiteRT, bytes under deflate",
        ("network", "budget", "method", "seeds", *results.TESTS, "bytes", "largest, % of budget"),
        tuple(rows), 3,
        ("Trained as DQMQ: with DQMQ's distilled labels and batch statistics.",),
    )  # fmt: skip


def ablations(found):
    """Returns the table of DQMQ's ablations."""
    at = {"network": _ABLATED_NETWORK, "kind": "mean_bit_width"}

    def cell(method="dqmq", budget=_ABLATED_AT, ablation=None):
        return results.Cell(method=method, budget=budget, ablation=ablation, **at)

    variants = [("DQMQ", cell(), results.accuracy)]
    variants += [(text, cell(ablation=name), results.accuracy) for name, text in _ABLATIONS.items()]
    variants += [
        ("bits shuffled", cell(), _bits_shuffled),
        ("bits and normalization shuffled", cell(), results.shuffled_accuracy),
        ("static", cell("static"), results.accuracy),
        ("HAWQ", cell("hawq"), results.accuracy),
        ("HAWQ, trained as DQMQ", cell("hawq", ablation=results.SAME_TRAINING), results.accuracy),
        ("DQMQ", cell(budget=8.0), results.accuracy),
        ("static", cell("static", 8.0), results.accuracy),
    ]
    rows = []
    for label, variant, metric in variants:
        full, figures = cell(budget=variant.budget), []
        for test in ("a", "d"):
            values = found.values(variant, metric, test)
            whole = found.values(full, results.accuracy, test)
            same = (variant, metric) == (full, results.accuracy)
            change = None if same else results.difference(values, whole)
            figures += [
                figure(results.Estimate.of(values.values())), figure(change, signed=True)
            ]  # fmt: skip
        count = seeds(found.estimate(variant, metric, "a"))
        bits = figure(found.estimate(variant, results.mean_bits, "a"))
        rows.append((f"{variant.budget:g}", label, count, *figures, bits))
    return Table(
        f"Ablations of DQMQ, {results.NETWORKS[_ABLATED_NETWORK]}: accuracy in %",
        ("budget", "variant", "seeds", "a", "change of a", "d", "change of d", "bits on a"),
        tuple(rows), 2,
        ("Changes are relative to DQMQ at the same budget, paired by seed. Shuffled: in the trained DQMQ "
         "the bits of each image, or everything that depends on the quality, are decided by another image "
         "of the batch.",),
    )  # fmt: skip


def headroom(found):
    """Returns the table of what knowing the quality gains, for the oracle and for DQMQ."""
    rows = []
    for network, budget in itertools.product(results.NETWORKS, results.MEAN_BITS):
        at = {"network": network, "kind": "mean_bit_width", "budget": budget}
        static = results.Cell(method="static", **at)
        for ablation, name in _KNOWING.items():
            cell = results.Cell(method="dqmq", ablation=ablation, **at)
            gains = [
                results.difference(
                    found.values(cell, results.accuracy, test),
                    found.values(static, results.accuracy, test),
                )
                for test in results.TESTS
            ]
            words = results.NETWORKS[network], f"{budget:g}", name
            rows.append((*words, seeds(gains[0]), *(figure(g, signed=True) for g in gains)))
    return Table(
        "What knowing the quality is worth: percentage points over learned static bits",
        ("network", "budget", "variant", "seeds", *results.TESTS),
        tuple(rows), 3,
        ("Paired by seed. The oracle is DQMQ, trained in the same way, with an encoder that knows the kind "
         "of each image's degradation and whether its severity is 3 or more. Without curvature the bits "
         "hardly differ between images, but the normalization still depends on the quality.",),
    )  # fmt: skip


def behind_fronts(found):
    """Returns the table of what is behind a standardization, behind `Exposure`, and behind nothing."""
    plain = {None: results.FRONTS[results.STANDARDIZATION]}
    rows = []
    for budget, (front, several) in itertools.product(
        results.FRONT_MEAN_BITS, {**plain, **results.FRONTS}.items()
    ):
        cells = [
            results.Cell(_ABLATED_NETWORK, method, "mean_bit_width", budget, None, ablation, front)
            for method, ablation in several
        ]
        static = next(cell for cell in cells if cell.method == "static")
        variants = [
            (cell.label if cell.ablation != "told_quality" else "oracle", cell, results.accuracy)
            for cell in cells
        ]
        variants += [
            (f"{label}, quality shuffled", cell, results.shuffled_accuracy)
            for label, cell, _ in variants
            if cell.method == "dqmq"
        ]
        for label, cell, metric in variants:
            values = {test: found.values(cell, metric, test) for test in results.TESTS}
            means = [results.Estimate.of(values[test].values()) for test in results.TESTS]
            leads = [
                results.difference(values[test], found.values(static, results.accuracy, test))
                for test in results.TESTS
                if cell != static
            ] or [None] * len(results.TESTS)
            rows.append(
                (f"{budget:g}", front or "nothing", label, seeds(means[0]), *map(figure, means),
                 *(figure(lead, signed=True) for lead in leads))
            )  # fmt: skip
    return Table(
        f"What is in front of {results.NETWORKS[_ABLATED_NETWORK]}: accuracy in %, and lead over static bits "
        "behind the same",
        ("budget", "in front", "method", "seeds", *results.TESTS,
         *(f"lead on {test}" for test in results.TESTS)),
        tuple(rows), 3,
        ("Leads are in percentage points and paired by seed. Behind each front the float network was trained "
         "anew, by the same recipe. The standardization gives each image the same mean and spread before it "
         "reaches the network; its cost is not counted. The oracle is DQMQ with an encoder that knows the kind "
         "of each image's degradation and whether its severity is 3 or more. Quality shuffled: in the trained "
         "network, everything that depends on the quality follows another image of the batch.",),
    )  # fmt: skip


def _accuracy_figures(found, cell):
    """Returns the number of seeds and the accuracy on each test, as text."""
    estimates = [found.estimate(cell, results.accuracy, test) for test in results.TESTS]
    return seeds(estimates[0]), *map(figure, estimates)


def _bit_figure(found, cell, test):
    """Returns the mean bits as text. Bits that are fixed have no error."""
    estimate = found.estimate(cell, results.mean_bits, test)
    return f"{estimate.mean:g}" if estimate and cell.budget is None else figure(estimate)


def _by_test(values, shown):
    return ", ".join(f"{test} {shown(value)}" for test, value in values.items()) or MISSING


def _lead_figure(estimate):
    text = figure(estimate, signed=True)
    return f"{text} †" if estimate is not None and estimate.clear else text
