"""The child process of `micro.run`: runs one file in TFLite Micro. Imports nothing of the package.

    python -P micro_process.py FOLDER

FOLDER holds `model.tflite` and `request.npz`; `reply.npz` is written to it. What TFLite Micro says
goes to the standard error stream.
"""

import pathlib
import sys

import numpy as np
from tflite_micro.python.tflite_micro import runtime

STEP = 16


def main(folder):
    contents = (folder / "model.tflite").read_bytes()
    request = np.load(folder / "request.npz")
    inputs = [request[f"input{i}"] for i in range(int(request["inputs"]))]
    reply = {}
    recorder = runtime.Interpreter.from_bytes(contents, arena_size=int(request["arena"]))
    if request["measure"]:
        reply["arena_bytes"] = smallest_arena(contents, inputs, int(request["arena"]))
    collected = [[] for _ in range(int(request["outputs"]))]
    for sample in range(len(inputs[0])):
        for position, array in enumerate(inputs):
            recorder.set_input(array[sample : sample + 1], position)
        recorder.invoke()
        for position, results in enumerate(collected):
            results.append(np.array(recorder.get_output(position)))
    for position, results in enumerate(collected):
        reply[f"output{position}"] = np.concatenate(results)
    if len(request["tensors"]):
        keeper = runtime.Interpreter.from_bytes(
            contents,
            arena_size=int(request["arena"]),
            intrepreter_config=runtime.InterpreterConfig.kPreserveAllTensors,
        )
        for position, array in enumerate(inputs):
            keeper.set_input(array[:1], position)
        keeper.invoke()
        for index in request["tensors"]:
            reply[f"tensor{index}"] = keeper.GetTensor(int(index), 0)["tensor_data"]
    np.savez(folder / "reply.npz", **reply)


def smallest_arena(contents, inputs, large):
    """Bytes of the smallest arena in which the file runs, in steps of 16."""
    low, high = 0, large // STEP
    while low + 1 < high:
        middle = (low + high) // 2
        if fits(contents, STEP * middle):
            high = middle
        else:
            low = middle
    interpreter = runtime.Interpreter.from_bytes(contents, arena_size=STEP * high)
    for position, array in enumerate(inputs):
        interpreter.set_input(array[:1], position)
    interpreter.invoke()
    return STEP * high


def fits(contents, arena):
    try:
        runtime.Interpreter.from_bytes(contents, arena_size=arena)
    except RuntimeError:
        return False
    return True


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
