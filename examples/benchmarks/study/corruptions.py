"""Tables of errors and bits by kind of degradation and by severity.

Errors are defined as by Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", arXiv 1903.12261.
"""

import itertools

from study import results
from study.markdown_table import MISSING, Table, figure, seeds


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
        ("Errors are averaged over severities, divided by those of the float network (its mean over "
         "seeds), and averaged over kinds, as Hendrycks and Dietterich (2019) do for CIFAR-10-C.",),
    )  # fmt: skip


def kinds(found, network):
    """Returns the table of DQMQ's errors and bits for each kind of degradation."""
    columns = ["kind", "test", "float error"]
    cells = []
    for budget in results.MEAN_BITS:
        cells.append(results.Cell(network, "dqmq", "mean_bit_width", budget))
        columns += [f"error at {budget:g}", f"bits at {budget:g}"]
    reference = results.Cell(network, "float")
    rows = []
    for test in ("a", "b"):
        for kind in _known(found, (reference, *cells), results.kind_errors, test, results.KINDS):
            of_float = found.estimate(reference, _entry(results.kind_errors, kind), test)
            figures = [figure(of_float)]
            for cell, metric in itertools.product(cells, (results.kind_errors, results.kind_bits)):
                figures.append(figure(found.estimate(cell, _entry(metric, kind), test)))
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
    """Returns the table of DQMQ's errors and bits for each kind at each severity."""
    cells = [results.Cell(network, "dqmq", "mean_bit_width", b) for b in results.MEAN_BITS]
    reference = results.Cell(network, "float")
    columns = ["kind", "severity", "test", "float error"]
    for budget in results.MEAN_BITS:
        columns += [f"{what} at {budget:g}" for what in ("error", "CE", "bits")]
    rows = []

    def add(words, error, bits, test):
        of_float = _mean(found, reference, error, test)
        figures = [_plain(of_float, 1)]
        for cell in cells:
            ours = _mean(found, cell, error, test)
            known = ours is not None and of_float is not None
            ratio = 100 * ours / of_float if known else None
            bit_width = _mean(found, cell, bits, test)
            figures += [_plain(ours, 1), _plain(ratio, 0), _plain(bit_width, 2)]
        rows.append((*words, test, *figures))

    order = tuple(itertools.product(results.KINDS, results.SEVERITIES))
    for test in ("a", "b"):
        for key in _known(found, (reference, *cells), results.severity_errors, test, order):
            kind, severity = key
            error, bits = _entry(results.severity_errors, key), _entry(results.severity_bits, key)
            add((kind.replace("_", " "), str(severity)), error, bits, test)
    add(("clean", "0"), _error, results.mean_bits, "c")
    return Table(
        f"{results.NETWORKS[network]}: error and corruption error (CE) in %, and mean bit-width of "
        "DQMQ, by kind and severity",
        tuple(columns), tuple(rows), 3,
        ("Means over seeds. CE: the error divided by the float network's.",),
    )  # fmt: skip


def _known(found, cells, metric, test, order):
    """Returns the keys of `order` for which any run of the cells has an entry of the metric."""
    tables = [table for cell in cells for table in found.values(cell, metric, test).values()]
    return [key for key in order if any(key in table for table in tables)]


def _entry(metric, key):
    """Returns a metric that is one entry of a metric with dictionaries as values."""
    return lambda record, test: metric(record, test).get(key)


def _mean(found, cell, metric, test):
    estimate = found.estimate(cell, metric, test)
    return None if estimate is None else estimate.mean


def _plain(value, digits):
    return MISSING if value is None else f"{value:.{digits}f}"


def _error(record, test):
    return 100 - results.accuracy(record, test)
