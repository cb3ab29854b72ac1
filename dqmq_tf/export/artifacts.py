"""The optional files that `convert` writes beside the `.tflite` file."""

import pathlib
from collections.abc import Sequence

from dqmq_tf.errors import ConversionError
from dqmq_tf.export import c_array
from dqmq_tf.export.conversion_report import ConversionReport
from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.runtimes import tflite_micro
from dqmq_tf.targets import ARTIFACTS, Target


def check_artifacts(artifacts: Sequence[str], path: pathlib.Path, target: Target) -> None:
    """Checks that the artifacts can be written, before the conversion starts.

    Args:
        artifacts: Names from `ARTIFACTS`.
        path: The path of the `.tflite` file.
        target: The deployment target.

    Raises:
        ValueError: If a name is not in `ARTIFACTS`, if `artifacts` is a string, or if C++ cannot
            include a header of this name.
        ConversionError: If the device of the target does not run a C array.
        ImportError: If `tflite-micro`, which measures the arena of a C array, is not installed.
    """
    if isinstance(artifacts, str):
        raise ValueError(f"artifacts={artifacts!r}: give a tuple, such as ({artifacts!r},).")
    unknown = [name for name in artifacts if name not in ARTIFACTS]
    if unknown:
        raise ValueError(
            f"artifacts has {unknown[0]!r}; those that exist are {', '.join(map(repr, ARTIFACTS))}."
        )
    if "c_array" not in artifacts:
        return
    if target.compiler is not None:
        raise ConversionError(
            f"On target {target.name!r} the device runs what {target.compiler} makes of the file. "
            "Compile it first, then call dqmq_tf.export.write_c_array on the result."
        )
    if "tflite-micro" not in target.runtimes:
        raise ConversionError(
            f"A C array is for TFLite Micro, which target {target.name!r} is not for. Quantize the "
            "model for target 'microcontroller'."
        )
    c_array.check_name(path)
    tflite_micro.require()


def artifact_paths(artifacts: Sequence[str], path: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the paths of the artifacts of a `.tflite` file.

    Args:
        artifacts: Names from `ARTIFACTS`.
        path: The path of the `.tflite` file.
    """
    suffixes = {"c_array": (".cc", ".h"), "json": (".json",)}
    return tuple(
        path.with_suffix(suffix)
        for name in ARTIFACTS
        if name in artifacts
        for suffix in suffixes[name]
    )


def render_artifacts(
    artifacts: Sequence[str], path: pathlib.Path, file: TFLiteFile, report: ConversionReport
) -> dict[pathlib.Path, str]:
    """Returns the contents of the artifacts of a `.tflite` file.

    Args:
        artifacts: Names from `ARTIFACTS`.
        path: The path of the `.tflite` file.
        file: The contents of that file.
        report: The report of the conversion.

    Returns:
        `{path: contents}`.
    """
    files = {}
    if "c_array" in artifacts:
        # `check_artifacts` made sure that TFLite Micro can measure the arena.
        assert report.arena_bytes is not None
        source, header = c_array.render(file, path.stem, report.arena_bytes)
        files = {path.with_suffix(".cc"): source, path.with_suffix(".h"): header}
    if "json" in artifacts:
        files[path.with_suffix(".json")] = report.to_json() + "\n"
    return files
