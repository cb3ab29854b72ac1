"""Updates of an optimizer that take a few nodes for each variable in place of dozens.

Keras traces the update of each variable in place, with a power and a square root of numbers that are
the same for all of them: Adam adds 39 nodes for each. In the training step of a quantized
EfficientNetB0, these were more than half of all nodes. Here, one function updates all variables. A
variable adds what reads it and its slots, a call of the function, and what assigns the results.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from dqmq_tf.layers.graph_functions import graph_function

# Their updates read and write a variable and its slots, and of all else read the same for each variable.
_OPTIMIZERS = (
    keras.optimizers.SGD,
    keras.optimizers.Adam,
    keras.optimizers.AdamW,
    keras.optimizers.RMSprop,
)
# What stands for the index of a variable. No list takes it, so no slot of another variable is used.
_INDEX = "variable"
# Lists with a variable for each trained one that an update does not use.
_OTHER_LISTS = (
    "_trainable_variables",
    "_variables",
    "_accumulated_gradients",
    "_model_variables_moving_average",
)


@contextlib.contextmanager
def shared_updates(optimizer: Any) -> Iterator[None]:
    """Makes an optimizer of Keras update all variables by one function, within a context.

    What the optimizer computes does not change. Optimizers for which this is not known to hold or that
    have no variables yet, eager steps and steps within a distribution strategy stay as they are.

    Args:
        optimizer: A `keras.optimizers.Optimizer`.
    """
    is_known = type(optimizer) in _OPTIMIZERS and optimizer.built
    if not is_known or tf.executing_eagerly() or tf.distribute.has_strategy():
        yield
        return
    # Keras would look for variables in an attribute that is set in the usual way.
    vars(optimizer)["_backend_update_step"] = _update_step(optimizer)
    try:
        yield
    finally:
        del vars(optimizer)["_backend_update_step"]


class _Slot:
    """A tensor to which an optimizer assigns as to a variable."""

    def __init__(self, tensor: tf.Tensor) -> None:
        self.tensor, self.dtype, self.shape = tensor, tensor.dtype, tensor.shape

    def assign(self, value: tf.Tensor) -> None:
        self.tensor = value

    def assign_add(self, value: tf.Tensor) -> None:
        self.tensor += value

    def assign_sub(self, value: tf.Tensor) -> None:
        self.tensor -= value

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> tf.Tensor:
        return self.tensor


def _update_step(optimizer: Any) -> Callable[[Any, Any, Any], None]:
    """Returns a function that updates variables as an optimizer does outside of a strategy."""
    count = len(optimizer._trainable_variables)
    slots = {
        name: value
        for name, value in vars(optimizer).items()
        if name not in _OTHER_LISTS and _are_variables(value) and len(value) == count
    }
    functions: dict[tuple[Any, ...], Callable[..., Any] | None] = {}

    def updated(rate: tf.Tensor, gradient: tf.Tensor, *values: tf.Tensor) -> list[tf.Tensor]:
        variable, *others = map(_Slot, values)
        stand_in = object.__new__(type(optimizer))
        vars(stand_in).update(vars(optimizer), _get_variable_index=lambda variable: _INDEX)
        vars(stand_in).update({name: {_INDEX: slot} for name, slot in zip(slots, others)})
        stand_in.update_step(gradient, variable, rate)
        return [slot.tensor for slot in (variable, *others)]

    def function(signature: tuple[Any, ...]) -> Callable[..., Any] | None:
        if signature not in functions:
            rank, rate, *dtypes = signature
            specs = [tf.TensorSpec([None] * rank, dtype) for dtype in dtypes]
            specs.insert(0, tf.TensorSpec([], rate))
            traced: Any = graph_function(updated, specs, compiled=False)
            try:
                traced.get_concrete_function()
                functions[signature] = traced
            except (TypeError, KeyError):  # It has slots that are not among `slots`.
                functions[signature] = None
        return functions[signature]

    def update_step(gradients: Any, variables: Any, learning_rate: Any) -> None:
        rate = ops.convert_to_tensor(learning_rate)
        for gradient, variable in zip(gradients, variables):
            index = optimizer._get_variable_index(variable)
            targets = [variable.value, *(values[index].value for values in slots.values())]
            dtypes = (rate.dtype, gradient.dtype, *(target.dtype for target in targets))
            # The rows of an embedding have gradients of their own kind.
            is_dense = not isinstance(gradient, tf.IndexedSlices)
            update = function((len(variable.shape), *dtypes)) if is_dense else None
            if update is None:
                optimizer.update_step(gradient, variable.value, learning_rate)
                continue
            results = update(rate, gradient, *map(tf.convert_to_tensor, targets))
            for target, result in zip(targets, results):
                target.assign(result, read_value=False)

    return update_step


def _are_variables(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, keras.Variable) for x in value)
