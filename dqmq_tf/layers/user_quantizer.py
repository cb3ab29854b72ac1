"""Runs quantizers of the user's own, which follow TFMOT's protocol, in a model of Keras 3."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.precision import KEEPS_PRECISION

# The name under which a quantizer creates its variables, and the quantizer: an object with
# `build(tensor_shape, name, layer)` and `__call__(inputs, training, weights)`.
NamedQuantizer = tuple[str, Any]


@keras.saving.register_keras_serializable(package="dqmq_tf")
class UserQuantizer(keras.layers.Layer):
    """Applies TFMOT quantizers to a tensor, one after the other.

    The quantizers get what TFMOT gives them: `build` creates variables by the `add_weight` of
    Keras 2, and the call gets these as `tf.Variable` objects, which it may assign. This layer owns
    the variables, so they are trained and saved with the model.

    Args:
        quantizers: The names and quantizers. They are not part of the config: a saved model creates
            this layer from its `LayerRule` again.
        shape: The shape of the tensor, None if `build` gets none. None stands for the batch.
    """

    def __init__(
        self,
        quantizers: Sequence[NamedQuantizer],
        shape: Sequence[int | None] | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{**kwargs, **KEEPS_PRECISION})
        self.supports_masking = True
        creator: Any = _VariableCreator(self)
        tensor_shape = None if shape is None else tf.TensorShape(shape)
        built = [
            (quantizer, quantizer.build(tensor_shape, name, creator))
            for name, quantizer in quantizers
        ]
        # In a function, as Keras would wrap a list and its dictionaries.
        self._get_quantizers: Callable[[], list[tuple[Any, Any]]] = lambda: built
        flag = self.add_weight(
            name="has_trained", shape=(), initializer="zeros", dtype="float32", trainable=False
        )
        # The quantizers assign TensorFlow's variables, which a `keras.StatelessScope` does not hold
        # back. So this layer reads and assigns the same.
        own = [flag.value, *(v.value for v in self.variables if v is not flag)]
        self._get_own: Callable[[], list[tf.Variable]] = lambda: own
        self.built = True

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: the quantizers create their variables when they get their layer."""

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if training:
            self._get_own()[0].assign(1.0)
        values = tf.cast(x, "float32")
        for quantizer, variables in self._get_quantizers():
            values = quantizer(values, bool(training), weights=variables)
        return tf.cast(tf.convert_to_tensor(values), x.dtype)

    def compute_output_spec(self, x: Any, training: bool | None = None) -> keras.KerasTensor:
        return keras.KerasTensor(x.shape, dtype=x.dtype)

    def result(self, x: np.ndarray) -> np.ndarray:
        """Returns what becomes of a tensor at inference.

        Before any training, the variables do not fit the tensor yet. Then it is what becomes of it
        in the next training step, and no variable changes.
        """
        if self.has_trained:
            return ops.convert_to_numpy(self(tf.constant(x), training=False))
        with self.restored():
            return ops.convert_to_numpy(self(tf.constant(x), training=True))

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """Gives the variables their values back when the context ends."""
        # Copies: a quantizer may add to a variable in place, in the memory that NumPy reads.
        values = [np.array(variable.numpy()) for variable in self._get_own()]
        try:
            yield
        finally:
            for variable, value in zip(self._get_own(), values):
                variable.assign(value)

    @property
    def has_trained(self) -> bool:
        """Whether the quantizers have seen a tensor in training."""
        return bool(self._get_own()[0].numpy())

    @property
    def description(self) -> str:
        """The names of the quantizers' classes."""
        return " and ".join(type(quantizer).__name__ for quantizer, _ in self._get_quantizers())

    def get_config(self) -> dict[str, Any]:
        raise NotImplementedError(
            f"{self.name!r} runs {self.description}, which is saved with the DQMQModel. Save the "
            "whole model."
        )


class _VariableCreator:
    """What a quantizer gets as its layer: `add_weight` takes the arguments of Keras 2.

    Args:
        owner: The layer that owns the variables.
    """

    def __init__(self, owner: UserQuantizer) -> None:
        self._owner = owner

    def add_weight(
        self,
        name: Any = None,
        shape: Any = None,
        dtype: Any = None,
        initializer: Any = None,
        regularizer: Any = None,
        trainable: bool | None = None,
        constraint: Any = None,
        **_: Any,
    ) -> Any:
        """Returns a new variable of the owner, as a `tf.Variable`."""
        if name is not None and not isinstance(name, str):
            # The first argument of Keras 3.
            name, shape = None, name
        if shape is None:
            shape = ()
        shape = (int(shape),) if isinstance(shape, (int, np.integer)) else tuple(shape)
        variable = self._owner.add_weight(
            shape=shape,
            initializer="zeros" if initializer is None else initializer,
            dtype="float32" if dtype is None else tf.as_dtype(dtype).name,
            trainable=True if trainable is None else trainable,
            regularizer=regularizer,
            constraint=constraint,
            # Keras shows a slash in a name as a folder of the saved file.
            name=None if name is None else name.replace("/", "_"),
        )
        return variable.value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._owner, name)
