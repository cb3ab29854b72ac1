"""What `fit` and `evaluate` of Keras lack under `tf.distribute.MultiWorkerMirroredStrategy`.

Keras 3.15 stops there in two places. Before the first step it averages a batch over the workers to
build the model, which fails for a batch of inputs and labels. After each step it averages the logs
over the workers along their first axis, which scalars do not have.

Each worker settles the bits by itself, and must find the same ones. Therefore all that the bits
depend on has to be the same on each worker.
"""

from typing import Any

import keras
import tensorflow as tf
from keras import ops


class SeveralWorkers(keras.Model):
    """The methods of a `keras.Model` that several worker processes need to train it together."""

    @property
    def _spans_workers(self) -> bool:
        """Whether the strategy in whose scope the model was created has several workers."""
        return spans_workers(self.distribute_strategy)

    def _maybe_symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        # A quantized model and its optimizers are built before `fit`. Keras builds the metrics in
        # the first step. There is no public method to override.
        if not self._spans_workers:
            super()._maybe_symbolic_build(*args, **kwargs)


def spans_workers(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether a strategy trains in several worker processes."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    cluster = strategy.cluster_resolver.cluster_spec()
    return sum(cluster.num_tasks(job) for job in cluster.jobs) > 1


def reducible(logs: dict[str, Any]) -> dict[str, Any]:
    """Returns the logs of a step in the shape in which Keras averages them over the workers.

    Args:
        logs: `{name: scalar}`.
    """
    if not spans_workers(tf.distribute.get_strategy()):
        return logs
    return {name: ops.reshape(value, (1,)) for name, value in logs.items()}


def agree(model: keras.Model) -> None:
    """Averages over the workers what each of them measures on its own share of the data.

    These are variables such as the moving statistics of a batch normalization, which training does
    not aggregate. All others are the same on each worker. Without several workers, nothing changes.

    Args:
        model: A model that was created in the scope of its strategy.
    """
    strategy = model.distribute_strategy
    if not spans_workers(strategy):
        return
    measured = [
        v
        for v in model.variables
        if not v.trainable and v.aggregation == "none" and keras.backend.is_float_dtype(v.dtype)
    ]

    def average() -> list[tf.Tensor]:
        context = tf.distribute.get_replica_context()
        values = [tf.convert_to_tensor(v.value) for v in measured]
        return context.all_reduce(tf.distribute.ReduceOp.MEAN, values)

    averages = strategy.run(average) if measured else []
    with strategy.scope():
        for variable, value in zip(measured, averages):
            variable.assign(strategy.experimental_local_results(value)[0])
