"""`AdaptiveInterpreter`: runs an adaptive file as an app would."""

import dataclasses
import time

import numpy as np

from dqmq_tf.errors import FileFormatError
from dqmq_tf.flatbuffer import TFLiteFile
from dqmq_tf.runtimes import in_process


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptiveResult:
    """What an adaptive file made of a batch.

    Attributes:
        outputs: One float array per model output, `[N, ...]`.
        profile: Precision profile that each input was given, int array `[N]`.
        milliseconds: Time of each input, router and network together, float array `[N]`.
    """

    outputs: list
    profile: np.ndarray
    milliseconds: np.ndarray


class AdaptiveInterpreter:
    """Runs an adaptive `.tflite` file on LiteRT: the router chooses, then the profile runs.

    Args:
        path: Path of a file that `dqmq_tf.convert(..., adaptive=N)` wrote, or its contents.
        threads: CPU threads.

    Attributes:
        profiles: Number of precision profiles.
        routing: `"signatures"` or `"graph"`.
        metadata: What `dqmq_tf.read_metadata` reads.

    Raises:
        FileNotFoundError: If there is no such file.
        FileFormatError: If the file is truncated or corrupt, or is no adaptive file.

    Example:

    >>> interpreter = dqmq_tf.AdaptiveInterpreter("model.tflite")
    >>> result = interpreter(images)
    >>> result.outputs[0].argmax(-1), result.profile
    """

    def __init__(self, path, threads=1):
        is_path = not isinstance(path, (bytes, TFLiteFile))
        file = TFLiteFile.load(path) if is_path else TFLiteFile.of(path)
        self.metadata = file.metadata
        if self.metadata is None or "routing" not in self.metadata:
            raise FileFormatError(
                f"{path if is_path else 'The file'} holds one precision profile: run it with "
                "ai_edge_litert's Interpreter, or convert with adaptive=2."
            )
        self.profiles = len(self.metadata["profiles"])
        self.routing = self.metadata["routing"]
        interpreter = in_process.interpreter(file.contents, threads=threads)
        self._networks = {
            key: in_process.signature_of(interpreter, definition)
            for key, definition in file.signatures.items()
        }

    def __call__(self, inputs):
        """Runs a batch, input by input.

        Args:
            inputs: Float array `[N, ...]`, or a list of arrays for several inputs.

        Returns:
            `AdaptiveResult`.

        Raises:
            ValueError: If there are no inputs or their shapes are not those of the model.
        """
        arrays = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        arrays = [np.asarray(array, np.float32) for array in arrays]
        if not arrays or not len(arrays[0]):
            raise ValueError("There are no inputs: pass at least one.")
        rows, profiles, times = [], [], []
        for i in range(len(arrays[0])):
            one = [array[i : i + 1] for array in arrays]
            started = time.perf_counter()
            profile, outputs = self._run(one)
            times.append(1e3 * (time.perf_counter() - started))
            rows.append(outputs)
            profiles.append(profile)
        return AdaptiveResult(
            outputs=[np.concatenate(parts) for parts in zip(*rows)],
            profile=np.array(profiles),
            milliseconds=np.array(times),
        )

    def _run(self, one):
        if self.routing == "graph":
            *outputs, profile = next(iter(self._networks.values()))(one)
            return int(profile[0]), outputs
        profile, _ = self._networks["router"](one[:1])
        return int(profile[0]), self._networks[f"profile_{int(profile[0])}"](one)
