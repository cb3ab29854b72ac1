"""Images of mixed quality: degradations of chosen severity, mixing, measures, and example datasets."""

from dqmq_tf.quality.datasets import digits, load
from dqmq_tf.quality.degradations import KINDS, SEVERITIES, degrade
from dqmq_tf.quality.measures import measure
from dqmq_tf.quality.mixing import mixed_quality

__all__ = ["KINDS", "SEVERITIES", "degrade", "digits", "load", "measure", "mixed_quality"]
