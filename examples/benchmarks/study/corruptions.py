"""Tables of errors and bits by kind of degradation and by severity.

Dan Hendrycks and Thomas Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions
and Perturbations", arXiv 1903.12261, have the errors so.
"""

import itertools

from study import results
from study.table import MISSING, Table, figure, seeds


def mean_errors(found, network):
    """Returns the table of mean corruption errors of a network."""
    rows = []
    for cell in found.compared(network):
        errors = [
            found.estimate(cell, results.corruption_error, test, found.reference(network, test))
            for test in ("a", "b")
        ]
        budget = MISSING if cell.budget is None else f"{cell.budget:g}"
        rows.append((budget, cell.label, seeds(errors[0]), *map(figure, errors)))
    return Table(
        f"{results.NETWORKS[network]}: mean corruption error (mCE) in %",
        ("budget", "method", "seeds", "mCE on a, kinds of training", "mCE on b, other kinds"),
        tuple(rows), 2,
        ("Errors averaged over severities, divided by the float network's (its mean over seeds), "
         "averaged over kinds, as Hendrycks and Dietterich (2019) have it for CIFAR-10-C.",),
    )  # fmt: skip


def kinds(found, network):
    """Returns the table of DQMQ's error and bits for each kind of degradation."""
    columns = ["kind", "test", "float error"]
    cells = []
    for budget in results.MEAN_BITS:
        cells.append(results.Cell(network, "dqmq", "mean_bit_width", budget))
        columns += [f"error at {budget:g}", f"bits at {budget:g}"]
    reference = results.Cell(network, "float")
    rows = []

    def of_kind(metric, kind):
        return lambda record, test: metric(record, test).get(kind)

    for test in ("a", "b"):
        known = {
            kind
            for cell in (reference, *cells)
            for errors in found.values(cell, results.kind_errors, test).values()
            for kind in errors
        }
        for kind in [kind for kind in results.KINDS if kind in known]:
            figures = [figure(found.estimate(reference, of_kind(results.kind_errors, kind), test))]
            for cell, metric in [
                (c, m) for c in cells for m in (results.kind_errors, results.kind_bits)
            ]:
                figures.append(figure(found.estimate(cell, of_kind(metric, kind), test)))
            rows.append((kind.replace("_", " "), test, *figures))
    clean = [figure(found.estimate(reference, _error, "c"))]
    for cell in cells:
        clean.append(figure(found.estimate(cell, _error, "c")))
        clean.append(figure(found.estimate(cell, results.mean_bits, "c")))
    rows.append(("clean", "c", *clean))
    return Table(
        f"{results.NETWORKS[network]}: error in % and mean bit-width of DQMQ by kind",
        tuple(columns), tuple(rows), 2,
        ("Averaged over severities.",),
    )  # fmt: skip


def severities(found, network):
    """Returns the table of DQMQ's error and bits for each kind at each severity."""
    cells = [results.Cell(network, "dqmq", "mean_bit_width", b) for b in results.MEAN_BITS]
    reference = results.Cell(network, "float")
    columns = ["kind", "severity", "test", "float error"]
    for budget in results.MEAN_BITS:
        columns += [f"{what} at {budget:g}" for what in ("error", "CE", "bits")]
    rows = []

    def add(words, of_float, errors, bits):
        figures = [_plain(of_float, 1)]
        for error, bit_width in zip(errors, bits):
            known = error is not None and of_float is not None
            ratio = 100 * error / of_float if known else None
            figures += [_plain(error, 1), _plain(ratio, 0), _plain(bit_width, 2)]
        rows.append((*words, *figures))

    for test in ("a", "b"):
        floats, *errors = (
            _severity_means(found, cell, results.severity_errors, test)
            for cell in (reference, *cells)
        )
        bits = [_severity_means(found, cell, results.severity_bits, test) for cell in cells]
        known = {*floats, *(key for each in errors for key in each)}
        for key in itertools.product(results.KINDS, results.SEVERITIES):
            if key in known:
                kind, severity = key
                words = kind.replace("_", " "), str(severity), test
                add(
                    words, floats.get(key), [e.get(key) for e in errors], [b.get(key) for b in bits]
                )
    of_clean = [_mean(found, cell, _error) for cell in (reference, *cells)]
    bits = [_mean(found, cell, results.mean_bits) for cell in cells]
    add(("clean", "0", "c"), of_clean[0], of_clean[1:], bits)
    return Table(
        f"{results.NETWORKS[network]}: error and corruption error (CE) in %, and mean bit-width of "
        "DQMQ, by kind and severity",
        tuple(columns), tuple(rows), 3,
        ("Means over seeds. CE: the error divided by the float network's.",),
    )  # fmt: skip


def _severity_means(found, cell, metric, test):
    """`{(kind, severity): mean over seeds}`."""
    tables = list(found.values(cell, metric, test).values())
    return {key: sum(t[key] for t in tables) / len(tables) for key in next(iter(tables), ())}


def _mean(found, cell, metric):
    estimate = found.estimate(cell, metric, "c")
    return None if estimate is None else estimate.mean


def _plain(value, digits):
    return MISSING if value is None else f"{value:.{digits}f}"


def _error(record, test):
    return 100 - results.accuracy(record, test)
