"""Measures what `layers.Exposure` costs in an `android` file: bytes and latency.

Both files of a network have weights of 4 bits, and int8 inputs and outputs. They run alternately on
LiteRT with XNNPACK on one thread, as in `latency.py`.

    python examples/benchmarks/exposure_cost.py --exposure_output=exposure_cost.json
"""

import dataclasses

import keras
import latency
import networks
from absl import app, flags, logging
from recorded_rows import RecordedRows

import dqmq_tf

_EXPOSURE_OUTPUT = flags.DEFINE_string("exposure_output", None, "JSON file for the results.")
_REPETITIONS = flags.DEFINE_integer("repetitions", 600, "Pairs of measurements.", lower_bound=10)

_BITS = 4
_NETWORKS = {
    "ResNet-8, 32 x 32": networks.resnet8,
    "MobileNetV2 0.35, 96 x 96": networks.mobilenet_v2,
}


@dataclasses.dataclass(frozen=True)
class Row:
    """Result for one network.

    Attributes:
        network: Name of the network.
        size_bytes, download_bytes: Bytes that the layer adds to the file, and after deflate.
        without_ms, with_ms: Median time of an inference.
        ratio: Median over the pairs of the time with the layer divided by the time without it.
        low, high: Quartiles of that ratio.
        processor_ratio: The same median for processor time, which other programs affect less.
    """

    network: str
    size_bytes: int
    download_bytes: int
    without_ms: float
    with_ms: float
    ratio: float
    low: float
    high: float
    processor_ratio: float


def exposed(model):
    """Returns a model with `Exposure` in front. Its layers keep their names."""
    inputs = keras.Input(model.input_shape[1:], name="image")
    first = dqmq_tf.layers.Exposure(name="exposure")(inputs)
    return keras.Model(inputs, model(first), name=f"{model.name}_exposed")


def compare(name, model):
    """Returns the `Row` of a network."""
    counts = networks.kernels(model)
    without, plain = networks.converted(
        model, "android", dict.fromkeys(counts, _BITS), io_dtype="int8", verify=False
    )
    paths = dict.fromkeys((f"{model.name}/{layer}" for layer in counts), _BITS)
    contents, report = networks.converted(
        exposed(model), "android", paths, io_dtype="int8", verify=False
    )
    times = latency.compare_files(without, contents, _REPETITIONS.value)
    return Row(
        network=name,
        size_bytes=report.size_bytes - plain.size_bytes,
        download_bytes=report.download_bytes - plain.download_bytes,
        without_ms=1000 * times.first_seconds,
        with_ms=1000 * times.second_seconds,
        **times.ratios,
    )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    record = RecordedRows(_EXPOSURE_OUTPUT.value, "network")
    for name, make in _NETWORKS.items():
        record.add(compare(name, make()))
        print(record.rows[-1], flush=True)


if __name__ == "__main__":
    app.run(main)
