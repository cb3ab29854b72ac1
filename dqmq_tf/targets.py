"""Deployment targets as data: bit-widths, storage of weights, runtimes, and what is refused."""

import dataclasses
from collections.abc import Mapping
from typing import Any

CONTAINER_BITS = {"INT8": 8, "INT4": 4, "INT2": 2}
OP_KINDS = ("conv", "depthwise", "dense", "transpose", "embedding", "other")
# What `convert` offers: types of inputs and outputs, ways for an adaptive file to choose a profile,
# numbers of profiles in such a file, files to write next to the `.tflite` file, and what
# `Preprocessing` can say about an image: orders of channels and rules of resizing.
IO_TYPES = ("float32", "int8")
ROUTINGS = ("signatures", "graph")
PROFILE_COUNTS = (2, 3, 4)
ARTIFACTS = ("c_array", "json")
COLORS = ("RGB", "BGR", "GRAY")
RESIZES = ("nearest", "bilinear", "area")
# Vela's names of the NPUs. Ethos-U55 with 128 multiply-accumulates per cycle is the default.
ACCELERATORS = (
    *("ethos-u55-32", "ethos-u55-64", "ethos-u55-128", "ethos-u55-256"),
    *("ethos-u65-256", "ethos-u65-512", "ethos-u85-128", "ethos-u85-256", "ethos-u85-512"),
    *("ethos-u85-1024", "ethos-u85-2048"),
)
DEFAULT_ACCELERATOR = "ethos-u55-128"
VELA = "ethos-u-vela"
_BIT_WIDTHS = range(2, 9)
# Bytes that a lookup table adds to a file per tensor: the operator that decodes the tensor, and the
# tensor that it produces. Fitted on files that the converter wrote. The table itself, at most 143
# bytes, is shared by all tensors of the same bit-width.
TABLE_BYTES = 100
# The same for the words and the code of a Huffman-coded tensor, without the words and its tables.
CODE_BYTES = 86
# What TFLite Micro's operator DECODE can read: indices into a lookup table, or Huffman codes.
CODINGS = ("table", "huffman")

