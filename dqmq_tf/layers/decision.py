"""The tensor form of a decision, and how a quantizer reads its part of it.

A decision tensor is `[samples or groups, decision points, fields]`. With one field it holds the
executed bit-width; with five, as while the policy searches, also what the pathwise gradient
needs: the two candidates around the mean, the slope and the mean itself.
"""

from keras import ops

EXECUTED, LOW, HIGH, SLOPE, MEAN = range(5)
FIELDS = 5


def bit_widths_of(row):
    """Returns the bit-widths `[..., 1 or 3]` of a decision row: executed, and low and high."""
    return row[..., :SLOPE] if row.shape[-1] == FIELDS else row


def look_up(table, candidates, bit_widths):
    """Looks up the rows of a table, one per candidate, for chosen bit-widths.

    Args:
        table: `[K, n]`.
        candidates: The K bit-widths.
        bit_widths: Chosen ones, `[...]`.

    Returns:
        `[..., n]`; a bit-width that is no candidate gives zeros.
    """
    # One lookup for all fields: every operation here is traced once per layer.
    hit = ops.equal(
        ops.expand_dims(bit_widths, -1), ops.convert_to_tensor(candidates, bit_widths.dtype)
    )
    return ops.matmul(ops.cast(hit, table.dtype), table)
