"""The callbacks that `DQMQModel.fit` adds to those of the user."""

from typing import Any

import keras

from dqmq_tf.training.batch_statistics import BatchStatistics
from dqmq_tf.training.bit_logs import BitLogs
from dqmq_tf.training.range_schedule import RangeSchedule
from dqmq_tf.training.search_schedule import SearchSchedule


def with_own_callbacks(
    model: keras.Model, callbacks: Any, epochs: int, steps_per_epoch: int | None
) -> Any:
    """Returns the callbacks of a call of `fit`, in the order in which they run.

    The figures of the bits come first, so that the callbacks of the user find them in the logs, and
    so does the plan of the search, so that they can save it. The schedules and the batch statistics
    come last, because a callback of the user may restore weights.

    Args:
        model: A `DQMQModel`.
        callbacks: The callbacks of the user: a callback, a list of them, a
            `keras.callbacks.CallbackList`, or None. None of them is changed.
        epochs: The number of epochs.
        steps_per_epoch: The number of steps per epoch, or None if it depends on the data.
    """
    parts = model._parts
    schedule = SearchSchedule(parts.config.settle, epochs, steps_per_epoch)
    before = [BitLogs(), keras.callbacks.LambdaCallback(on_epoch_end=schedule.plan)]
    after = [
        RangeSchedule(),
        schedule,
        BatchStatistics(parts.norms, epochs, steps_per_epoch),
    ]
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*before, *keras.tree.flatten(callbacks or []), *after]
    # The list of the user is a callback itself. Others that were put into it would stay there.
    params = callbacks.params or {}
    return keras.callbacks.CallbackList([*before, callbacks, *after], model=model, **params)
