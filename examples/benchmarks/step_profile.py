"""Shows where the time of a training step goes: milliseconds of each kind of operation.

Float and quantized model train in turn on one thread under TensorFlow's profiler. An operation has the
least time of all profiled steps, which other programs on the machine affect least.

    python examples/benchmarks/step_profile.py --output=examples/benchmarks/results/step_profile.json
"""

import collections
import json
import pathlib
import tempfile

import networks
import rich.console
import rich.table
import tensorflow as tf
from absl import app, flags
from searching_model import searching
from tensorflow.tsl.profiler.protobuf import xplane_pb2
from training_steps import compiled, random_batch, step_function

_NAME = flags.DEFINE_enum(
    "network", "MobileNetV3Small, 224 x 224", list(networks.NETWORKS), "The network to train."
)
_TARGET = flags.DEFINE_string("target", "android", "The deployment target.")
_BATCH = flags.DEFINE_integer("batch", 32, "Images per step.")
_STEPS = flags.DEFINE_integer("steps", 6, "Profiled steps.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

# The kinds of operations by the beginnings of their types; the first that fits counts.
_KINDS = {
    "convolutions": ("DepthwiseConv", "Conv2D", "FusedConv", "FusedDepthwise"),
    "batch normalization by TensorFlow": ("FusedBatchNorm",),
    "loops of XLA: normalization, ReLU, quantizers": ("Xla",),
    "padding and its gradient": ("Pad", "Slice"),
    "means, sums and broadcasts": ("Mean", "Sum", "Tile", "BroadcastTo", "AddN", "SquaredDiff"),
    "ReLUs": ("Relu",),
    "element-wise, large and small": (
        "Mul", "Add", "Sub", "RealDiv", "Select", "Square", "Sqrt", "Rsqrt", "Neg", "Exp", "Log",
        "Minimum", "Maximum", "Greater", "Less", "Equal", "Sigmoid", "Round", "Cast", "Pow",
    ),
    "matrix products": ("MatMul", "FusedMatMul", "BatchMatMul"),
}  # fmt: skip
_OTHER = "all other operations"
# Steps before the profile.
_WARMUP = 3


def kind_of(operation):
    """Returns the kind of a type of operation."""
    # Operations of oneDNN, and fused ones, have the same names behind these prefixes.
    name = operation.removeprefix("_MklNative").removeprefix("_Mkl").removeprefix("_")
    found = (kind for kind, starts in _KINDS.items() if name.startswith(starts))
    return next(found, _OTHER)


def profiled(step):
    """Returns the milliseconds of each kind of operation in a step."""
    with tempfile.TemporaryDirectory() as folder:
        options = tf.profiler.experimental.ProfilerOptions(host_tracer_level=3)
        times = collections.defaultdict(list)
        for _ in range(_STEPS.value):
            tf.profiler.experimental.start(folder, options)
            step()
            tf.profiler.experimental.stop()
            (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
            for operation, picoseconds in _operations(path).items():
                times[operation].append(picoseconds)
            path.unlink()
    milliseconds = collections.Counter()
    for (kind, _), found in times.items():
        milliseconds[kind] += min(found) / 1e9
    return milliseconds


def _operations(path):
    """Returns `{(kind, place in the graph): picoseconds}` of a profile of one step."""
    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    times = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            # The operations that the events around an event belong to, and where they end.
            around = []
            for event in sorted(line.events, key=lambda e: (e.offset_ps, -e.duration_ps)):
                name = plane.event_metadata[event.metadata_id].name.split("#")[0]
                while around and around[-1][0] <= event.offset_ps:
                    around.pop()
                operation = _operation(name)
                if operation is None:
                    continue
                if around:
                    times[around[-1][1]] -= event.duration_ps
                times[operation] += event.duration_ps
                around.append((event.offset_ps + event.duration_ps, operation))
    return {key: max(time, 0) for key, time in times.items() if key[0]}


def _operation(name):
    """Returns the kind of an event of the profiler, and its place; None if it is no operation."""
    if name.startswith("CpuExecutable::"):
        return kind_of("Xla"), "all"
    place, separator, operation = name.rpartition(":")
    operation = operation.strip()
    if not separator or place.endswith(":") or not operation:
        return None
    # Functions of Keras that hold all the others.
    is_function = operation.startswith(("__inference", "PartitionedCall", "StatefulPartitioned"))
    return (None if is_function else kind_of(operation)), place


def measure():
    """Returns the milliseconds of each kind of operation, by model."""
    model = networks.NETWORKS[_NAME.value]()
    batch = random_batch(model, _BATCH.value)
    quantized = searching(model, _TARGET.value, batch[0])
    found = {"float": profiled(step_function(compiled(model), batch, _WARMUP))}
    step = step_function(quantized, batch, _WARMUP)
    found["searching"] = profiled(step)
    quantized._training.settle()
    found["settled"] = profiled(step)
    return found


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    found = measure()
    rows = {kind: [found[m][kind] for m in found] for kind in [*_KINDS, _OTHER]}
    rows["all"] = [sum(times.values()) for times in found.values()]
    table = rich.table.Table("milliseconds", *found, title=f"{_NAME.value}, {_TARGET.value}")
    for kind, times in rows.items():
        table.add_row(kind, *(f"{time:.0f}" for time in times))
    rich.console.Console(width=120).print(table)
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
