"""What `convert` writes beside the `.tflite` file when it is asked to."""

from dqmq_tf.errors import ConversionError
from dqmq_tf.export import c_array
from dqmq_tf.runtimes import tflite_micro
from dqmq_tf.targets import ARTIFACTS


def check_artifacts(artifacts, target):
    """Refuses artifacts that cannot be made, before any work is done.

    Args:
        artifacts: Tuple of names.
        target: `dqmq_tf.targets.Target`.

    Raises:
        ValueError: If a name is none of `ARTIFACTS`.
        ConversionError: If the target does not run a C array of this file.
        ImportError: If a C array's arena cannot be measured.
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
    tflite_micro.require()


def artifact_paths(artifacts, path):
    """Paths of the files that come with a `.tflite` file.

    Args:
        artifacts: Tuple of names.
        path: Path of the `.tflite` file.

    Returns:
        Tuple of paths.
    """
    suffixes = {"c_array": (".cc", ".h"), "json": (".json",)}
    return tuple(
        path.with_suffix(suffix)
        for name in ARTIFACTS
        if name in artifacts
        for suffix in suffixes[name]
    )


def render_artifacts(artifacts, path, file, report):
    """Contents of these files.

    Args:
        artifacts: Tuple of names.
        path: Path of the `.tflite` file.
        file: The file as a `TFLiteFile`.
        report: `ConversionReport`.

    Returns:
        `{path: str}`.
    """
    files = {}
    if "c_array" in artifacts:
        source, header = c_array.render(file, path.stem, report.arena_bytes)
        files = {path.with_suffix(".cc"): source, path.with_suffix(".h"): header}
    if "json" in artifacts:
        files[path.with_suffix(".json")] = report.to_json() + "\n"
    return files
