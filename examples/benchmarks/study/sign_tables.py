"""The table of methods on traffic signs, with their leads over static bits."""

from study import results
from study.markdown_table import MISSING, Table, figure, seeds

PARTS = ("all", "worst_fifth", "darkest_fifth", "smallest_fifth", "least_sharp_fifth")
# The scores of a record: as it is, and if the quality is taken from another image.
_KEYS = {"scores": "", "shuffled": ", shuffled in the test"}
_STATIC = "static"


def leads(records, title):
    """Returns a `Table` of accuracies in %, and of leads over static bits, paired by seed.

    Args:
        records: Dictionaries with `method`, `seed`, `scores` and, if the method has them, `shuffled`.
        title: Title of the table.
    """
    values = {}
    for record in records:
        for key, words in _KEYS.items():
            for part in PARTS if key in record else ():
                of_part = values.setdefault(record["method"] + words, {}).setdefault(part, {})
                of_part[record["seed"]] = 100 * record[key][part]
    static = values.get(_STATIC, {})
    rows = []
    for name, parts in values.items():
        means = [results.Estimate.of(parts[part].values()) for part in PARTS]
        ahead = [MISSING] * len(PARTS)
        if static and name != _STATIC:
            differences = [results.difference(parts[part], static[part]) for part in PARTS]
            ahead = [figure(difference, signed=True) for difference in differences]
        rows.append((name, seeds(means[0]), *map(figure, means), *ahead))
    columns = ("method", "seeds", *PARTS, *(f"lead, {part}" for part in PARTS))
    return Table(title, columns, tuple(rows), 2)
