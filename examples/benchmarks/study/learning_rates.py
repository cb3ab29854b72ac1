"""The learning rates that the trials chose.

This module does not import TensorFlow, so that the results can be shown quickly.
"""

import statistics


class Rates:
    """For each method, the learning rate with the best mean accuracy over seeds on the tuning images.

    Args:
        records: Dictionaries that `runs.Bench.execute` returned. Only records of trials are used.
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
        """Returns the learning rate for a run, or None if its method had no trials.

        Args:
            run: A `runs.Run` or `results.Cell`. A budget without trials gets the rate of the nearest
                budget that has some. An ablation without trials gets the rate of the full method.
        """
        tuned = run.network, run.method, run.kind
        at = self._chosen.get((*tuned, run.ablation)) or self._chosen.get((*tuned, None))
        return at and at[min(sorted(at), key=lambda budget: abs(budget - run.budget))]


def _best(tried):
    """Returns the rate of `{rate: accuracies}` with the best mean; of equally good ones, the largest."""
    return max((statistics.fmean(accuracies), rate) for rate, accuracies in tried.items())[1]
