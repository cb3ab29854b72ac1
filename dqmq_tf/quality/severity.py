"""The table of a degradation, read at a severity from 1 to 5."""

import tensorflow as tf


def at_severity(table, severity):
    """Returns the row of a five-row ``table`` for a severity from 1 to 5."""
    return tf.gather(tf.constant(table, tf.float32), severity - 1)
