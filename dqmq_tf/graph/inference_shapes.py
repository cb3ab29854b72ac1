"""The shapes of tensors at inference, where a layer returns another shape than it declares.

`keras.layers.RandomCrop` declares the shape of the crop, but crops in training alone. A model with it
can be trained and called in Keras, and the layers behind it get the whole image at inference.
"""

from typing import Any

import keras

from dqmq_tf.errors import UnsupportedLayerError
from dqmq_tf.graph.aliases import may_change_nothing


class InferenceShapes:
    """Infers what the calls of a model return, in execution order."""

    def __init__(self) -> None:
        # The path of the first layer whose declared shapes are not those of its outputs, and how.
        self._untrue: tuple[str, str] | None = None

    def results(
        self, operation: Any, path: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> list[Any]:
        """Returns the KerasTensors that a call returns.

        Args:
            operation: The layer, nested model or function.
            path: Its path.
            args, kwargs: The arguments of the call.

        Raises:
            UnsupportedLayerError: If a layer before this one returns another shape at inference than
                it declares, and this one cannot be called on that shape.
        """
        if self._untrue is not None:
            # Unlike the functions that compute shapes, a call checks those of its inputs.
            try:
                return _called(operation, args, kwargs)
            except Exception as error:
                untrue_path, found = self._untrue
                # Keras puts advice on how to write a layer in front.
                said = str(error).rpartition("Error encountered:")[2].strip()
                raise UnsupportedLayerError(
                    untrue_path,
                    found,
                    f"Layer {path!r} cannot be called on that shape. Let compute_output_shape return "
                    "what call does. In place of RandomCrop, take keras.layers.CenterCrop, which "
                    "crops at inference as well, or crop the images of training in tf.data. Keras "
                    f"says: {said[:500]}",
                ) from error
        declared = _declared(operation, args, kwargs)
        leaves = keras.tree.flatten((args, kwargs))
        shapes = {leaf.shape for leaf in leaves if isinstance(leaf, keras.KerasTensor)}
        if not may_change_nothing(operation) or all(d.shape in shapes for d in declared):
            return declared
        try:
            actual = _called(operation, args, kwargs)
        except Exception:  # A layer of the user's own may need what it gets in a model alone.
            return declared
        if len(actual) != len(declared):
            return declared
        for before, after in zip(declared, actual):
            if not _agree(before.shape, after.shape):
                kind = type(operation).__name__
                found = f"{kind}: declares shape {before.shape}, returns {after.shape} at inference"
                self._untrue = (path, found)
                return [keras.KerasTensor(a.shape, dtype=d.dtype) for d, a in zip(declared, actual)]
        return declared


class _AtInference(keras.Operation):
    """Calls a layer as a model does at inference."""

    def __init__(self, operation: Any) -> None:
        super().__init__(name=operation.name)
        self._operation = operation

    def call(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self._operation, keras.layers.Layer):
            kwargs = {**kwargs, "training": False}
        return self._operation(*args, **kwargs)


def _called(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Returns the KerasTensors that a call returns at inference."""
    if isinstance(operation, keras.Sequential) and operation.inputs:
        # What copies of it are: models that check the shapes of their inputs.
        operation = keras.Model(operation.inputs, operation.outputs, name=operation.name)
    results = _AtInference(operation).compute_output_spec(*args, **kwargs)
    return list(keras.tree.flatten(results))


def _declared(operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """Returns the KerasTensors that a call returns according to its layer."""
    results = list(keras.tree.flatten(operation.compute_output_spec(*args, **kwargs)))
    if not isinstance(operation, keras.layers.EinsumDense):
        return results
    # An `output_shape` with None leaves out a size that is known from the input.
    (result,), kernel = results, keras.KerasTensor(operation.kernel.shape)
    exact = keras.ops.einsum(operation.equation, *keras.tree.flatten((args, kwargs))[:1], kernel)
    return [keras.KerasTensor(exact.shape, dtype=result.dtype)]


def _agree(shape: tuple[int | None, ...], other: tuple[int | None, ...]) -> bool:
    """Returns whether two shapes can be those of one tensor."""
    return len(shape) == len(other) and all(
        n == m for n, m in zip(shape, other) if None not in (n, m)
    )
