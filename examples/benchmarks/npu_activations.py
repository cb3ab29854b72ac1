"""Measures what activations of 16 bits gain on Ethos-U, against activations of 8 bits, and what they cost.

    python examples/benchmarks/npu_activations.py --output=npu_activations.json
    python examples/benchmarks/npu_activations.py --task=hum

Three small networks: one that removes noise from images of digits, one that locates a blob to a
fraction of a pixel, one that removes a hum from sound whose loudness varies by 40 dB. Each float network becomes files by litert-quantizer,
without further training: with activations of 8 bits, of 16 bits (TFLite's 16x8), and of 8 bits with 16 in
the last layer alone. Beside them stand files of this package for `ethos_u`, whose scales were trained: with
activations of 8 bits, of 16 bits, and of 8 or 16 bits as a budget of cycles between these two decides.
Files run in LiteRT's reference kernels. Vela compiles each for Ethos-U55-128, and says what it costs.
"""

import contextlib
import dataclasses
import io
import pathlib
import tempfile

import keras
import numpy as np
import rich.table
from absl import app, flags, logging
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from litert_quantizer import qtyping, quantizer, recipe_manager
from recorded_rows import RecordedRows

import dqmq_tf
from dqmq_tf import quality
from dqmq_tf.runtimes import vela

_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
_EPOCHS = flags.DEFINE_integer("epochs", 30, "Epochs of the float network.")
_TASK = flags.DEFINE_enum("task", None, ["denoise", "locate", "hum"], "The only task to run.")
# The budgets in cycles between those of 8 bits and of 16 bits.
_SHARES = (0.25, 0.5, 0.75)

_SIDE, _BLOBS, _LENGTH, _CLIPS, _SAMPLES = 16, 2000, 128, 2000, 128


@dataclasses.dataclass(frozen=True)
class Task:
    """A network and its data.

    Attributes:
        name: Name of the task.
        model: The float network, not trained.
        train, test: `(inputs, targets)`. Sound has the loudness of each clip as a third entry.
        unit: What `score` returns.
    """

    name: str
    model: keras.Model
    train: tuple
    test: tuple
    unit: str

    def score(self, outputs):
        """Returns the quality of outputs for the test inputs."""
        targets = self.test[1]
        squares = np.square(outputs - targets).reshape(len(targets), -1).mean(axis=1)
        if self.name == "hum":
            power = np.square(targets).reshape(len(targets), -1).mean(axis=1)
            return 10 * float(np.mean(np.log10(power / squares)))
        error = float(squares.mean())
        return -10 * np.log10(error) if self.name == "denoise" else _SIDE * error**0.5


@dataclasses.dataclass(frozen=True)
class Row:
    """One file, or the float network.

    Attributes:
        task: Name of the task.
        file: How the file was made.
        score: Its quality, in `unit`.
        unit: `"dB"` (a signal-to-noise ratio, higher is better) or `"px"` (lower is better).
        cycles, sram_bytes, flash_bytes: What Vela says; None for the float network.
        cpu_operators: Number of operators that Vela leaves to the CPU.
    """

    task: str
    file: str
    score: float
    unit: str
    cycles: int | None = None
    sram_bytes: int | None = None
    flash_bytes: int | None = None
    cpu_operators: int | None = None


def digits(split):
    """Returns the images of a split, `[N, 16, 16, 1]`, from 0 to 1."""
    images = [image for image, _ in quality.digits(split, size=_SIDE).as_numpy_iterator()]
    return np.array(images, "float32")[..., :1] / 255


def blobs(seed):
    """Returns images of a blob `[N, 16, 16, 1]` and its place `[N, 2]`, from 0 to 1."""
    random = np.random.default_rng(seed)
    places = random.uniform(0.2, 0.8, (_BLOBS, 2)).astype("float32")
    grid = (np.arange(_SIDE) + 0.5) / _SIDE
    rows = np.exp(-(((grid - places[:, :1]) / 0.12) ** 2))
    columns = np.exp(-(((grid - places[:, 1:]) / 0.12) ** 2))
    images = rows[:, :, None] * columns[:, None, :]
    noise = random.normal(0, 0.01, images.shape)
    return (images + noise)[..., None].astype("float32"), places


