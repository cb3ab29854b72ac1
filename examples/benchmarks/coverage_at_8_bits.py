"""Tests whether models of `keras.applications` predict at 8 bits what they predict in float.

Each model gets random weights that behave somewhat like published ones: random scales and offsets in
its normalizations, whose moving statistics are those of random images, and a classifier that spreads
over the classes. It is quantized to 8 bits and calibrated on half of the images. The predicted
classes of the other half are compared.

Networks of random weights amplify small errors, the deeper the more. If fewer than 95 % of the classes
agree, TensorFlow's own int8 quantization is measured on the same images: it shows what 8 bits can reach
on this network. The share of 64 images varies by some 6 points, so models that are behind by more than
three images are compared again with `--samples=512`. Small models run first, each in its own process,
with a limit on its time.

    python examples/benchmarks/coverage_at_8_bits.py --output=coverage_at_8_bits.json
    python examples/benchmarks/coverage_at_8_bits.py --models="MobileNet.*"
"""

import dataclasses
import functools
import json
import pathlib
import re
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import coverage
from absl import app, flags

_MINUTES = flags.DEFINE_float("minutes", None, "Start no further model after this many minutes.")

_SAMPLES = flags.DEFINE_integer(
    "samples", 128, "Number of images. Half of them calibrate, and the others are compared."
)

_CLASSES, _BOUND = 10, 0.95
# The standard deviation of the logits of each class, as in a trained classifier.
_SPREAD = 3.0
# The largest change of a pixel, of 255, that shows how much a network amplifies.
_NOISE = 2.0
# By how much fewer classes may agree than with TensorFlow's quantization: three of 64 images.
_SLACK = 0.05
_COMMAND = "python examples/benchmarks/coverage_at_8_bits.py --output={output}"
# The first models to run, in this order: the fastest ones.
_FIRST = """
    MobileNet MobileNetV2 MobileNetV3Small MobileNetV3Large VGG16 VGG19 ResNet50 Xception ResNet50V2
    InceptionV3 EfficientNetB0 EfficientNetV2B0 ConvNeXtTiny ResNet101 EfficientNetV2B1
    EfficientNetB1 EfficientNetV2B2 DenseNet121 EfficientNetB2 EfficientNetV2B3 NASNetMobile
""".split()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Result of one model.

    Attributes:
        name: Name of the function in `keras.applications`.
        passed: Whether the share of equal classes is at least 95 %, or that of TensorFlow's int8
            quantization is no larger.
        reason: Why it is less, or what went wrong, or "".
        agreement: The share of images with the class of the float model.
        noisy_agreement: The same for the float model, if pixels change by up to 2 of 255.
        reference_agreement: The same for TensorFlow's int8 quantization. None if the first share is
            at least 95 %.
        error: The mean difference of a probability.
        classes: The number of classes that the float model predicts.
        images: The number of images that were compared.
        warning: What the package warned of at calibration, or "".
        seconds: `{stage: time in seconds}`.
    """

    name: str
    passed: bool = False
    reason: str = ""
    agreement: float | None = None
    noisy_agreement: float | None = None
    reference_agreement: float | None = None
    error: float | None = None
    classes: int | None = None
    images: int = 64
    warning: str = ""
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)


def images_of(side: int, samples: int) -> Any:
    """Returns random images `[samples, side, side, 3]` from 0 to 255, smooth ones and noisy ones."""
    import keras
    import numpy as np

    random = np.random.default_rng(0)
    coarse = random.uniform(0, 255, (samples, 4, 4, 3)).astype("float32")
    smooth = np.array(keras.ops.image.resize(coarse, (side, side), "bilinear"))
    noise = random.normal(0, 1, smooth.shape) * random.uniform(0, 40, (samples, 1, 1, 1))
    return np.clip(smooth + noise, 0, 255).astype("float32")


def adapt(model: Any, images: Any) -> None:
    """Sets the normalizations and the classifier of a model somewhat as a training would.

    Scales are from 0.5 to 1.5, and offsets from 0 to 2, so that most activations let values pass. The
    batch normalizations get the statistics of the images. The logits get mean 0 and the standard
    deviation `_SPREAD` in each class.
    """
    import keras
    import numpy as np

    from dqmq_tf.graph.cloning import layers_inside

    random = np.random.default_rng(1)
    for variable in model.weights:
        kind = variable.path.split("/")[-1]
        if kind in ("gamma", "beta"):
            low, high = (0.5, 1.5) if kind == "gamma" else (0.0, 2.0)
            variable.assign(random.uniform(low, high, variable.shape))
    norms = [x for x in layers_inside(model) if isinstance(x, keras.layers.BatchNormalization)]
    for norm in norms:
        norm.momentum = 0.0
    if norms:
        model(images, training=True)
    for norm in norms:
        norm.momentum = 0.99
    *_, head = (layer for layer in model.layers if getattr(layer, "kernel", None) is not None)
    activation, head.activation = head.activation, keras.activations.linear
    logits = np.array(keras.Model(model.input, head.output)(images)).reshape(-1, _CLASSES)
    head.activation = activation
    scale = _SPREAD / np.maximum(logits.std(axis=0), 1e-6)
    head.kernel.assign(head.kernel * scale)
    head.bias.assign(-scale * logits.mean(axis=0))


def measure(name: str, target: str, connection: Any, samples: int) -> None:
    """Compares one model and sends its `Result`; called in a new process."""
    seconds: dict[str, float] = {}
    stage, started = "build", time.perf_counter()

    def finish(next_stage: str) -> None:
        nonlocal stage, started
        now = time.perf_counter()
        seconds[stage] = round(now - started, 2)
        stage, started = next_stage, now

    try:
        import warnings

        import keras
        import numpy as np

        import dqmq_tf

        keras.utils.set_random_seed(0)
        side = coverage.SIDES.get(name, 32)
        function = getattr(keras.applications, name)
        model = function(weights=None, input_shape=(side, side, 3), classes=_CLASSES)
        finish("adapt")
        images = images_of(side, samples)
        adapt(model, images)
        finish("quantize")
        eight = dqmq_tf.LayerRule(pattern=".*", weight_bits=(8,), activation_bits=(8,))
        qmodel = dqmq_tf.quantize_model(
            model,
            target=target,
            budget=dqmq_tf.Budget(mean_bit_width=8),
            config=dqmq_tf.DQMQConfig(rules=(eight,)),
        )
        finish("calibrate")
        half = samples // 2
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            qmodel.calibrate(images[:half])
        messages = [str(w.message) for w in caught if "of their spread" in str(w.message)]
        finish("compare")
        calibration, images = images[:half], images[half:]
        noise = np.random.default_rng(2).uniform(-_NOISE, _NOISE, images.shape)
        expected, found, noisy = (
            np.array(m(x, training=False))
            for m, x in (
                (model, images),
                (qmodel, images),
                (model, images + noise.astype("float32")),
            )
        )
        finish("reference")
        classes = expected.argmax(axis=-1)
        agreement, noisy_agreement = (
            float(np.mean(classes == other.argmax(axis=-1))) for other in (found, noisy)
        )
        reason, reference_agreement, passed = "", None, True
        if agreement < _BOUND:
            reference = reference_outputs(model, calibration, images)
            finish("")
            reference_agreement = float(np.mean(classes == reference.argmax(axis=-1)))
            passed = agreement >= reference_agreement - _SLACK
            reason = reason_of(agreement, reference_agreement)
        result = Result(
            name=name,
            passed=passed,
            reason=reason,
            agreement=round(agreement, 4),
            noisy_agreement=round(noisy_agreement, 4),
            reference_agreement=reference_agreement,
            error=round(float(np.abs(found - expected).mean()), 4),
            classes=len(set(classes)),
            images=len(images),
            warning=" ".join(messages)[:400],
            seconds=seconds,
        )
    except Exception as error:
        finish("")
        text = " ".join(str(error).split())[:400]
        reason = f"{list(seconds)[-1]}: {type(error).__name__}: {text}"
        result = Result(name=name, reason=reason, seconds=seconds)
    connection.send(result)


def reason_of(agreement: float, reference_agreement: float) -> str:
    """Returns why fewer classes agree than the bound asks for."""
    return (
        f"the classes of {agreement:.0%} agree, and of {reference_agreement:.0%} with TensorFlow's int8 "
        "quantization: these random weights amplify errors"
    )


def reference_outputs(model: Any, calibration: Any, images: Any) -> Any:
    """Returns what a model computes after TensorFlow's int8 quantization."""
    import tensorflow as tf
    from study import scoring

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([image[None]] for image in calibration)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        path = pathlib.Path(folder) / "int8.tflite"
        path.write_bytes(converter.convert())
        return scoring.litert_predictor(path)(images)


