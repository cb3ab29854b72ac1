"""Computes what a decision costs: bit operations, bytes of the file, or bytes under deflate.

The cost is a known function of the decision, so its expectation under the policy is computed, not
sampled. Two forms cover all kinds. Bit operations are bilinear in weight bits and activation bits.
Bytes are the sum over a table with one entry per weight decision point and candidate, plus a
constant. Where TFLite Micro can decode weights there are two such tables, one of them for files that
use the decoder. A file uses it if the firmware is then smaller, and `size_bytes` includes it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.budget.byte_tables import Bits, ByteTables, Integers, Table
from dqmq_tf.budget.compressed_kernels import bytes_together
from dqmq_tf.config import VELA_KINDS
from dqmq_tf.graph.decision_points import ActivationPoint, WeightPoint
from dqmq_tf.precision import INT8_BITS, INT16_BITS
from dqmq_tf.targets import Target

# The bytes of a TFLite file that are not weights, until `CostModel.learn_file` measures them: of the
# file itself, of each tensor's entry, and of each channel's scale and bias. They are fitted to files
# that the converter wrote, with an error of at most 9 %.
_FILE_BYTES = {"size_bytes": 1120, "download_bytes": 410}
_TENSOR_BYTES = {"size_bytes": 136, "download_bytes": 79}
_CHANNEL_BYTES = {"size_bytes": 14.1, "download_bytes": 9.4}


class CostModel:
    """Computes the cost of decisions in the unit of a budget.

    Args:
        kind: The kind of the budget, one of `dqmq_tf.config.BUDGET_KINDS`.
        target: The `Target`, which determines how a file stores weights.
        activations: The activation decision points.
        weights: The weight decision points.
        float_weights: The number of kernel weights that stay in floating point.

    Attributes:
        macs: The multiply-accumulates per input of each weight point, shape `[Pw]`.
        sizes: The number of weights of each weight point, shape `[Pw]`.
        decided: The indices of the activation points whose bits the policy chooses, in the order of
            its columns.
        overhead: The bit operations per input of the layers that choose the bits, 0 if bits do not
            depend on the input.
        bytes: The `ByteTables` with the bytes of each weight point.
        file_constant: The bytes of the file that are not weights, None until `learn_file`.
        activation_cycles: How many more cycles operators take with activations of 16 bits, see
            `dqmq_tf.budget.npu_table.activation_table`. None if activation bits do not change the
            cost of a file.

    Example:

    >>> costs = CostModel("bit_ops", target, activations, weights)
    >>> costs.exact(weight_bits=[4, 4, 8], activation_bits=[8, 4])
    """

    def __init__(
        self,
        kind: str,
        target: Target,
        activations: Sequence[ActivationPoint],
        weights: Sequence[WeightPoint],
        float_weights: int = 0,
    ) -> None:
        self.kind, self.target, self.float_weights = kind, target, float_weights
        self.activations, self.weights = activations, weights
        self.decided = [i for i, point in enumerate(activations) if point.decided]
        columns = {point: column for column, point in enumerate(self.decided)}
        self.macs = np.array([point.macs for point in weights], "float64")
        self.sizes = np.array([np.prod(point.shape) for point in weights], "float64")
        # The column of the policy with the bits of each layer's input, -1 if these are not decided.
        self.input_column = np.array(
            [-1 if point.input is None else columns.get(point.input, -1) for point in weights]
        )
        self.input_bits = np.array(
            [
                32.0 if point.input is None else activations[point.input].bit_widths[-1]
                for point in weights
            ],
            "float64",
        )
        self.bytes = ByteTables(kind, target, weights)
        self.file_constant: float | None = None
        self.activation_cycles: np.ndarray | None = None
        self.overhead = 0.0

    @property
    def in_bytes(self) -> bool:
        """Whether the budget is on a file, and not in operations.

        It is in bytes, or in cycles that Vela estimates. Both are a sum over weights and a constant.
        """
        return self.kind in ("size_bytes", "download_bytes") or self.on_npu

    @property
    def on_npu(self) -> bool:
        """Whether Vela measures the budget."""
        return self.kind in VELA_KINDS

    @property
    def counts_activations(self) -> bool:
        """Whether the cost depends on the activation bits that the policy decides."""
        return not self.in_bytes or self.kind == "vela_cycles" and bool(self.decided)

    @property
    def adds_up(self) -> bool:
        """Whether the weights of a file take the sum of the bytes that each takes alone."""
        return self.kind != "download_bytes"

    @property
    def table(self) -> Table | None:
        """The bytes of each weight point in a file that uses no decoder, `{bits: bytes}`.

        None until `measure`, and for budgets in operations.
        """
        return self.bytes.tables[0] if self.bytes.tables else None

    @table.setter
    def table(self, table: Table) -> None:
        self.bytes.replace(table)

    @property
    def measured_table(self) -> Table:
        """The table, which has to have been measured."""
        assert self.table is not None, f"No table of bytes for {self.kind}: call `measure` first."
        return self.table

    def measure(self, integers: Integers) -> None:
        """Fills the tables of bytes from the current weights, if the budget is in bytes.

        Vela measures its budgets itself, see `dqmq_tf.budget.npu_table`.

        Args:
            integers: A function `integers(point_index, bit_width)` that returns the integer array of
                a weight point.
        """
        if self.in_bytes and not self.on_npu:
            self.bytes.measure(integers)

    def constant(self) -> float:
        """Returns the bytes of a file that do not depend on the decision, 0 for bit operations."""
        if not self.in_bytes:
            return 0.0
        if self.file_constant is not None:
            return self.file_constant
        if self.on_npu:
            return 0.0
        channels = sum(
            int(np.prod([point.shape[a] for a in point.channel_axes])) for point in self.weights
        )
        tensors = 2 * len(self.weights) + len(self.activations)
        entries = _TENSOR_BYTES[self.kind] * tensors + _CHANNEL_BYTES[self.kind] * channels
        return float(_FILE_BYTES[self.kind] + entries + 4 * self.float_weights)

    def learn_file(self, measured: float, weight_bits: Bits, activation_bits: Bits) -> None:
        """Sets the bytes that are neither weights nor the decoder from a file that was written.

        Args:
            measured: The bytes of that file, in the unit of the budget, with the decoder.
            weight_bits: The weight bits of the file, shape `[Pw]`.
            activation_bits: The activation bits of the file, shape `[decided]`.
        """
        estimate = self.of_file(weight_bits, activation_bits)
        self.file_constant = self.constant() + measured - estimate

    def of_file(self, weight_bits: Bits, activation_bits: Bits) -> float:
        """Returns the cost of one assignment. Under deflate, all weights are compressed together.

        The tensors of a file share a compressor, so their bytes are not the sum that `exact` takes
        from the table; see `dqmq_tf.budget.compressed_kernels`.

        Args:
            weight_bits: Weight bits, shape `[Pw]`.
            activation_bits: Activation bits, shape `[decided]`. An empty sequence stands for the
                fewest.
        """
        if self.adds_up:
            return self.exact(weight_bits, activation_bits)
        return bytes_together(self.bytes.compressed(weight_bits)) + self.constant()

    def exact(self, weight_bits: Bits, activation_bits: Bits) -> float:
        """Returns the cost of an assignment, or the mean cost of several.

        The bytes of bit-widths between two candidates are interpolated linearly.

        Args:
            weight_bits: Weight bits, shape `[Pw]`, or `[N, Pw]` for N samples or profiles.
            activation_bits: Activation bits, shape `[decided]` or `[N, decided]`.
        """
        weight_bits = np.atleast_2d(np.asarray(weight_bits, "float64"))
        if self.in_bytes:
            of_weights = np.mean([self.bytes.of_weights(row) for row in weight_bits])
            return float(of_weights) + self.of_activations(activation_bits) + self.constant()
        return float(self.to_budget_unit(self.bit_ops(weight_bits, activation_bits)))

    def of_activations(self, activation_bits: Bits) -> float:
        """Returns the part of a file's cost that its activation bits add to that of the fewest.

        Args:
            activation_bits: Activation bits, shape `[decided]`, or `[N, decided]` for a mean. An
                empty sequence stands for the fewest.
        """
        bits = np.atleast_2d(np.asarray(activation_bits, "float32"))
        if self.activation_cycles is None or not bits.size:
            return 0.0
        return float(np.mean(self.of_each_activation(bits)))

    def of_each_activation(self, activation_bits: np.ndarray) -> np.ndarray:
        """Returns what `of_activations` does for each of several files, shape `[N]`.

        Args:
            activation_bits: Activation bits, shape `[N, decided]`.
        """
        return ops.convert_to_numpy(self._added_cycles(activation_bits))

    def _added_cycles(self, activation_bits: Any) -> tf.Tensor:
        """Returns the cycles that activations of more than 8 bits add, shape `[N]`, differentiable.

        Bits between 8 and 16 stand for the probability of 16, and the activations of an operator
        count as independent.

        Args:
            activation_bits: Activation bits, shape `[N, decided]`.
        """
        assert self.activation_cycles is not None
        table = ops.convert_to_tensor(self.activation_cycles)
        added_bits = ops.convert_to_tensor(activation_bits, "float32") - INT8_BITS
        share = ops.clip(added_bits / (INT16_BITS - INT8_BITS), 0.0, 1.0)
        count = len(self.decided)
        share = ops.expand_dims(share, 1)
        is_any = 1.0 - ops.prod(1.0 - share * table[:, :count], axis=-1)
        is_none = ops.prod(1.0 - share * table[:, count:-1], axis=-1)
        return ops.sum(is_any * is_none * table[:, -1], axis=-1)

    def smallest(self) -> float:
        """Returns the cost when every decision point has its fewest bits."""
        return self.exact(
            [min(point.bit_widths) for point in self.weights], self.fewest_activation_bits()
        )

    def fewest_activation_bits(self) -> list[int]:
        """Returns the fewest bits of each activation point that is decided."""
        return [min(self.activations[i].bit_widths) for i in self.decided]

    def most_activation_bits(self) -> list[int]:
        """Returns the most bits of each activation point that is decided."""
        return [max(self.activations[i].bit_widths) for i in self.decided]

    def share_of(self, value: float, share: float) -> float:
        """Returns a share of a budget on a file, to leave room for what drifts in the training.

        Of a budget that Vela measures, it is the share of what lies above the smallest cost: most
        cycles do not depend on the weights, and cannot drift.

        Args:
            value: The budget.
            share: The share, 0 to 1.
        """
        if not self.on_npu:
            return share * value
        smallest = min(self.smallest(), value)
        return smallest + share * (value - smallest)

    def prices(self) -> np.ndarray:
        """Returns how much one more bit raises the operations, up to a common factor.

        Returns:
            A float array of shape `[P]`, activations first.
        """
        columns = range(len(self.decided))
        activation_macs = [self.macs[self.input_column == column].sum() for column in columns]
        return np.concatenate([activation_macs, self.macs])

    def bit_ops(self, weight_bits: Bits, activation_bits: Bits) -> float:
        """Returns the bit operations per input of an assignment, or the mean over several.

        Args:
            weight_bits: Weight bits, shape `[Pw]` or `[N, Pw]`.
            activation_bits: Activation bits, shape `[decided]` or `[N, decided]`.
        """
        return float(self.bit_ops_of_each(weight_bits, activation_bits).mean())

    def bit_ops_of_each(self, weight_bits: Bits, activation_bits: Bits) -> np.ndarray:
        """Returns the bit operations per input of each of several assignments.

        Args:
            weight_bits: Weight bits, shape `[Pw]` or `[N, Pw]`.
            activation_bits: Activation bits, shape `[decided]` or `[N, decided]`.

        Returns:
            A float array of shape `[N]`.
        """
        weight_bits = np.atleast_2d(np.asarray(weight_bits, "float64"))
        activation_bits = np.atleast_2d(np.asarray(activation_bits, "float64"))
        inputs = np.tile(self.input_bits, (len(activation_bits), 1))
        is_decided = self.input_column >= 0
        inputs[:, is_decided] = activation_bits[:, self.input_column[is_decided]]
        return (self.macs * weight_bits * inputs).sum(axis=-1) + self.overhead

    def to_budget_unit(self, bit_ops: Any) -> Any:
        """Converts bit operations to the unit of the budget.

        Args:
            bit_ops: Bit operations per input, a number or a tensor. Several assignments have to be
                averaged first, because the mean bit-width is a square root.
        """
        if self.kind == "mean_bit_width":
            return (bit_ops / max(self.macs.sum(), 1.0)) ** 0.5
        return bit_ops

    def expected(
        self,
        weight_p: tf.Tensor,
        activation_bits: tf.Tensor,
        grid: np.ndarray,
        table: tf.Tensor | None,
        coded_table: tf.Tensor | None = None,
    ) -> Any:
        """Returns the expected cost under the distributions, differentiable.

        Args:
            weight_p: The probabilities of the weight bits of each group, shape `[G, Pw, K]`.
            activation_bits: The expected activation bits of each group, shape `[G, decided]`.
            grid: Bit-widths, shape `[K]`.
            table: The table of bytes, shape `[Pw, K]`. It is not used for bit operations.
            coded_table: The table of bytes of files that use the decoder, shape `[Pw, K]`. It is
                used only if the target has a decoder.

        Returns:
            A scalar.
        """
        if self.in_bytes:
            expected = self.bytes.expected(weight_p, grid, table, coded_table)
            if self.activation_cycles is not None:
                expected = expected + self._added_cycles(activation_bits)
            return ops.mean(expected) + self.constant()
        weight_bits = ops.sum(weight_p * grid, axis=-1)
        fixed = ops.convert_to_tensor((self.input_column < 0) * self.input_bits, "float32")
        inputs = ops.expand_dims(fixed, 0)
        if self.decided:
            selector = np.zeros((len(self.decided), len(self.weights)), "float32")
            for i, column in enumerate(self.input_column):
                if column >= 0:
                    selector[column, i] = 1.0
            inputs = inputs + ops.matmul(activation_bits, selector)
        macs = ops.convert_to_tensor(self.macs, "float32")
        bit_ops = ops.mean(ops.sum(macs * weight_bits * inputs, axis=-1))
        return self.to_budget_unit(bit_ops + self.overhead)
