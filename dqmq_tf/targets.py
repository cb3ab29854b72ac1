"""What a deployment can run: bit-widths, storage of weights, runtimes and refusals, as data."""

import dataclasses

CONTAINER_BITS = {"INT8": 8, "INT4": 4, "INT2": 2}
OP_KINDS = ("conv", "depthwise", "dense", "transpose", "embedding", "other")
IO_TYPES = ("float32", "int8")
_BIT_WIDTHS = range(2, 9)
# What a lookup table adds to a file for each tensor that it holds: the operator that decodes it and
# the tensor that this makes. Fitted on files that the converter wrote; the table itself, at most
# 143 bytes, is shared by all tensors of the same bits.
TABLE_BYTES = 100

_INT8_VERSIONS = (("CONV_2D", 3), ("DEPTHWISE_CONV_2D", 3), ("FULLY_CONNECTED", 6))
_INT4_VERSIONS = (("CONV_2D", 7), ("DEPTHWISE_CONV_2D", 7), ("FULLY_CONNECTED", 10))
_INT2_VERSIONS = (("CONV_2D", 7), ("DEPTHWISE_CONV_2D", 7), ("FULLY_CONNECTED", 14))
_NARROW_ACTIVATIONS = ("activations below 8 bits", "they exist in simulation only")
_INT16_ACTIVATIONS = (
    "int16 activations",
    "not offered: without XNNPACK, 100 times slower, and wrong with INT4 depthwise weights",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage:
    """How one weight tensor stands in a file.

    Attributes:
        container: TFLite type that the kernel reads, one of `CONTAINER_BITS`.
        table: Whether the file holds indices into a lookup table, which TFLite Micro decodes
            into the container.
        size_bytes: Bytes of the file for it, with the operator that decodes it.
    """

    container: str
    table: bool
    size_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A place where the network is to run.

    Kinds of op are those of `OP_KINDS`: `"other"` is what no kernel with weights is known for.

    Attributes:
        name: Key in `TARGETS`.
        description: One line for people.
        weight_bits: Bit-widths that a weight may take, ascending.
        activation_bits: Bit-widths that an activation may take, ascending.
        int4_ops: Kinds of op whose weights of at most 4 bits may be stored as INT4.
        int2_ops: Kinds of op whose weights of 2 bits may be stored as INT2.
        table_ops: Kinds of op whose weights of at most 7 bits may be stored as indices into a
            lookup table of TFLite Micro.
        per_tensor: Kinds of op whose weights have one scale for the whole tensor.
        io_dtype: Type of a file's inputs and outputs unless the user says otherwise.
        runtimes: Names of the runtimes that run the file (see `dqmq_tf.runtimes.registry`), first the
            one that it is for.
        compiler: Program that makes of the file what the device runs, or None.
        operator_versions: `(operator, newest version that a file may have)` of the operators with
            weights.
        oldest_tflite: Oldest TensorFlow Lite with these versions; None where TensorFlow Lite does
            not run the files.
        refusals: `(what is refused, why)`.
        deployable: Whether there is a runtime at all.

    Raises:
        ValueError: If a bit-width, a kind of op or `io_dtype` is none of those that exist.
    """

    name: str
    description: str
    weight_bits: tuple = (2, 3, 4, 5, 6, 7, 8)
    activation_bits: tuple = (8,)
    int4_ops: frozenset = frozenset()
    int2_ops: frozenset = frozenset()
    table_ops: frozenset = frozenset()
    per_tensor: frozenset = frozenset()
    io_dtype: str = "float32"
    runtimes: tuple = ()
    compiler: str | None = None
    operator_versions: tuple = _INT8_VERSIONS
    oldest_tflite: str | None = None
    refusals: tuple = ()
    deployable: bool = True

    def __post_init__(self):
        for field in ("weight_bits", "activation_bits"):
            wrong = [b for b in getattr(self, field) if b not in _BIT_WIDTHS]
            if wrong:
                hint = " int16 activations are not offered: " + _INT16_ACTIVATIONS[1] + "."
                raise ValueError(
                    f"Target {self.name!r}: {field} holds {wrong[0]}, but bit-widths go from 2 to "
                    f"8.{hint if 16 in wrong else ''}"
                )
        for field in ("int4_ops", "int2_ops", "table_ops", "per_tensor"):
            wrong = getattr(self, field) - set(OP_KINDS)
            if wrong:
                raise ValueError(
                    f"Target {self.name!r}: {field} holds {sorted(wrong)[0]!r}, but kinds of op "
                    f"are {', '.join(OP_KINDS)}."
                )
        if self.io_dtype not in IO_TYPES:
            raise ValueError(
                f"Target {self.name!r}: io_dtype={self.io_dtype!r} is none of {IO_TYPES}."
            )

    def container(self, op_kind, bit_width, per_channel=None):
        """Returns the smallest TFLite type whose kernel takes such weights.

        Args:
            op_kind: Kind of op.
            bit_width: Bits of a weight.
            per_channel: Whether the tensor has a scale per output channel, as it has even in
                `per_tensor` kinds of op with a batch norm folded in; None for what the target says.
        """
        if bit_width <= 2 and op_kind in self.int2_ops:
            return "INT2"
        int4 = op_kind in self.int4_ops and not (per_channel and op_kind in self.per_tensor)
        return "INT4" if bit_width <= 4 and int4 else "INT8"

    def storage(self, op_kind, bit_width, count, per_channel=None):
        """Returns the smallest `Storage` of a weight tensor.

        Args:
            op_kind, bit_width, per_channel: See `container`.
            count: Number of weights.

        Example:

        >>> dqmq_tf.targets.get("microcontroller").storage("conv", 3, 9216)
        Storage(container='INT8', table=True, size_bytes=3556)
        """
        container = self.container(op_kind, bit_width, per_channel)
        native = Storage(
            container=container,
            table=False,
            size_bytes=-(-count * CONTAINER_BITS[container] // 8),
        )
        if op_kind not in self.table_ops or bit_width > 7:
            return native
        size_bytes = -(-count * bit_width // 8) + TABLE_BYTES
        coded = Storage(container="INT8", table=True, size_bytes=size_bytes)
        # Decoding costs time and arena at every inference: not for nothing.
        return coded if coded.size_bytes < native.size_bytes else native

    @property
    def size_varies(self):
        """Whether fewer bits make the stored file smaller (and not only its deflated size)."""
        return bool(self.int4_ops or self.int2_ops or self.table_ops)


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="android",
            description=(
                "LiteRT on an Android CPU at full int8 speed, INT8 containers: fewer bits save "
                "download"
            ),
            # tflite-runtime 2.14 looks up all rows of an embedding with the scale of the first.
            per_tensor=frozenset({"embedding"}),
            runtimes=("litert-xnnpack", "litert-builtin", "litert-reference", "tflite-runtime"),
            oldest_tflite="2.1.0",
            refusals=(
                _NARROW_ACTIVATIONS,
                _INT16_ACTIVATIONS,
                (
                    "INT4 weights",
                    "XNNPACK does not take INT4 convolutions, and tflite-runtime 2.14 no INT4 "
                    "dense layer with a scale per channel: choose 'android_small'",
                ),
            ),
        ),
        Target(
            name="android_small",
            description=(
                "LiteRT 2 on an Android CPU, INT4 weights of at most 4 bits, INT2 dense weights of "
                "2 bits: fewer bits save storage, INT4 convolutions cost time"
            ),
            # Of weights that a DEQUANTIZE restores too: LiteRT 2 does so from INT4.
            int4_ops=frozenset({"conv", "depthwise", "dense", "embedding", "other"}),
            int2_ops=frozenset({"dense"}),
            runtimes=("litert-xnnpack", "litert-builtin", "litert-reference"),
            operator_versions=_INT2_VERSIONS,
            oldest_tflite="2.21.0",
            refusals=(_NARROW_ACTIVATIONS, _INT16_ACTIVATIONS),
        ),
        Target(
            name="microcontroller",
            description=(
                "TFLite Micro: per tensor the smallest of INT4, INT8 and indices into a lookup "
                "table; int8 inputs and outputs"
            ),
            int4_ops=frozenset({"conv", "depthwise", "dense"}),
            table_ops=frozenset({"conv", "depthwise", "dense"}),
            # INT4 dense kernels take one scale; lookups and DEQUANTIZE take the first of several.
            per_tensor=frozenset({"dense", "embedding", "other"}),
            io_dtype="int8",
            runtimes=("tflite-micro", "litert-reference"),
            operator_versions=_INT4_VERSIONS,
            refusals=(
                _NARROW_ACTIVATIONS,
                _INT16_ACTIVATIONS,
                (
                    "several signatures in a file",
                    "TFLite Micro runs the first subgraph only, and crashes on a subgraph that it "
                    "does not reach: write a file per profile, or route in the graph",
                ),
                (
                    "weights with several scales behind DEQUANTIZE or EMBEDDING_LOOKUP",
                    "TFLite Micro silently takes the first: such weights are trained with one step",
                ),
                (
                    "one lookup table's header on weights with a scale per channel",
                    "decoders disagree on what it means, some read past the table",
                ),
            ),
        ),
        Target(
            name="ethos_u",
            description=(
                "Ethos-U by way of Vela: INT8 containers with restricted range, which Vela's own "
                "coder shrinks; int8 inputs and outputs"
            ),
            # What the NPU does not take runs on TFLite Micro, which takes the first of several scales.
            per_tensor=frozenset({"embedding", "other"}),
            io_dtype="int8",
            runtimes=("tflite-micro", "litert-reference"),
            compiler="ethos-u-vela",
            refusals=(
                _NARROW_ACTIVATIONS,
                _INT16_ACTIVATIONS,
                ("INT4 weights", "they kill Vela: fewer bits are coded from INT8 containers"),
                ("lookup tables", "Vela compresses weights by itself, and has no such operator"),
                (
                    "several signatures in a file",
                    "what Vela makes runs on TFLite Micro: write a file per profile",
                ),
            ),
        ),
        Target(
            name="simulation",
            description="research: weights and activations of 2 to 8 bits, no runtime runs it",
            activation_bits=(2, 3, 4, 5, 6, 7, 8),
            deployable=False,
        ),
    )
}


def serialize(target):
    """Returns what `get` takes: the name of a known target, or the data of one's own."""
    if TARGETS.get(target.name) == target:
        return target.name
    data = dataclasses.asdict(target)
    return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in data.items()}


def get(identifier):
    """Returns a `Target` by name or from its data, or the target itself.

    Raises:
        ValueError: If no target has that name.

    Example:

    >>> dqmq_tf.targets.get("android").weight_bits
    (2, 3, 4, 5, 6, 7, 8)
    """
    if isinstance(identifier, Target):
        return identifier
    if isinstance(identifier, dict):
        sets = {f.name for f in dataclasses.fields(Target) if isinstance(f.default, frozenset)}
        data = {k: frozenset(v) if k in sets else _tuples(v) for k, v in identifier.items()}
        return Target(**data)
    if identifier in TARGETS:
        return TARGETS[identifier]
    raise ValueError(f"Unknown target {identifier!r}: choose one of {', '.join(TARGETS)}.")


def _tuples(value):
    """JSON has lists only."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
