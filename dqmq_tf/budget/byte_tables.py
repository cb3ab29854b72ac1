"""The bytes that each kernel takes in a file at each bit-width, without TFLite Micro's decoder and with it.

A file uses the decoder if the firmware, which is the file and the decoder, is then smaller. This is
decided for all weight tensors of a file together.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from keras import ops

from dqmq_tf.budget.compressed_kernels import CompressedKernel, CompressedKernels
from dqmq_tf.flatbuffer import bit_packing, code_sharing, huffman
from dqmq_tf.graph.decision_points import WeightPoint
from dqmq_tf.targets import Storage, Target, without_int4

# The bit-widths of decision points: `[points]`, or `[N, points]` for N samples or profiles.
Bits = Sequence[float] | np.ndarray
# Returns the integers of a weight point, given its index and a bit-width.
Integers = Callable[[int, int], np.ndarray]
# The bytes of each weight point, `{bits: bytes}`.
Table = list[dict[int, float]]


class ByteTables:
    """Measures the bytes of kernels, and adds them up.

    Args:
        kind: The kind of the budget. Nothing is measured unless it is in bytes.
        target: The `Target`, which determines how a file stores weights.
        weights: The weight decision points.

    Attributes:
        has_decoder: Whether files may use a decoder.
        tables: The bytes of each weight point in a file that uses no decoder and, if the target has
            one, in a file that uses it. Empty until `measure`.
    """

    def __init__(self, kind: str, target: Target, weights: Sequence[WeightPoint]) -> None:
        self._kind, self._target, self._weights = kind, target, weights
        self.has_decoder = bool(target.table_ops) and kind in ("size_bytes", "download_bytes")
        self.tables: tuple[Table, ...] = ()
        # The bytes in the file, which decide whether it uses the decoder, also for a download.
        self._sizes: tuple[Table, ...] = ()
        # What each kernel becomes at each bit-width, in the same files, for a budget under deflate.
        self._kernels: tuple[list[dict[int, CompressedKernel]], ...] = ()
        self._compressed = CompressedKernels()

    def measure(self, integers: Integers) -> None:
        """Fills the tables from the current weights.

        Args:
            integers: A function `integers(point_index, bit_width)` that returns the integer array of
                a weight point.
        """
        files = range(1 + self.has_decoder)
        self._sizes, self._kernels = tuple([] for _ in files), tuple([] for _ in files)
        for i, point in enumerate(self._weights):
            values = {b: _laid_out(point, integers(i, b)) for b in point.bit_widths}
            for decoder in files:
                storages = {b: self._storage(point, v, b, bool(decoder)) for b, v in values.items()}
                self._sizes[decoder].append({b: s.size_bytes for b, s in storages.items()})
                if self._kind == "download_bytes":
                    coded = {b: _coded(values[b], b, storages[b]) for b in values}
                    self._kernels[decoder].append(
                        {b: self._compressed.compress((i, b, decoder), c) for b, c in coded.items()}
                    )
        self.tables = self._sizes
        if self._kind == "download_bytes":
            self.tables = tuple(
                [{b: kernel.alone for b, kernel in row.items()} for row in rows]
                for rows in self._kernels
            )

    def replace(self, table: Table) -> None:
        """Sets the table of a target without a decoder, which something else has measured."""
        assert not self.has_decoder, "With a decoder there are two tables."
        self.tables = self._sizes = (table,)

    def uses_decoder(self, weight_bits: Bits) -> bool:
        """Returns whether a file uses the decoder.

        Args:
            weight_bits: The weight bits of the file, shape `[Pw]`.
        """
        if not self.has_decoder:
            return False
        plain, coded = (sum(map(_interpolated, sizes, weight_bits)) for sizes in self._sizes)
        return self._target.pays_decoder(plain, coded)

    def table_of(self, weight_bits: Bits) -> Table:
        """Returns the table that holds for a file.

        Args:
            weight_bits: The weight bits of the file, shape `[Pw]`.
        """
        return self.tables[self.uses_decoder(weight_bits)]

    def decoder_bytes(self, weight_bits: Bits) -> float:
        """Returns the bytes of the decoder that the budget counts for a file.

        They are 0 if the file does not use it, or if the budget is a download, which does not
        contain it.

        Args:
            weight_bits: The weight bits of the file, shape `[Pw]`.
        """
        return self._decoder_bytes if self.uses_decoder(weight_bits) else 0.0

    def of_weights(self, weight_bits: Bits) -> float:
        """Returns the bytes of all weights of a file and of its decoder.

        The bytes of bit-widths between two candidates are interpolated linearly.

        Args:
            weight_bits: The weight bits of the file, shape `[Pw]`.
        """
        each = map(_interpolated, self.table_of(weight_bits), weight_bits)
        return sum(each) + self.decoder_bytes(weight_bits)

    def limits(self, limit: float) -> list[tuple[Table, float]]:
        """Returns each table with the limit for its sum in a file of which `limit` is the limit."""
        return list(zip(self.tables, (limit, limit - self._decoder_bytes)))

    def compressed(self, weight_bits: Bits) -> list[CompressedKernel]:
        """Returns each kernel of a file under deflate, as `measure` found it.

        Args:
            weight_bits: The weight bits of the file, shape `[Pw]`.
        """
        assert self._kernels, "Call `measure` first."
        rows = self._kernels[self.uses_decoder(weight_bits)]
        return [row[int(b)] for row, b in zip(rows, weight_bits)]

    def arrays(self, grid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tables as arrays.

        Args:
            grid: Bit-widths, shape `[K]`.

        Returns:
            Two float32 arrays of shape `[Pw, K]`, 0 for bit-widths that a point cannot have: without
            the decoder, and with it. They are equal if the target has none.
        """
        return _array(self.tables[0], grid), _array(self.tables[-1], grid)

    def expected(self, weight_p: tf.Tensor, grid: np.ndarray, table: Any, coded_table: Any) -> Any:
        """Returns the expected bytes of the weights and the decoder of each group, differentiable.

        Args:
            weight_p: The probabilities of the weight bits of each group, shape `[G, Pw, K]`.
            grid: Bit-widths, shape `[K]`.
            table, coded_table: What `arrays` returns.

        Returns:
            A tensor of shape `[G]`.
        """

        def of_groups(one_table: Any) -> Any:
            return ops.sum(weight_p * one_table, axis=(1, 2))

        if not self.has_decoder:
            return of_groups(table)
        if self._kind == "size_bytes":
            return ops.minimum(of_groups(table), of_groups(coded_table) + self._decoder_bytes)
        plain, coded = (of_groups(_array(sizes, grid)) for sizes in self._sizes)
        is_coded = coded + float(self._target.decoder_bytes) < plain
        return ops.where(is_coded, of_groups(coded_table), of_groups(table))

    @property
    def _decoder_bytes(self) -> float:
        """The bytes of the decoder in the unit of the budget."""
        return float(self._target.decoder_bytes) if self._kind == "size_bytes" else 0.0

    def _storage(
        self, point: WeightPoint, values: np.ndarray, bit_width: int, decoder: bool
    ) -> Storage:
        """Returns how the target stores a kernel in a file that does or does not use the decoder."""
        return code_sharing.storage_alone(
            without_int4(self._target) if point.may_be_int16 else self._target,
            point.op_kind,
            bit_width,
            values,
            per_channel=bool(point.channel_axes),
            decoder=decoder,
        )


