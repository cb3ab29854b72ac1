"""Reads the parameters of a degradation at a severity from 1 to 5."""

import numpy.typing as npt
import tensorflow as tf


def at_severity(table: npt.ArrayLike, severity: tf.Tensor) -> tf.Tensor:
    """Returns the row of a table with five rows for a severity from 1 to 5."""
    return tf.gather(tf.constant(table, tf.float32), severity - 1)
