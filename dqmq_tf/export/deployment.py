"""What a device's own tools say of a finished file: TFLite Micro's arena, Vela's compilation."""

import dataclasses

from dqmq_tf.export import compression, flatbuffer, micro, vela
from dqmq_tf.export.vela import VelaReport


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeviceFacts:
    """What was found, as far as the tools are installed.

    Attributes:
        arena_bytes: Smallest tensor arena in TFLite Micro's reference kernels, see
            `micro.arena_bytes`; None where it was not measured.
        vela: `VelaReport`, or None where Vela was not run.
    """

    arena_bytes: int | None = None
    vela: VelaReport | None = None


def examine(contents, target):
    """Runs the tools of a target on a file, as far as they are installed.

    Args:
        contents: Contents of the finished file.
        target: `dqmq_tf.targets.Target`.

    Returns:
        `DeviceFacts`.

    Raises:
        ImportError: If the file holds lookup tables and TFLite Micro is not installed to check
            them.
        VerificationError: If TFLite Micro does not run the file, or decodes other weights.
        ConversionError: If Vela refuses the file.
    """
    if compression.is_compressed(flatbuffer.read(contents)):
        compression.check_bit_exact(contents)
    if target.compiler == "ethos-u-vela":
        if vela.program() is None:
            vela.check(flatbuffer.read(contents))
            return DeviceFacts()
        return DeviceFacts(vela=vela.compile_file(contents)[1])
    if "tflite-micro" in target.runtimes and micro.is_installed():
        return DeviceFacts(arena_bytes=micro.arena_bytes(contents))
    return DeviceFacts()


def examine_adaptive(contents, target):
    """Measures an adaptive file, whose profiles were examined one by one.

    Arguments, result and errors are those of `examine`.
    """
    if "tflite-micro" in target.runtimes and target.compiler is None and micro.is_installed():
        return DeviceFacts(arena_bytes=micro.arena_bytes(contents))
    return DeviceFacts()
