"""Functions of `keras.ops` run on the integer kernels of the layers that do the same."""

import keras
import numpy as np
import pytest
from helpers.networks import operators, shaken
from helpers.predictions import predicted
from keras import layers, ops

import dqmq_tf
from dqmq_tf import runtimes, targets
from dqmq_tf.lowering import float_file
from dqmq_tf.lowering.lowered_model import lower_model
from dqmq_tf.lowering.write_file import write_file

# Functions of two tensors that share a grid. The values of their outputs are those of their inputs.
EXACT = {
    "image": lambda x, y: [
        *ops.split(x, 2, axis=-1),
        ops.split(x, [1, 3], axis=1)[1],
        x[:, 1:-1, ::2, :3],
        x[..., 1],
        x[:, None, 0],
        ops.flip(x, axis=2),
        ops.concatenate([x, y], axis=-1),
        ops.stack([x, y], axis=1),
        ops.stack([x, x], axis=-1),
        ops.moveaxis(x, -1, 1),
        ops.transpose(x, (0, 2, 1, 3)),
        ops.max_pool(x, 2),
        ops.max(x, axis=(1, 2)),
        ops.amax(x, axis=(1, -1), keepdims=True),
        ops.image.resize(x, (4, 16), interpolation="nearest"),
        ops.pad(x, [[0, 0], [1, 1], [0, 2], [0, 0]]),
        ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]], mode="reflect"),
    ],
    "signal": lambda x, y: [
        x[:, -1],
        *ops.unstack(x, axis=1)[:2],
        *ops.unstack(x, axis=-1)[1:3],
        ops.take(x, [0, 2, -1], axis=1),
        ops.repeat(x, 3, axis=1),
        ops.tile(x, (1, 2, 3)),
        layers.RepeatVector(3)(x[:, 0]),
        ops.swapaxes(x, 1, 2),
        ops.squeeze(ops.expand_dims(x, 2)[:, :, :, 1:], 2),
        ops.append(x, y, axis=1),
        ops.hstack([x, y]),
        ops.max_pool(x, 2, strides=1, padding="same"),
        ops.max(x, axis=2),
        ops.pad(x, [[0, 0], [2, 0], [0, 0]]),
        ops.reshape(x, (-1, 3, 8)),
    ],
}
ROUNDED = {
    "image": lambda x, y: [
        ops.average_pool(x, 2, padding="same"),
        ops.average_pool(x, 8),
        ops.mean(x, axis=(1, 2)),
        ops.mean(x, axis=-1),
        ops.image.resize(x, (12, 12)),
    ],
    "signal": lambda x, y: [
        ops.average_pool(x, 2),
        ops.mean(x, axis=1),
        ops.softmax(x),
        ops.sigmoid(x),
        ops.tanh(x),
        ops.relu(x),
        ops.leaky_relu(x, 0.1),
        ops.hard_silu(x),
        x / 2.5,
        -x,
        x + 1.0,
        x + 2.0,
        x * np.array([1.0, 2.0, -3.0, 0.5], "float32"),
        ops.subtract(np.arange(4.0, dtype="float32"), x),
        x * y,
        ops.subtract(x, y),
    ],
}
SHAPES = {"image": (8, 8, 4), "signal": (6, 4)}
IN_FLOAT = {
    "it works along the batch axis": lambda x: ops.mean(x, axis=None, keepdims=True) + x,
    "its constant tensor differs between positions": lambda x: x + np.ones((6, 4), "float32"),
    "it divides by a tensor or by 0": lambda x: 1.0 / (x * x + 1.0),
    "it pads with another value than 0": lambda x: ops.pad(
        x, [[0, 0], [1, 1], [0, 0]], constant_values=1.0
    ),
    "it selects by indices that the model computes": lambda x: ops.take(
        x, ops.cast(x[:, 0, 0] * 0.0, "int32"), axis=1
    ),
    "it has an initial value": lambda x: ops.max(x, axis=1, initial=0.5),
    "it makes 65 copies, more than 64": lambda x: ops.repeat(x, 65, axis=1),
    "the integer kernel of softmax is for the last axis, not 1": lambda x: ops.softmax(x, axis=1),
    "TFLite has no integer kernel for Sum": lambda x: ops.sum(x, axis=1),
}
TWINS = [
    (lambda x: ops.max_pool(x, 2), lambda: layers.MaxPooling2D(2)),
    (lambda x: ops.average_pool(x, 2), lambda: layers.AveragePooling2D(2)),
    (lambda x: ops.average_pool(x, 8), lambda: layers.AveragePooling2D(8)),
    (lambda x: ops.mean(x, axis=(1, 2)), lambda: layers.GlobalAveragePooling2D()),
    (lambda x: ops.max(x, axis=(1, 2)), lambda: layers.GlobalMaxPooling2D()),
    (lambda x: ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), lambda: layers.ZeroPadding2D(1)),
    (lambda x: ops.image.resize(x, (4, 4)), lambda: layers.Resizing(4, 4)),
    (lambda x: x[:, 1:-1, 1:-1], lambda: layers.Cropping2D(1)),
    (lambda x: ops.softmax(x), lambda: layers.Softmax()),
]


def eight_bits(model):
    """A frozen model of 8 bits, and what it was calibrated on. No file was written for it."""
    rule = dqmq_tf.LayerRule(pattern=".*", weight_bits=(8,), activation_bits=(8,))
    qmodel = dqmq_tf.quantize_model(
        shaken(model),
        target="simulation",
        budget=dqmq_tf.Budget(mean_bit_width=8.0),
        config=dqmq_tf.DQMQConfig(rules=(rule,)),
    )
    generator = np.random.default_rng(0)
    data = [generator.uniform(-1, 1, (16, *x.shape[1:])).astype("float32") for x in model.inputs]
    data = data if len(data) > 1 else data[0]
    qmodel.calibrate(data)
    return qmodel.freeze(), data