def sounds(seed):
    """Returns sound with a hum and without it, `[N, 1, 128, 1]` each, and the loudness of each clip."""
    random = np.random.default_rng(seed)
    time = np.arange(_LENGTH)

    def waves(slowest, fastest, count):
        frequencies = random.uniform(slowest, fastest, (_CLIPS, count, 1))
        phases = random.uniform(0, 2 * np.pi, (_CLIPS, count, 1))
        return np.sin(2 * np.pi * frequencies * time + phases).mean(axis=1)

    loudness = 10 ** random.uniform(-2, 0, (_CLIPS, 1))
    clean = loudness * waves(0.01, 0.1, 3)
    heard = clean + 0.3 * loudness * waves(0.25, 0.4, 1)
    shaped = [x.reshape(_CLIPS, 1, _LENGTH, 1).astype("float32") for x in (heard, clean)]
    return (*shaped, loudness[:, 0].astype("float32"))


def tasks():
    """Yields the tasks."""
    layers = keras.layers
    images = digits("train"), digits("test")
    random = np.random.default_rng(0)
    noisy = [x + random.normal(0, 0.1, x.shape).astype("float32") for x in images]

    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((_SIDE, _SIDE, 1), name="image")
    for n in range(3):
        x = layers.Conv2D(16, 3, padding="same", activation="relu", name=f"conv{n}")(x)
    x = layers.Conv2D(1, 3, padding="same", name="last")(x)
    model = keras.Model(inputs, x)
    train, test = zip(noisy, images)
    yield Task("denoise", model, train, test, "dB")

    x = inputs = keras.Input((_SIDE, _SIDE, 1), name="image")
    for n in range(3):
        x = layers.Conv2D(16, 3, 1 + (n > 0), padding="same", activation="relu", name=f"conv{n}")(x)
    x = layers.Dense(32, activation="relu", name="dense")(layers.Flatten()(x))
    model = keras.Model(inputs, layers.Dense(2, name="last")(x))
    yield Task("locate", model, blobs(0), blobs(1), "px")

    x = inputs = keras.Input((1, _LENGTH, 1), name="sound")
    for n in range(2):
        x = layers.Conv2D(8, (1, 9), padding="same", activation="relu", name=f"conv{n}")(x)
    model = keras.Model(inputs, layers.Conv2D(1, (1, 9), padding="same", name="last")(x))
    yield Task("hum", model, sounds(0), sounds(1), "dB")