_INT8_VERSIONS = (("CONV_2D", 3), ("DEPTHWISE_CONV_2D", 3), ("FULLY_CONNECTED", 6))
_INT16_VERSIONS = (("CONV_2D", 4), ("DEPTHWISE_CONV_2D", 5), ("FULLY_CONNECTED", 7))
_INT4_VERSIONS = (("CONV_2D", 7), ("DEPTHWISE_CONV_2D", 7), ("FULLY_CONNECTED", 10))
_INT2_VERSIONS = (("CONV_2D", 7), ("DEPTHWISE_CONV_2D", 7), ("FULLY_CONNECTED", 14))
_NARROW_ACTIVATIONS = ("activations below 8 bits", "they exist in simulation only")
_INT16_ACTIVATIONS = (
    "int16 activations",
    "without XNNPACK they are 100 times slower, and wrong with INT4 depthwise weights",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Storage:
    """How a file stores one weight tensor.

    Attributes:
        container: TFLite type that the kernel reads, one of `CONTAINER_BITS`.
        coding: How the file codes the weights, one of `CODINGS`, which TFLite Micro decodes into
            the container. None if the file holds the container itself.
        size_bytes: Bytes that it takes in the file, including the operator that decodes it.
    """

    container: str
    coding: str | None
    size_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A place where the network will run.

    Attributes with kinds of op hold values of `OP_KINDS`. The kind `"other"` covers all layers
    without an integer kernel, whose weights the file may still store as integers.

    Attributes:
        name, description: Key in `TARGETS`, and one line for people.
        weight_bits: Bit-widths that a weight may take, ascending.
        activation_bits: Bit-widths that an activation may take, ascending.
        optional_activation_bits: Those that it may take where a `LayerRule` asks for them as well:
            16 on targets whose first runtime is TFLite Micro, which has int16 kernels.
        int4_ops: Kinds of op whose weights of at most 4 bits may be stored as INT4.
        int2_ops: Kinds of op whose weights of 2 bits may be stored as INT2.
        table_ops: Kinds of op whose weights TFLite Micro's operator DECODE may restore.
        codings: How such weights may be stored, some of `CODINGS`: those of at most 7 bits as
            indices into a lookup table (`"table"`), all of them in Huffman codes (`"huffman"`).
        decoder_bytes: Bytes of firmware that the operator DECODE takes. A file uses it only if it
            saves more than that in all its tensors together. A `size_bytes` budget includes the
            decoder of a file that uses it. Set it to 0 with `dataclasses.replace` if the firmware
            contains the operator in any case. The value for `microcontroller` was measured on a
            Cortex-M4, with all of TFLite Micro compiled with `-Os` and without log texts. As TFLite
            Micro's Makefile compiles it by itself, the operator takes 21,828 bytes.
        per_tensor: Kinds of op whose weights have one scale for the whole tensor.
        io_dtype: Default type of a file's inputs and outputs.
        runtimes: Names of the runtimes that run the file (see `dqmq_tf.runtimes.RUNTIMES`), the
            intended one first.
        compiler: Program that compiles the file for the device, or None.
        accelerator: Vela's name of the NPU that a file is compiled for, one of `ACCELERATORS`. Only
            targets with the compiler `"ethos-u-vela"` use it.
        operator_versions: `(operator, newest version that a file may use)` of the operators with
            weights. `convert` refuses a file with a newer version.
        oldest_tflite: Oldest TensorFlow Lite that has these versions, or None if TensorFlow Lite
            does not run the files.
        refusals: `(what is refused, why)`.
        deployable: Whether any TFLite runtime exists.

    Raises:
        ValueError: If a bit-width, a kind of op, `io_dtype` or `accelerator` does not exist.

    Example:

    >>> target = dqmq_tf.targets.get("android")
    >>> dataclasses.replace(target, name="android_6_bits", weight_bits=(6, 7, 8))

    The firmware contains the decoder for another network already:

    >>> target = dqmq_tf.targets.get("microcontroller")
    >>> dataclasses.replace(target, decoder_bytes=0)
    """

    name: str
    description: str
    weight_bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)
    activation_bits: tuple[int, ...] = (8,)
    optional_activation_bits: tuple[int, ...] = ()
    int4_ops: frozenset[str] = frozenset()
    int2_ops: frozenset[str] = frozenset()
    table_ops: frozenset[str] = frozenset()
    codings: tuple[str, ...] = ("table",)
    decoder_bytes: int = 0
    per_tensor: frozenset[str] = frozenset()
    io_dtype: str = "float32"
    runtimes: tuple[str, ...] = ()
    compiler: str | None = None
    accelerator: str = DEFAULT_ACCELERATOR
    operator_versions: tuple[tuple[str, int], ...] = _INT8_VERSIONS
    oldest_tflite: str | None = None
    refusals: tuple[tuple[str, str], ...] = ()
    deployable: bool = True

    def __post_init__(self) -> None:
        runs_int16 = self.runtimes[:1] == ("tflite-micro",)
        for field in ("weight_bits", "activation_bits", "optional_activation_bits"):
            allowed = {*_BIT_WIDTHS, *([16] if runs_int16 and field != "weight_bits" else [])}
            wrong = [b for b in getattr(self, field) if b not in allowed]
            if wrong:
                hint = f" int16 activations are not supported: {_INT16_ACTIVATIONS[1]}."
                raise ValueError(
                    f"Target {self.name!r}: {field} holds {wrong[0]}, but bit-widths go from 2 to 8."
                    + (hint if 16 in wrong else "")
                )
        for field in ("int4_ops", "int2_ops", "table_ops", "per_tensor"):
            unknown = sorted(getattr(self, field) - set(OP_KINDS))
            if unknown:
                raise ValueError(
                    f"Target {self.name!r}: {field} holds {unknown[0]!r}, but the kinds of op are "
                    f"{', '.join(OP_KINDS)}."
                )
        if self.io_dtype not in IO_TYPES:
            raise ValueError(
                f"Target {self.name!r}: io_dtype={self.io_dtype!r} is none of {IO_TYPES}."
            )
        if self.accelerator not in ACCELERATORS:
            raise ValueError(
                f"Target {self.name!r}: accelerator={self.accelerator!r} is none of those that Vela "
                f"compiles for: {', '.join(ACCELERATORS)}."
            )
        if not set(self.codings) <= set(CODINGS):
            raise ValueError(
                f"Target {self.name!r}: codings={self.codings!r} holds others than {CODINGS}."
            )
        if self.decoder_bytes < 0:
            raise ValueError(
                f"Target {self.name!r}: decoder_bytes={self.decoder_bytes!r} is negative. Give 0 if "
                "the firmware contains the decoder in any case."
            )

    def container(self, op_kind: str, bit_width: int, per_channel: bool | None = None) -> str:
        """Returns the smallest TFLite type in which the kernel reads such weights.

        Args:
            op_kind: Kind of op.
            bit_width: Bits per weight.
            per_channel: Whether the tensor has a scale per output channel, as a folded batch norm
                gives it even to kinds of op that are `per_tensor`. None for what they prescribe.
        """
        if bit_width <= 2 and op_kind in self.int2_ops:
            return "INT2"
        int4 = op_kind in self.int4_ops and not (per_channel and op_kind in self.per_tensor)
        return "INT4" if bit_width <= 4 and int4 else "INT8"

    def storage(
        self,
        op_kind: str,
        bit_width: int,
        count: int,
        per_channel: bool | None = None,
        *,
        decoder: bool = True,
        huffman_bytes: int | None = None,
    ) -> Storage:
        """Returns the smallest `Storage` of a weight tensor.

        Args:
            op_kind: Kind of op.
            bit_width: Bits per weight.
            count: Number of weights.
            per_channel: Whether the tensor has a scale per output channel, see `container`.
            decoder: Whether the file may use the operator DECODE, see `pays_decoder`.
            huffman_bytes: Bytes of the tensor in a Huffman code of its own, with the tables of the
                decoder. None if it is not to be Huffman-coded.

        Example:

        >>> dqmq_tf.targets.get("microcontroller").storage("conv", 3, 9216)
        Storage(container='INT8', coding='table', size_bytes=3556)
        """
        container = self.container(op_kind, bit_width, per_channel)
        size_bytes = -(-count * CONTAINER_BITS[container] // 8)
        native = Storage(container=container, coding=None, size_bytes=size_bytes)
        if not decoder or op_kind not in self.table_ops:
            return native
        storages = [native]
        if "table" in self.codings and bit_width <= 7:
            size_bytes = -(-count * bit_width // 8) + TABLE_BYTES
            storages.append(Storage(container="INT8", coding="table", size_bytes=size_bytes))
        if "huffman" in self.codings and huffman_bytes is not None:
            size_bytes = huffman_bytes + TABLE_BYTES + CODE_BYTES
            storages.append(Storage(container="INT8", coding="huffman", size_bytes=size_bytes))
        # Decoding takes time and arena at every inference, so it has to save bytes. `min` keeps the
        # first of several smallest.
        return min(storages, key=lambda storage: storage.size_bytes)

    def pays_decoder(self, plain_bytes: float, coded_bytes: float) -> bool:
        """Returns whether the firmware is smaller with a file that uses the operator DECODE.

        Args:
            plain_bytes: The bytes of all weight tensors without the operator.
            coded_bytes: The bytes of all weight tensors with it.
        """
        return coded_bytes + self.decoder_bytes < plain_bytes

    @property
    def size_varies(self) -> bool:
        """Whether fewer bits make the stored file smaller (and not only its deflated size)."""
        return bool(self.int4_ops or self.int2_ops or self.table_ops)


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="android",
            description=(
                "LiteRT on an Android CPU at full int8 speed, and LiteRT.js in a browser; weights are stored as INT8, so fewer "
                "bits reduce the download"
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
                    "XNNPACK does not run INT4 convolutions, and tflite-runtime 2.14 does not run "
                    "INT4 dense layers with a scale per channel: choose 'android_small'",
                ),
            ),
        ),
        Target(
            name="android_small",
            description=(
                "LiteRT 2 on an Android CPU; weights of at most 4 bits are stored as INT4, dense "
                "weights of 2 bits as INT2, so fewer bits reduce the file; INT4 convolutions are "
                "slower, also in a browser, where some bits of their outputs differ"
            ),
            # "other": LiteRT 2 has a DEQUANTIZE of INT4 for the weights of float kernels.
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
                "TFLite Micro; weights are stored as INT4 and INT8, or in lookup tables and Huffman "
                "codes if these save more flash than their decoder takes; int8 inputs and outputs"
            ),
            int4_ops=frozenset({"conv", "depthwise", "dense"}),
            table_ops=frozenset({"conv", "depthwise", "dense"}),
            codings=CODINGS,
            # All decoders of the operator: indices, Huffman codes and pruned tensors. See
            # `tflite/micro/README.md` for how it was measured.
            decoder_bytes=6_360,
            # INT4 dense kernels support one scale. Lookups and DEQUANTIZE use the first of several.
            per_tensor=frozenset({"dense", "embedding", "other"}),
            optional_activation_bits=(16,),
            io_dtype="int8",
            runtimes=("tflite-micro", "litert-reference"),
            operator_versions=_INT4_VERSIONS,
            refusals=(
                _NARROW_ACTIVATIONS,
                (
                    "several signatures in a file",
                    "TFLite Micro runs the first subgraph only, and crashes on a subgraph that the "
                    "first does not reach: write a file per profile, or route in the graph",
                ),
                (
                    "weights with several scales for DEQUANTIZE or EMBEDDING_LOOKUP",
                    "TFLite Micro silently uses the first: such weights are trained with one step",
                ),
                (
                    "the header for one lookup table on weights with a scale per channel",
                    "decoders disagree on its meaning, and some read past the table",
                ),
            ),
        ),
        Target(
            name="ethos_u",
            description=(
                "Ethos-U, compiled by Vela; weights are stored as INT8 with a restricted range, "
                "which Vela compresses; int8 inputs and outputs"
            ),
            # TFLite Micro runs what the NPU does not, and uses the first of several scales.
            per_tensor=frozenset({"embedding", "other"}),
            optional_activation_bits=(16,),
            io_dtype="int8",
            runtimes=("tflite-micro", "litert-reference"),
            compiler=VELA,
            operator_versions=_INT16_VERSIONS,
            refusals=(
                _NARROW_ACTIVATIONS,
                ("INT4 weights", "they crash Vela, which compresses fewer bits in INT8 itself"),
                ("lookup tables", "Vela compresses weights itself, and has no such operator"),
                (
                    "several signatures in a file",
                    "TFLite Micro runs the compiled file: write a file per profile",
                ),
            ),
        ),
        Target(
            name="simulation",
            description="research only; weights and activations of 2 to 8 bits; no TFLite runtime",
            activation_bits=(2, 3, 4, 5, 6, 7, 8),
            deployable=False,
        ),
    )
}


def serialize(target: Target) -> str | dict[str, Any]:
    """Returns what `get` accepts: the name of a known target, or the data of a user's own."""
    if TARGETS.get(target.name) == target:
        return target.name
    data = dataclasses.asdict(target)
    return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in data.items()}