def written(qmodel, target):
    """The file of a model and its lowered model."""
    lowered = lower_model(qmodel, 0)
    file = write_file(
        lowered, targets.get(target), {}, profile=0, io_dtype="float32", stage=lambda name: None
    )
    return file.file, lowered


@pytest.fixture(scope="module")
def qmodel_and_data():
    """A model that returns two tensors of each kind, and functions of them."""
    keras.utils.set_random_seed(0)
    inputs, outputs = [], []
    for kind, convolution in (("image", layers.Conv2D), ("signal", layers.Conv1D)):
        inputs.append(keras.Input(SHAPES[kind], name=kind))
        x, y = (convolution(4, 3, padding="same")(inputs[-1]) for _ in range(2))
        outputs += [x, y, *EXACT[kind](x, y), *ROUNDED[kind](x, y)]
    return eight_bits(keras.Model(inputs, outputs))


@pytest.mark.parametrize("target, quanta", [("android", 1), ("microcontroller", 4)])
def test_functions_run_on_integer_kernels(target, quanta, qmodel_and_data):
    qmodel, data = qmodel_and_data
    file, lowered = written(qmodel, target)
    assert lowered.float_layers == {}
    graph = file.model.subgraphs[0]
    for operator, (name, read, computed) in zip(graph.operators, operators(file.model)):
        if name == "DEQUANTIZE":
            assert operator.outputs[0] in graph.outputs
        elif name != "QUANTIZE":
            assert {*read, *computed} <= {"INT8", "INT32"}, name
    results = runtimes.run(file, data, runtime=targets.get(target).runtimes[0]).outputs
    # TFLite Micro rounds otherwise in the convolutions. Finer grids amplify the difference.
    for key, result, expected in zip(lowered.outputs, results, predicted(qmodel, data)):
        apart = np.abs(result - expected).max() / lowered.quantization[key].step
        assert apart <= quanta + 0.01, lowered.paths[key]
    for kind in SHAPES:
        moved = EXACT[kind](*results[:2])
        for number, values in enumerate(moved):
            np.testing.assert_allclose(results[2 + number], values, atol=1e-6, err_msg=str(number))
        results = results[2 + len(moved) + len(ROUNDED[kind](*results[:2])) :]


def test_a_function_becomes_the_operators_of_its_layer():
    def names(parts):
        keras.utils.set_random_seed(0)
        inputs = keras.Input(SHAPES["image"])
        x = layers.Conv2D(4, 3, padding="same")(inputs)
        qmodel, _ = eight_bits(keras.Model(inputs, [part(x) for part in parts]))
        file = float_file.export_float(lower_model(qmodel, 0).model)
        return sorted(name for name, *_ in operators(file.model)), len(qmodel._parts.quantizers)

    functions, twins = zip(*TWINS)
    assert names(functions) == names([twin() for twin in twins])


def test_what_no_integer_kernel_computes_is_in_floating_point_and_says_why():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPES["signal"])
    x = layers.Conv1D(4, 1)(inputs)
    qmodel, _ = eight_bits(keras.Model(inputs, [part(x) for part in IN_FLOAT.values()]))
    reasons = lower_model(qmodel, 0).float_layers.values()
    assert set(IN_FLOAT) <= set(reasons)


def test_functions_of_integers_are_no_quantized_arithmetic():
    inputs = keras.Input((6,), dtype="int32")
    x = layers.Embedding(9, 4)(ops.flip(inputs + 1, axis=1)[:, 1:])
    qmodel, _ = eight_bits(keras.Model(inputs, layers.Dense(2)(x)))
    reasons = set(lower_model(qmodel, 0).float_layers.values())
    assert reasons == {"it reads integers"}


def test_preprocessing_of_applications_runs_on_integer_kernels():
    images = keras.Input((8, 8, 3))
    modes = (
        keras.applications.mobilenet_v2,
        keras.applications.resnet50,
        keras.applications.densenet,
    )
    parts = [layers.Conv2D(2, 3)(mode.preprocess_input(images * 255.0)) for mode in modes]
    qmodel, data = eight_bits(keras.Model(images, parts))
    file, lowered = written(qmodel, "android")
    assert lowered.float_layers == {}
    results = runtimes.run(file, [data]).outputs
    for key, result, expected in zip(lowered.outputs, results, predicted(qmodel, data)):
        assert np.abs(result - expected).max() <= 1.01 * lowered.quantization[key].step


def test_functions_of_a_model_of_an_earlier_version_keep_their_quantizers():
    keras.utils.set_random_seed(0)
    inputs = keras.Input(SHAPES["image"])
    a, b = ops.split(layers.Conv2D(4, 3)(inputs), 2, axis=-1)
    model = keras.Model(inputs, layers.Conv2D(2, 1)(ops.max_pool(a, 2)) + ops.mean(b))
    qmodel, data = eight_bits(model)
    config = qmodel.get_config()
    del config["functions_share_scales"]
    earlier = dqmq_tf.DQMQModel.from_config(config)
    # One for each output of `split`, and one for `max_pool`.
    assert len(earlier._parts.quantizers) == len(qmodel._parts.quantizers) + 3
    again = dqmq_tf.DQMQModel.from_config(earlier.get_config())
    assert len(again._parts.quantizers) == len(earlier._parts.quantizers)
    earlier.calibrate(data)
    _, lowered = written(earlier.freeze(), "android")
    reasons = set(lowered.float_layers.values())
    assert "its output was trained with another quantization than its input" in reasons
