"""Which learning rate the trials chose.

Nothing here needs TensorFlow, so that a look at the results is quick.
"""


class Rates:
    """The learning rates with the best accuracy on the images on which methods are tuned.

    Args:
        records: Dictionaries as `runs.Bench.execute` returns them; those that are no trials are
            passed over.
    """

    def __init__(self, records):
        best = {}
        for record in records:
            run = record["run"]
            if run["tuning"]:
                entry = record["scores"]["validation"]["accuracy"], run["learning_rate"]
                tuned = run["network"], run["method"], run["kind"], run["ablation"]
                at = best.setdefault(tuned, {})
                at[run["budget"]] = max(at.get(run["budget"], entry), entry)
        self._chosen = {
            tuned: {budget: rate for budget, (_, rate) in at.items()} for tuned, at in best.items()
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