def earlier_results(path: str | None) -> list[Result]:
    """Returns the results in a file, or an empty list if the file does not exist."""
    if path is None or not pathlib.Path(path).exists():
        return []
    return [Result(**row) for row in json.loads(pathlib.Path(path).read_text())["models"]]


def write(results: Sequence[Result], path: str) -> None:
    """Writes results, with the command that repeats them."""
    contents = {
        "command": _COMMAND.format(output=pathlib.Path(path).name),
        "passed": sum(result.passed for result in results),
        "models": [dataclasses.asdict(result) for result in results],
    }
    pathlib.Path(path).write_text(json.dumps(contents, indent=1) + "\n")


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    options, started = flags.FLAGS, time.perf_counter()
    results = earlier_results(options.output)
    known = {result.name for result in results}
    names = [n for n in coverage.model_functions() if re.fullmatch(options.models, n)]
    for name in sorted(names, key=lambda n: _FIRST.index(n) if n in _FIRST else len(_FIRST)):
        if name in known:
            continue
        if _MINUTES.value and time.perf_counter() - started > 60 * _MINUTES.value:
            break
        job = functools.partial(measure, samples=_SAMPLES.value)
        answer = coverage.run(name, options.target, options.timeout, job)
        result = answer if isinstance(answer, Result) else Result(name=name, reason=answer)
        results.append(result)
        print(result, flush=True)
        if options.output:
            write(results, options.output)
    print(f"{sum(r.passed for r in results)} of {len(results)} models agree with float")


if __name__ == "__main__":
    app.run(main)
