"""What a decision costs: bit operations, bytes of the file, bytes of the file under deflate.

The cost is a known function of the decision, so its expectation under the policy is computed, not
sampled. Two forms cover all kinds: bit operations are bilinear in weight and activation bits;
bytes are a table, one entry per weight decision point and candidate, plus a constant.
"""

import numpy as np
from keras import ops

from dqmq_tf.flatbuffer import bit_packing, file_size

# Bytes of a TFLite file beside its weights, until `CostModel.learn_file` knows them: fitted on files
# that the converter wrote, right within 9 % of what is not weights. The file's frame, each tensor's
# entry, each channel's scale and bias.
_FRAME_BYTES = {"size_bytes": 1120, "download_bytes": 410}
_TENSOR_BYTES = {"size_bytes": 136, "download_bytes": 79}
_CHANNEL_BYTES = {"size_bytes": 14.1, "download_bytes": 9.4}
_SAMPLE = 1 << 20


class CostModel:
    """The cost of decisions in the unit of a budget.

    Args:
        kind: One of `dqmq_tf.config.BUDGET_KINDS`.
        target: A `Target`, for its containers.
        activations: `ActivationPoint`s.
        weights: `WeightPoint`s.
        float_weights: Number of kernel weights that stay in floating point.

    Attributes:
        macs, sizes: Multiply-accumulates per input and number of weights of each weight point.
        decided: Indices of the activation points that are decided, in the order of the columns.
        overhead: Bit operations per input of what decides, where bits follow the input.
        file_constant: Bytes of the file beside its weights, None until `learn_file`.
    """

    def __init__(self, kind, target, activations, weights, float_weights=0):
        self.kind, self.target, self.float_weights = kind, target, float_weights
        self.activations, self.weights = activations, weights
        self.decided = [i for i, point in enumerate(activations) if point.decided]
        column = {point: i for i, point in enumerate(self.decided)}
        self.macs = np.array([point.macs for point in weights], "float64")
        self.sizes = np.array([np.prod(point.shape) for point in weights], "float64")
        # Which column gives the bits of a layer's input; -1 where they are fixed.
        self.input_column = np.array([column.get(point.input, -1) for point in weights])
        self.input_bits = np.array(
            [
                32.0 if point.input is None else activations[point.input].bit_widths[-1]
                for point in weights
            ],
            "float64",
        )
        self.table = self.file_constant = None
        self.overhead = 0.0

    @property
    def in_bytes(self):
        return self.kind in ("size_bytes", "download_bytes")

    @property
    def adds_up(self):
        """Whether a file costs the sum of what its weights cost alone."""
        return self.kind != "download_bytes"

    def measure(self, integers):
        """Fills the table of bytes from the weights as they are.

        Args:
            integers: `integers(point_index, bit_width)` gives a weight point's integer array.
        """
        if not self.in_bytes:
            return
        self._integers = integers
        self.table = [
            {b: self._bytes(point, integers(i, b), b) for b in point.bit_widths}
            for i, point in enumerate(self.weights)
        ]

    def constant(self):
        """Returns the bytes that no decision changes."""
        if not self.in_bytes:
            return 0.0
        if self.file_constant is not None:
            return self.file_constant
        channels = sum(
            int(np.prod([point.shape[a] for a in point.channel_axes])) for point in self.weights
        )
        tensors = 2 * len(self.weights) + len(self.activations)
        per = _TENSOR_BYTES[self.kind] * tensors + _CHANNEL_BYTES[self.kind] * channels
        return float(_FRAME_BYTES[self.kind] + per + 4 * self.float_weights)

    def learn_file(self, found, weight_bits, activation_bits):
        """Takes what a file beside its weights takes from one that was written.

        Args:
            found: Bytes of that file, in the unit of this cost.
            weight_bits, activation_bits: Its bits.
        """
        estimate = self.of_file(weight_bits, activation_bits)
        self.file_constant = self.constant() + found - estimate

    def of_file(self, weight_bits, activation_bits):
        """Returns the cost of one assignment, under deflate with all weights in one stream.

        A file's tensors share a compressor, so that their bytes do not just add up as the table
        of `exact` has it. They come in falling entropy: a file's buffers are sorted by it, and
        written from behind.
        """
        if self.adds_up:
            return self.exact(weight_bits, activation_bits)
        bits = [int(b) for b in weight_bits]
        stored = [
            self._stored(point, self._integers(i, b), b)
            for i, (point, b) in enumerate(zip(self.weights, bits))
        ]
        stream = b"".join(sorted(stored, key=bit_packing.byte_entropy, reverse=True))
        return file_size.deflated_bytes(stream) + self.constant()

    def exact(self, weight_bits, activation_bits):
        """Returns the cost of an assignment, or the mean cost of several.

        Between two candidates it is that of drawing them in the mean.

        Args:
            weight_bits: `[Pw]`, or `[N, Pw]` for N samples or profiles.
            activation_bits: `[decided]`, or `[N, decided]`.
        """
        weight_bits = np.atleast_2d(np.asarray(weight_bits, "float64"))
        if self.in_bytes:
            sums = [sum(map(_entry, self.table, row)) for row in weight_bits]
            return float(np.mean(sums)) + self.constant()
        return float(self.finish(self.bit_ops(weight_bits, activation_bits)))

    def smallest(self):
        """Returns the cost at the fewest bits of all decision points."""
        decided = [self.activations[i] for i in self.decided]
        return self.exact(*([min(p.bit_widths) for p in ps] for ps in (self.weights, decided)))

    def most_activation_bits(self):
        """Returns the most bits of each activation that is decided."""
        return [max(self.activations[i].bit_widths) for i in self.decided]

    def prices(self):
        """Returns by what a bit more raises operations, up to a factor: `[P]`, activations first."""
        columns = range(len(self.decided))
        read = [self.macs[self.input_column == column].sum() for column in columns]
        return np.concatenate([read, self.macs])

    def bit_ops(self, weight_bits, activation_bits):
        """Returns the bit operations per input of an assignment, or the mean over several."""
        return float(self.bit_ops_of_each(weight_bits, activation_bits).mean())

    def bit_ops_of_each(self, weight_bits, activation_bits):
        """Returns the bit operations of each of several assignments: `[N]`."""
        weight_bits = np.atleast_2d(np.asarray(weight_bits, "float64"))
        activation_bits = np.atleast_2d(np.asarray(activation_bits, "float64"))
        inputs = np.tile(self.input_bits, (len(activation_bits), 1))
        known = self.input_column >= 0
        inputs[:, known] = activation_bits[:, self.input_column[known]]
        return (self.macs * weight_bits * inputs).sum(axis=-1) + self.overhead

    def finish(self, bit_ops):
        """Turns bit operations, already averaged over inputs, into the budget's unit."""
        if self.kind == "mean_bit_width":
            return (bit_ops / max(self.macs.sum(), 1.0)) ** 0.5
        return bit_ops

    def table_array(self, grid):
        """Returns the table as float32 `[Pw, K]` on a grid of bit-widths, 0 where not allowed."""
        rows = [[row.get(int(b), 0.0) for b in grid] for row in self.table]
        return np.array(rows, "float32")

    def expected(self, weight_p, activation_bits, grid, table):
        """Returns the expected cost under the distributions, differentiable.

        Args:
            weight_p: Probabilities `[G, Pw, K]` of the weight bits, per group.
            activation_bits: Expected activation bits `[G, decided]`, per group.
            grid: Bit-widths `[K]`.
            table: Tensor `[Pw, K]` of bytes; not used for bit operations.
        """
        if self.in_bytes:
            return ops.sum(ops.mean(weight_p, axis=0) * table) + self.constant()
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
        return self.finish(bit_ops + self.overhead)

    def _bytes(self, point, integers, bit_width):
        if self.kind == "size_bytes":
            return self._storage(point, bit_width).size_bytes
        stored = self._stored(point, integers, bit_width)
        sample = stored[:_SAMPLE]
        return file_size.deflated_bytes(sample) * len(stored) / max(len(sample), 1)

    def _storage(self, point, bit_width):
        count = int(np.prod(point.shape))
        return self.target.storage(
            point.op_kind, bit_width, count, per_channel=bool(point.channel_axes)
        )

    def _stored(self, point, integers, bit_width):
        """The bytes of a kernel as the file holds them: output channels first, in few bits packed."""
        values = np.asarray(integers).astype("int8")
        if point.op_kind not in ("depthwise", "embedding"):
            # A layer with one scale has its output channels in the last axis too.
            axes = point.channel_axes or (values.ndim - 1,)
            values = np.moveaxis(values, axes, range(len(axes)))
        storage = self._storage(point, bit_width)
        if storage.table:
            return bit_packing.pack_indices(values + 2 ** (bit_width - 1) - 1, bit_width).tobytes()
        pack = {"INT4": bit_packing.pack_int4, "INT2": bit_packing.pack_int2}.get(storage.container)
        return (values if pack is None else pack(values)).tobytes()


def _entry(row, bits):
    """An entry of a row `{bits: bytes}` of the table, or what lies between two."""
    found = row.get(bits)
    return np.interp(bits, list(row), list(row.values())) if found is None else found
