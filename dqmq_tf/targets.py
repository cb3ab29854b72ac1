"""What a deployment can run: bit-widths, storage containers and runtimes, as data."""

import dataclasses

CONTAINER_BITS = {"INT8": 8, "INT4": 4, "INT2": 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A place where the network is to run.

    Attributes:
        name: Key in `TARGETS`.
        description: One line for people.
        weight_bits: Bit-widths that a weight may take, ascending.
        activation_bits: Bit-widths that an activation may take, ascending.
        int4_ops: Kinds of op (`"conv"`, `"depthwise"`, `"dense"`) whose weights of at most 4 bits
            are stored as INT4; all others are stored as INT8.
        runtimes: Names of the runtimes that run the file (see `dqmq_tf.export.runtimes`), first the
            one that it is for.
        deployable: Whether there is a runtime at all.
    """

    name: str
    description: str
    weight_bits: tuple = (2, 3, 4, 5, 6, 7, 8)
    activation_bits: tuple = (8,)
    int4_ops: frozenset = frozenset()
    runtimes: tuple = ()
    deployable: bool = True

    def container(self, op_kind, bit_width):
        """Returns the TFLite type that holds weights of `bit_width` bits of an `op_kind`."""
        return "INT4" if bit_width <= 4 and op_kind in self.int4_ops else "INT8"

    def stored_bits(self, op_kind, bit_width):
        """Returns the bits that one weight takes in the file before any compression."""
        return CONTAINER_BITS[self.container(op_kind, bit_width)]

    @property
    def size_varies(self):
        """Whether fewer bits make the stored file smaller (and not only its deflated size)."""
        return bool(self.int4_ops)


TARGETS = {
    target.name: target
    for target in (
        Target(
            name="android",
            description="LiteRT on an Android CPU at full int8 speed: fewer bits save download",
            runtimes=("litert-xnnpack", "litert-builtin", "litert-reference", "tflite-runtime"),
        ),
        Target(
            name="android_small",
            description="LiteRT on an Android CPU, INT4 containers: fewer bits save storage",
            int4_ops=frozenset({"conv", "depthwise", "dense"}),
            runtimes=("litert-xnnpack", "litert-builtin", "litert-reference"),
        ),
        Target(
            name="microcontroller",
            description="TFLite Micro: native INT4 convolutions",
            int4_ops=frozenset({"conv", "depthwise"}),
            runtimes=("tflite-micro", "litert-reference"),
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
    return {**dataclasses.asdict(target), "int4_ops": sorted(target.int4_ops)}


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
        data = {k: tuple(v) if isinstance(v, list) else v for k, v in identifier.items()}
        return Target(**{**data, "int4_ops": frozenset(data["int4_ops"])})
    if identifier in TARGETS:
        return TARGETS[identifier]
    raise ValueError(f"Unknown target {identifier!r}: choose one of {', '.join(TARGETS)}.")
