"""TensorFlow functions that stay single nodes in the graphs that call them.

A function takes one node forward and one or two backward, however many operations it contains. A
network quantizes hundreds of tensors. Traced in place, each took up to 250 nodes: the training step
of DenseNet121 had 104,000 nodes, and tracing and first execution took 70 s.
"""

import collections
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from dqmq_tf.layers import custom_gradients

# Values per sample from which XLA saves more time than its compilation costs (half a second for
# each shape).
_WORTH_COMPILING = 4096


def one_node(
    function: Callable[..., tf.Tensor], signature: Sequence[tf.TensorSpec], compiled: bool = False
) -> Callable[..., tf.Tensor]:
    """Returns a function that is traced once and is one node in the graphs that call it.

    The gradient keeps only the arguments from the forward pass and runs the function again.

    Args:
        function: A function of tensors whose result has the shape and type of the first argument.
        signature: The `tf.TensorSpec` of each argument. It must contain everything about shapes
            that the function needs to know. Let the function close over constants, because
            TensorFlow specializes it for each call with a constant argument.
        compiled: Whether XLA compiles the function, once for each shape.
    """

    def gradient_of_function(upstream: tf.Tensor, *args: tf.Tensor) -> list[tf.Tensor | None]:
        with tf.GradientTape() as tape:
            tape.watch(args)
            result = function(*args)
        return tape.gradient(result, args, upstream)

    forward = graph_function(function, signature, compiled)
    backward = graph_function(gradient_of_function, [signature[0], *signature], compiled)

    @tf.custom_gradient
    def apply(
        *args: tf.Tensor,
    ) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor | None]]]:
        def gradient(upstream: tf.Tensor) -> list[tf.Tensor | None]:
            gradients = backward(upstream, *args)
            return [y if y is None else _with_shape(y, x) for y, x in zip(gradients, args)]

        return _with_shape(forward(*args), args[0]), gradient

    return apply


def graph_function(
    function: Callable[..., Any], signature: Sequence[tf.TensorSpec], compiled: bool
) -> Callable[..., Any]:
    """Returns a `tf.function` that graphs call as one node.

    Args:
        function: Any function of tensors.
        signature: The `tf.TensorSpec` of each argument.
        compiled: Whether XLA compiles the function, once for each shape.
    """

    @functools.wraps(function)
    def traced(*args: tf.Tensor) -> Any:
        # Callers keep these functions in caches, and the model that is traced now may be dropped.
        with custom_gradients.shared():
            return function(*args)

    node = tf.function(
        traced,
        input_signature=signature,
        autograph=False,
        jit_compile=compiled or None,
        experimental_attributes={"_noinline": True},
    )
    # Each is traced once. TensorFlow counts all that share their code as one function, and would
    # warn users of its repeated tracing.
    node._omit_frequent_tracing_warning = True
    return node


def worth_compiling(x: tf.Tensor) -> bool:
    """Returns whether XLA should compile an element-wise function of a tensor `[batch, ...]`."""
    return math.prod(n or 1 for n in x.shape[1:]) >= _WORTH_COMPILING


def shapes_worth_compiling(
    shapes: Iterable[tuple[int | None, ...]],
    least_share: float,
    least_values: int = _WORTH_COMPILING,
) -> set[tuple[int | None, ...]]:
    """Returns the shapes for which compiled loops save more time in training than they cost before it.

    Args:
        shapes: The shape, without the batch, of each activation of a network that may be compiled.
        least_share: The least share that a shape must hold of the values of all these activations.
        least_values: The fewest values of a sample for which compilation pays.

    Example:

    >>> shapes_worth_compiling([(32, 32, 16), (32, 32, 16), (2, 2, 64)], least_share=0.03)
    {(32, 32, 16)}
    """
    counts = collections.Counter(shapes)
    sizes = {shape: math.prod(n or 1 for n in shape) for shape in counts}
    least = least_share * sum(counts[shape] * size for shape, size in sizes.items())
    return {s for s, size in sizes.items() if size >= least_values and counts[s] * size >= least}


def _with_shape(y: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    y.set_shape(like.shape)
    return y