def _laid_out(point: WeightPoint, integers: np.ndarray) -> np.ndarray:
    """Returns the integers of a kernel as they lie in the file: output channels first."""
    values = np.asarray(integers).astype("int8")
    if point.op_kind not in ("depthwise", "embedding"):
        # A layer with a single scale also has its output channels in the last axis.
        axes = point.channel_axes or (values.ndim - 1,)
        values = np.moveaxis(values, axes, range(len(axes)))
    return values


def _coded(values: np.ndarray, bit_width: int, storage: Storage) -> bytes:
    """Returns the bytes of a kernel in the file: few bits are packed."""
    if storage.coding == "huffman":
        return huffman.Code.of(values).encode(values)
    if storage.coding == "table":
        # The lowest integer, which only quantizers of the user's own use, becomes the last index.
        indices = (values.astype("int32") + 2 ** (bit_width - 1) - 1) % 2**bit_width
        return bit_packing.pack_indices(indices, bit_width).tobytes()
    if storage.container == "INT4":
        return bit_packing.pack_int4(values).tobytes()
    if storage.container == "INT2":
        return bit_packing.pack_int2(values).tobytes()
    return values.tobytes()


def _interpolated(row: dict[int, float], bits: float) -> float:
    """Returns the bytes at a bit-width, interpolated linearly between two candidates."""
    if bits in row:
        return row[int(bits)]
    return float(np.interp(bits, list(row), list(row.values())))


def _array(table: Table, grid: np.ndarray) -> np.ndarray:
    """Returns a table as a float32 array `[Pw, K]`, 0 for bit-widths that a point cannot have."""
    return np.array([[row.get(int(b), 0.0) for b in grid] for row in table], "float32")
