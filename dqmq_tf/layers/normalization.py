"""Batch normalization together with what follows it, in loops that XLA compiles.

A batch normalization that is followed by a ReLU and a quantizer, or by a quantizer, an activation and
its quantizer, takes one pass over the activation for the output, and the gradient keeps only the
input: everything else is computed from it again. What only the next function reads is never computed
by itself: TensorFlow leaves out operations whose results nobody uses.
"""

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from dqmq_tf.layers.graph_functions import graph_function
from dqmq_tf.layers.slices import in_slices_of_positions, restored, sum_over

# The attribute of an output that holds its `Normalization`, as Keras attaches masks to tensors.
_ATTRIBUTE = "_dqmq_normalization"
# The axes of `[batch, slices, n, channels]` that hold the positions of a sample.
_POSITIONS = (1, 2)


class Normalization:
    """The batch normalization of a tensor, with a scale and a shift for each sample or for all.

    It computes `scale * (gamma * (x - mean) / sqrt(variance + epsilon) + beta) + shift`.

    Args:
        x: A float32 tensor `[batch, height, width, channels]`.
        gamma, beta: The scale and shift of the batch normalization, `[channels]`.
        epsilon: What is added to the variance.
        factors: A scale and a shift, each `[batch, channels]`. None for 1 and 0.
        compiled: Whether XLA compiles the loops.

    Attributes:
        mean, variance: The statistics of the batch, `[channels]`.
    """

    def __init__(
        self,
        x: tf.Tensor,
        gamma: tf.Tensor,
        beta: tf.Tensor,
        epsilon: float,
        factors: tuple[tf.Tensor, tf.Tensor] | None = None,
        compiled: bool = True,
    ) -> None:
        self._x, self._compiled, self._epsilon = x, compiled, float(epsilon)
        self._slices = in_slices_of_positions(x)
        count, channels = self._slices.shape[1], x.shape[-1]
        statistics = _statistics(count, channels, compiled)(tf.stop_gradient(self._slices))
        self.mean, self.variance = statistics
        if factors is None:
            factors = tf.ones((1, channels)), tf.zeros((1, channels))
        self._parameters = [gamma, beta, *factors]
        self._chain = _Chain()
        self._args: tuple[tf.Tensor, ...] = ()

    def then(
        self,
        function: Callable[..., tf.Tensor],
        signature: Sequence[tf.TensorSpec] = (),
        *args: tf.Tensor,
    ) -> "Normalization":
        """Returns this normalization followed by an element-wise function.

        Args:
            function: A function of a tensor `[batch, slices, n, channels]` and of `args`. The same
                object for each call with the same signature.
            signature: The `tf.TensorSpec` of each of `args`.
            *args: The other arguments.
        """
        extended = copy.copy(self)
        extended._chain = _Chain((*self._chain.steps, (function, tuple(signature))))
        extended._args = (*self._args, *args)
        return extended

    def output(self) -> tf.Tensor:
        """Returns the result in the shape of the input. `normalization_of` finds this object by it."""
        count, channels = self._slices.shape[1], self._x.shape[-1]
        run = _normalized(self._chain, count, channels, self._epsilon, self._compiled)
        y = run(self._slices, self.mean, self.variance, *self._parameters, *self._args)
        y = restored(y, self._x)
        setattr(y, _ATTRIBUTE, self)
        return y


@dataclasses.dataclass(frozen=True)
class _Chain:
    """Element-wise functions, one after the other, each with the signature of its own arguments."""

    steps: tuple[tuple[Callable[..., tf.Tensor], tuple[tf.TensorSpec, ...]], ...] = ()

    @property
    def signature(self) -> tuple[tf.TensorSpec, ...]:
        """The signature of the arguments of all functions."""
        return tuple(spec for _, signature in self.steps for spec in signature)

    def __call__(self, y: tf.Tensor, *args: tf.Tensor) -> tf.Tensor:
        for function, signature in self.steps:
            y = function(y, *args[: len(signature)])
            args = args[len(signature) :]
        return y


def normalization_of(y: tf.Tensor) -> Normalization | None:
    """Returns the `Normalization` whose output a tensor is, None if there is none."""
    return getattr(y, _ATTRIBUTE, None)


