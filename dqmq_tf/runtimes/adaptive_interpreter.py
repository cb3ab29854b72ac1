"""`AdaptiveInterpreter`: runs an adaptive file as an app does."""

import dataclasses
import os
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.runtimes import in_process, process


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveResult:
    """What an adaptive file computed for a batch.

    Attributes:
        outputs: One float array per model output, shape `[N, ...]`.
        profile: Precision profile that ran each input, int array of shape `[N]`.
        milliseconds: Time per input, router and network together, float array of shape `[N]`.
    """

    outputs: list[np.ndarray]
    profile: np.ndarray
    milliseconds: np.ndarray


class AdaptiveInterpreter:
    """Runs an adaptive `.tflite` file on LiteRT: the router chooses a profile, which then runs.

    Args:
        path: Path of a file that `dqmq_tf.convert(..., adaptive=N)` wrote, or its contents.
        threads: Number of CPU threads.

    Attributes:
        profiles: Number of precision profiles.
        routing: `"signatures"` or `"graph"`.
        metadata: What `dqmq_tf.read_metadata` returns for the file.

    Raises:
        FileNotFoundError: If there is no such file.
        FileFormatError: If the file is truncated or corrupt, or is not an adaptive file.
        ImportError: If `ai-edge-litert` is not installed.

    Example:

    >>> interpreter = dqmq_tf.AdaptiveInterpreter("model.tflite")
    >>> result = interpreter(images)
    >>> result.outputs[0].argmax(-1), result.profile
    """

    def __init__(self, path: str | os.PathLike[str] | bytes | TFLiteFile, threads: int = 1) -> None:
        if isinstance(path, (bytes, TFLiteFile)):
            file, name = TFLiteFile.of(path), "The file"
        else:
            file, name = TFLiteFile.load(path), str(path)
        facts = file.metadata
        if facts is None or "routing" not in facts:
            raise FileFormatError(
                f"{name} holds one precision profile only: run it with ai_edge_litert's "
                "Interpreter, or convert the model with adaptive=2."
            )
        self.metadata = facts
        self.profiles = len(facts["profiles"])
        self.routing: str = facts["routing"]
        interpreter = in_process.interpreter(file.contents, threads=threads)
        self._networks = {
            key: in_process.signature_of(interpreter, definition)
            for key, definition in file.signatures.items()
        }

    def __call__(self, inputs: npt.ArrayLike | Sequence[npt.ArrayLike]) -> AdaptiveResult:
        """Runs a batch, one input at a time.

        Args:
            inputs: An array of shape `[N, ...]`, or a list of arrays, one per model input.

        Returns:
            An `AdaptiveResult`.

        Raises:
            ValueError: If there are no inputs, or if their number, their lengths or their shapes are not
                those of the model.
        """
        arrays = [
            np.asarray(array)
            for array in (inputs if isinstance(inputs, (list, tuple)) else [inputs])
        ]
        process.check_inputs(
            arrays, max(len(network.inputs) for network in self._networks.values())
        )
        rows, profiles, times = [], [], []
        for i in range(len(arrays[0])):
            sample = [array[i : i + 1] for array in arrays]
            started = time.perf_counter()
            profile, outputs = self._run(sample)
            times.append(1e3 * (time.perf_counter() - started))
            rows.append(outputs)
            profiles.append(profile)
        return AdaptiveResult(
            outputs=[np.concatenate(parts) for parts in zip(*rows)],
            profile=np.array(profiles),
            milliseconds=np.array(times),
        )

    def _run(self, sample: list[np.ndarray]) -> tuple[int, list[np.ndarray]]:
        """Runs arrays with a batch of one; returns the profile and the outputs."""
        if self.routing == "graph":
            *outputs, profile = next(iter(self._networks.values()))(sample)
            return int(profile[0]), outputs
        profile, _ = self._networks["router"](sample[:1])
        return int(profile[0]), self._networks[f"profile_{int(profile[0])}"](sample)