def without_decoder_cost(target: Target) -> Target:
    """Returns a target as it was before the decoder counted, for models that were saved then.

    The bits of such a model were chosen for the bytes of the file alone.
    """
    return dataclasses.replace(target, decoder_bytes=0, codings=("table",))


def without_int4(target: Target) -> Target:
    """Returns a target as an operator with int16 activations needs it: with INT8 weights alone."""
    return dataclasses.replace(target, int4_ops=frozenset(), int2_ops=frozenset())


def get(identifier: str | Mapping[str, Any] | Target) -> Target:
    """Returns a `Target`.

    Args:
        identifier: Name of a target, what `serialize` returned, or a `Target`, which is returned
            as it is.

    Raises:
        ValueError: If no target has that name.

    Example:

    >>> dqmq_tf.targets.get("android").weight_bits
    (2, 3, 4, 5, 6, 7, 8)
    """
    if isinstance(identifier, Target):
        return identifier
    if isinstance(identifier, Mapping):
        sets = {f.name for f in dataclasses.fields(Target) if isinstance(f.default, frozenset)}
        data: dict[str, Any] = {
            k: frozenset(v) if k in sets else _tuples(v) for k, v in identifier.items()
        }
        return Target(**data)
    if identifier in TARGETS:
        return TARGETS[identifier]
    raise ValueError(f"Unknown target {identifier!r}: choose one of {', '.join(TARGETS)}.")


def _tuples(value: Any) -> Any:
    """Converts lists, which JSON has in place of tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
