"""Networks for the benchmarks of size and time, frozen at given bits without training.

The size and the latency of a file depend on the bit-widths, not on what the network has learned.
"""

import contextlib
import functools
import io
import itertools
import pathlib
import tempfile

import keras
import numpy as np

import dqmq_tf

RESNET = pathlib.Path("../shared/models/mlperf_tiny/pretrainedResnet.h5")
_LAYERS = (
    keras.layers.Conv2D,
    keras.layers.DepthwiseConv2D,
    keras.layers.Dense,
)


def resnet8():
    """Returns MLPerf Tiny's trained ResNet-8."""
    if not RESNET.exists():
        raise FileNotFoundError(
            f"{RESNET} does not exist. Run the benchmark from the repository's root."
        )
    return keras.models.load_model(RESNET, compile=False)


def mobilenet_v2(side=96, alpha=0.35, classes=10):
    """Returns a MobileNetV2 with random weights."""
    keras.utils.set_random_seed(0)
    return keras.applications.MobileNetV2((side, side, 3), alpha, weights=None, classes=classes)


def application(name, side=224, classes=10):
    """Returns a model of `keras.applications` with random weights."""
    keras.utils.set_random_seed(0)
    build = getattr(keras.applications, name)
    return build(input_shape=(side, side, 3), weights=None, classes=classes)


# Networks by the names that results have.
NETWORKS = {
    "ResNet-8": resnet8,
    "MobileNetV2 0.35, 96 x 96": mobilenet_v2,
    "MobileNetV2 1.0, 224 x 224": functools.partial(mobilenet_v2, 224, 1.0, 1000),
    "MobileNetV3Small, 224 x 224": functools.partial(application, "MobileNetV3Small"),
    "EfficientNetB0, 224 x 224": functools.partial(application, "EfficientNetB0"),
    "ResNet50, 224 x 224": functools.partial(application, "ResNet50"),
}
# Those of them that people train for phones.
PHONE_NETWORKS = (
    "MobileNetV2 0.35, 96 x 96",
    "MobileNetV3Small, 224 x 224",
    "EfficientNetB0, 224 x 224",
)


def images(model, count=32, seed=0):
    """Returns random images of low spatial frequency, with values from 0 to 255."""
    random = np.random.default_rng(seed)
    height, width, channels = model.input_shape[1:]
    coarse = random.uniform(0, 255, (count, -(-height // 8), -(-width // 8), channels))
    fine = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
    return np.clip(fine + random.normal(0, 12, fine.shape), 0, 255).astype("float32")


def kernels(model):
    """Returns `{layer name: number of weights}` of the layers that are quantized."""
    found = {}
    for layer in model.layers:
        if isinstance(layer, _LAYERS):
            found[layer.name] = int(np.prod(layer.kernel.shape))
    return found


def mixed_bits(model, mean):
    """Returns mixed bit-widths with a given mean over all weights.

    Args:
        model: A Keras model.
        mean: Mean weight bit-width, 2 to 8.

    Returns:
        `{layer name: bits}`. Up to ten of the largest layers have one bit more or less than the mean:
        as many as possible while the mean is kept within 0.02.
    """
    counts = kernels(model)
    if mean in (2, 8):
        return dict.fromkeys(counts, mean)
    largest = sorted(counts, key=counts.get, reverse=True)[:10]
    sizes, total = np.array([counts[name] for name in largest]), sum(counts.values())
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=len(largest))))
    near = steps[np.abs(steps @ sizes) / total < 0.02]
    chosen = near[np.abs(near).sum(axis=1).argmax()]
    return dict.fromkeys(counts, mean) | dict(zip(largest, (mean + chosen).tolist()))


def mean_bits(report):
    """Returns the mean weight bit-width in a `ConversionReport`."""
    count = sum(row.count for row in report.weights)
    return sum(row.count * row.bit_width for row in report.weights) / count


def frozen(model, target, bits=None, budget=None):
    """Returns a calibrated and frozen model, without training.

    Args:
        model: A Keras model.
        target: Name of the target.
        bits: `{layer name: bits}`; None for bits chosen by the budget.
        budget: A `dqmq_tf.Budget`, or None.

    Returns:
        A frozen `DQMQModel`.
    """
    rules = tuple(
        dqmq_tf.LayerRule(pattern=f"{name}(/.*)?", weight_bits=(width,))
        for name, width in (bits or {}).items()
    )
    quantized = dqmq_tf.quantize_model(
        model,
        target=target,
        budget=budget or dqmq_tf.Budget(size_bytes=1e9),
        config=dqmq_tf.DQMQConfig(rules=rules),
    )
    quantized.calibrate(images(model))
    return quantized.freeze(profiles=1)


def converted(model, target, bits=None, budget=None, **options):
    """Converts a `frozen` model and returns the contents of the file and the report."""
    quantized = frozen(model, target, bits, budget)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        report = dqmq_tf.convert(quantized, path, data=images(model), **options)
        return path.read_bytes(), report


def int8_by_quantizer(model):
    """Returns an int8 file of a float model, calibrated and made by litert-quantizer alone."""
    from litert_quantizer import quantizer, recipe

    signature = [keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32")]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/float.tflite"
        model.export(path, format="litert", verbose=False, input_signature=signature)
        contents = pathlib.Path(path).read_bytes()
    writer = quantizer.Quantizer(contents, recipe.static_wi8_ai8())
    name = _input_name(contents)
    samples = [{name: image[None]} for image in images(model, 16)]
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        ranges = writer.calibrate({"serving_default": samples})
        return bytes(writer.quantize(ranges).quantized_model)


def _input_name(contents):
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(model_content=contents).get_signature_list()
    return signatures["serving_default"]["inputs"][0]