@functools.cache
def _statistics(
    count: int | None, channels: int, compiled: bool
) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Returns a function of an activation in slices that returns its mean and variance."""

    def statistics(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        n = _count(x)
        mean = sum_over(sum_over(x, _POSITIONS), (0,)) / n
        variance = sum_over(sum_over(tf.square(x - mean), _POSITIONS), (0,)) / n
        return tf.reshape(mean, (-1,)), tf.reshape(variance, (-1,))

    signature = [tf.TensorSpec([None, count, None, channels])]
    return graph_function(statistics, signature, compiled)


@functools.cache
def _normalized(
    function: _Chain, count: int | None, channels: int, epsilon: float, compiled: bool
) -> Callable[..., tf.Tensor]:
    """Returns `function` of a normalized activation, with a gradient for all but the statistics.

    The gradient of the input contains what reaches it through the statistics. All sums over the batch
    that it needs follow from two sums over the positions of each sample, `sum(g)` and
    `sum(g * (x - mean))` for the gradient `g` of the normalized tensor. They are the gradients of
    `shift` and, with a factor, of `scale`. Multiplied by `scale` and summed over the batch, they are
    those of `beta` and `gamma`, which determine the gradient of the input (Ioffe and Szegedy 2015,
    arXiv 1502.03167, section 3).

    Args:
        function: What follows the normalization.
        count: The number of slices.
        channels: The number of channels.
        epsilon: What is added to the variance.
        compiled: Whether XLA compiles the function.

    Returns:
        A function `(x, mean, variance, gamma, beta, scale, shift, *args)`.
    """

    def normalize(
        x: tf.Tensor,
        mean: tf.Tensor,
        variance: tf.Tensor,
        gamma: tf.Tensor,
        beta: tf.Tensor,
        scale: tf.Tensor,
        shift: tf.Tensor,
    ) -> tf.Tensor:
        factor = scale * gamma * tf.math.rsqrt(variance + epsilon)
        return (x - mean) * _by_channel(factor) + _by_channel(scale * beta + shift)

    def forward(*args: tf.Tensor) -> tf.Tensor:
        return function(normalize(*args[:7]), *args[7:])

    def backward(upstream: tf.Tensor, *args: tf.Tensor) -> list[tf.Tensor | None]:
        x, mean, variance, gamma, beta, scale, shift, *others = args
        y = normalize(*args[:7])
        with tf.GradientTape() as tape:
            tape.watch([y, *others])
            result = function(y, *others)
        g, *to_others = tape.gradient(result, [y, *others], upstream)
        centered, inverse = x - mean, tf.math.rsqrt(variance + epsilon)
        sums, products = (
            tf.reshape(sum_over(v, _POSITIONS), (-1, channels)) for v in (g, g * centered)
        )
        products *= inverse
        to_gamma, to_beta = (tf.reduce_sum(scale * v, axis=0) for v in (products, sums))
        n, common = _count(x), gamma * inverse
        to_x = (
            g * _by_channel(scale * common)
            - centered * (common * inverse * to_gamma / n)
            - common * to_beta / n
        )
        to_scale = gamma * products + beta * sums
        return [to_x, None, None, to_gamma, to_beta, to_scale, sums, *to_others]

    activation, statistic = tf.TensorSpec([None, count, None, channels]), tf.TensorSpec([channels])
    factor = tf.TensorSpec([None, channels])
    arguments = [activation, *[statistic] * 4, factor, factor, *function.signature]
    run = graph_function(forward, arguments, compiled)
    run_backward = graph_function(backward, [activation, *arguments], compiled)

    @tf.custom_gradient
    def apply(*args: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], Any]]:
        return run(*args), lambda upstream: run_backward(upstream, *args)

    return apply


def _by_channel(values: tf.Tensor) -> tf.Tensor:
    """Reshapes `[1 or batch, channels]` to broadcast against an activation in slices."""
    return values[:, tf.newaxis, tf.newaxis, :]


def _count(x: tf.Tensor) -> tf.Tensor:
    """Returns the number of values of each channel."""
    return tf.cast(tf.size(x) // x.shape[-1], "float32")
