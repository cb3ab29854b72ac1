"""The tensor form of a decision, and how a quantizer reads its column.

A decision tensor is `[samples or groups, decision points, fields]`. With one field it holds the
executed bit-width; with five, as while the policy searches, also what the pathwise gradient
needs: the two candidates around the mean, the slope and the mean itself.
"""

from keras import ops

EXECUTED, LOW, HIGH, SLOPE, MEAN = range(5)
FIELDS = 5


def column(decision, index):
    """Returns the fields of one decision point, each of shape `[samples or groups]`."""
    return [decision[:, index, field] for field in range(decision.shape[-1])]


def select(table, bit_widths, chosen):
    """Looks up the rows of a table, one per candidate, for chosen bit-widths.

    Args:
        table: `[K, ...]`.
        bit_widths: The K candidates.
        chosen: Bit-widths, scalar or `[B]`.

    Returns:
        `[...]` or `[B, ...]`; a bit-width that is no candidate gives zeros.
    """
    hit = ops.equal(ops.expand_dims(chosen, -1), ops.convert_to_tensor(bit_widths, chosen.dtype))
    return ops.tensordot(ops.cast(hit, table.dtype), table, axes=1)