def fitted(model, task, epochs, rate):
    """Trains a model."""
    x, y, *loudness = task.train
    # Every clip counts the same, whatever its loudness.
    weights = 1 / np.square(loudness[0])[:, None, None] if loudness else None
    steps = epochs * -(-len(x) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    model.compile(keras.optimizers.Adam(schedule), "mse")
    model.fit(x, y, sample_weight=weights, batch_size=64, epochs=epochs, verbose=0)
    return model


def float_file(model):
    """Returns the float `.tflite` file of a model."""
    signature = [keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32")]
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/float.tflite"
        model.export(path, format="litert", verbose=False, input_signature=signature)
        return pathlib.Path(path).read_bytes()


def quantized_file(contents, samples, bits, last_bits):
    """Returns a file with 8-bit weights, quantized by litert-quantizer.

    Args:
        contents: The float file.
        samples: Inputs to calibrate on.
        bits: Bits of activations.
        last_bits: Bits of the inputs and outputs of the last operator with weights.
    """
    interpreter = Interpreter(model_content=contents)
    last = interpreter.get_output_details()[0]["name"]
    recipe = recipe_manager.RecipeManager()
    operations = qtyping.TFLOperationName
    for regex, width in ((".*", bits), (f"^{last}.*", last_bits)):
        recipe.add_static_config(
            regex=regex,
            operation_name=operations.ALL_SUPPORTED,
            activation_num_bits=width,
            weight_num_bits=8,
            algorithm_key="min_max_uniform_quantize",
        )
    writer = quantizer.Quantizer(contents, recipe.get_quantization_recipe())
    signature = interpreter.get_signature_list()["serving_default"]["inputs"][0]
    quiet, ranges = io.StringIO(), {}
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        # Over several samples it would average the ranges, and clip what a regression computes.
        for x in samples:
            found = writer.calibrate({"serving_default": [{signature: x[None]}]})
            for name, ends in found.items():
                known = ranges.setdefault(name, ends)
                known["min"] = np.minimum(known["min"], ends["min"])
                known["max"] = np.maximum(known["max"], ends["max"])
        return bytes(writer.quantize(ranges).quantized_model)


def outputs_of(contents, inputs):
    """Returns the outputs of a file as real numbers, from LiteRT's reference kernels."""
    interpreter = Interpreter(
        model_content=contents, experimental_op_resolver_type=OpResolverType.BUILTIN_REF
    )
    interpreter.allocate_tensors()
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for x in inputs:
        interpreter.set_tensor(source["index"], _stored(x[None], source))
        interpreter.invoke()
        y = interpreter.get_tensor(result["index"])[0]
        scale, zero_point = result["quantization"]
        outputs.append(y if y.dtype == np.float32 else scale * (y.astype("float64") - zero_point))
    return np.array(outputs)


def _stored(x, details):
    if details["dtype"] == np.float32:
        return x
    scale, zero_point = details["quantization"]
    limits = np.iinfo(details["dtype"])
    stored = np.clip(np.round(x / scale) + zero_point, limits.min, limits.max)
    return stored.astype(details["dtype"])


def trained_file(model, task, activation_bits, **budget):
    """Returns a file of this package for `ethos_u`, after a third of the float network's epochs."""
    rule = dqmq_tf.LayerRule(pattern=".*", activation_bits=activation_bits)
    qmodel = dqmq_tf.quantize_model(
        model,
        target="ethos_u",
        budget=dqmq_tf.Budget(**budget),
        config=dqmq_tf.DQMQConfig(rules=rule),
    )
    fitted(qmodel, task, _EPOCHS.value // 3, 1e-3)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.tflite"
        report = dqmq_tf.convert(qmodel, path, data=task.test[0])
        precision, points = qmodel.precision(0), qmodel._parts.costs.activations
        bits = {p.name: precision.activations[p.tensors[0]].bit_width for p in points}
        print(f"{task.name}, {budget}: {report.vela.cycles} cycles, activations {bits}", flush=True)
        return path.read_bytes()


def rows_of(task):
    """Yields the rows of a task."""
    model, inputs = fitted(task.model, task, _EPOCHS.value, 3e-3), task.test[0]
    yield Row(task.name, "float", float(task.score(model.predict(inputs, verbose=0))), task.unit)
    contents = float_file(model)
    files = {
        "activations of 8 bits": quantized_file(contents, task.train[0][:_SAMPLES], 8, 8),
        "the last layer in 16 bits": quantized_file(contents, task.train[0][:_SAMPLES], 8, 16),
        "activations of 16 bits": quantized_file(contents, task.train[0][:_SAMPLES], 16, 16),
    }
    ends = [trained_file(model, task, bits, size_bytes=1e9) for bits in (8, 16)]
    files |= {f"dqmq_tf, trained at {bits} bits": file for bits, file in zip((8, 16), ends)}
    low, high = (vela.compile_file(file)[1].cycles for file in ends)
    for share in _SHARES:
        budget = round(low + share * (high - low))
        file = trained_file(model, task, (8, 16), vela_cycles=budget)
        files[f"dqmq_tf, trained at 8 or 16 bits within {budget:,} cycles"] = file
    for name, file in files.items():
        report = vela.compile_file(file)[1]
        yield Row(
            task.name,
            name,
            float(task.score(outputs_of(file, inputs))),
            task.unit,
            report.cycles,
            report.sram_bytes,
            report.flash_bytes,
            report.cpu_operators,
        )


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    logging.set_verbosity(logging.ERROR)
    rows, record = [], RecordedRows(_OUTPUT.value, "task", "file")
    for task in tasks():
        if _TASK.value not in (None, task.name):
            continue
        for row in rows_of(task):
            rows.append(row)
            record.add(row)
            print(f"{row.task}, {row.file}: {row.score:.3f} {row.unit}", flush=True)
    table = rich.table.Table(title="Ethos-U55-128", title_justify="left")
    for name in ("task", "file", "score", "cycles", "SRAM", "flash", "on the CPU"):
        table.add_column(name, justify="left" if name in ("task", "file") else "right")
    for row in rows:
        costs = (row.cycles, row.sram_bytes, row.flash_bytes, row.cpu_operators)
        table.add_row(
            row.task,
            row.file,
            f"{row.score:.3f} {row.unit}",
            *("" if n is None else f"{n:,}" for n in costs),
        )
    rich.console.Console(width=110).print(table)


if __name__ == "__main__":
    app.run(main)
