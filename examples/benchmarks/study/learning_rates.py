"""Which learning rate the trials chose.

Nothing here needs TensorFlow, so that a look at the results is quick.
"""

import statistics


class Rates:
    """The learning rates with the best mean accuracy, over seeds, on the images for tuning.

    Args:
        records: Dictionaries as `runs.Bench.execute` returns them; those that are no trials are
            passed over.
    """

    def __init__(self, records):
        found = {}
        for record in records:
            run = record["run"]
            if run["tuning"]:
                tuned = run["network"], run["method"], run["kind"], run["ablation"]
                tried = found.setdefault(tuned, {}).setdefault(run["budget"], {})
                accuracies = tried.setdefault(run["learning_rate"], [])
                accuracies.append(record["scores"]["validation"]["accuracy"])
        self._chosen = {
            tuned: {budget: _best(tried) for budget, tried in at.items()}
            for tuned, at in found.items()
        }

    def of(self, run):
        """Returns the rate of a run, or None if its method was not tried.

        Args:
            run: A `runs.Run` or `results.Cell`. A budget without trials takes the rate of the
                nearest that has some, an ablation without trials that of the whole method.
        """
        tuned = run.network, run.method, run.kind
        at = self._chosen.get((*tuned, run.ablation)) or self._chosen.get((*tuned, None))
        return at and at[min(sorted(at), key=lambda budget: abs(budget - run.budget))]


def _best(tried):
    """The rate of `{rate: accuracies}` with the best mean, of equal ones the larger."""
    return max((statistics.fmean(accuracies), rate) for rate, accuracies in tried.items())[1]
