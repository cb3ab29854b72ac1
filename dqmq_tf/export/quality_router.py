"""The quality router: the trained encoder and policy as a small TFLite graph.

From the model's first input it computes the score by which the policy sorts inputs into precision
profiles (`BitWidthPolicy.score`), and the number of the profile. The one convolution that reads the
image runs in integers, on the grid of the input. Its filters are scaled so that each response
fills the int8 grid. The rest works on a few dozen numbers in floating point.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from dqmq_tf import flatbuffer
from dqmq_tf.flatbuffer import ModelT, TFLiteFile, activation_tensors
from dqmq_tf.lowering import float_file, folding, quantization_plan
from dqmq_tf.lowering.lowered_model import as_in_files
from dqmq_tf.model import DQMQModel
from dqmq_tf.policy import quality_encoder
from dqmq_tf.precision import ActivationPrecision, WeightPrecision

PROFILE, SCORE = "profile", "score"
# The largest responses are rare. Clipping them gives the others a finer grid.
_CLIPPED_PERCENT = 99.9
# Smaller responses are rounding errors.
_SMALLEST_GAIN = 1e-6
_RESPONSE = ActivationPrecision(step=float(np.float32(1 / 127)), zero_point=128, bit_width=8)
_SAMPLES = 256


def build_router(
    qmodel: DQMQModel, inputs: np.ndarray, grid: ActivationPrecision | None
) -> TFLiteFile:
    """Builds the router of a frozen model.

    Args:
        qmodel: A `DQMQModel` that is frozen to several profiles.
        inputs: Typical values of the model's first input, `[N, ...]`, which scale the filters.
        grid: The `ActivationPrecision` of that input. None if it is in floating point.

    Returns:
        A file with one input, the model's first input in float32 with a batch size of one. Its outputs
        are `profile`, int32 `[1]`; `score`, float32 `[1]`; and for each threshold whether the score
        is above it, bool `[1]`.
    """
    encoder, policy = qmodel._parts.encoder, qmodel._parts.policy
    with as_in_files():
        kernel, gain = _kernel_and_gain(encoder, inputs[:_SAMPLES])
        weights = _quantized(kernel, 1.0 if grid is None else grid.step)
        model = _keras_router(encoder, policy, weights, gain, inputs.shape[1:])
        file = float_file.export_float(model)
    if grid is None:
        return file
    _name(file.model)
    file.edited()
    return quantization_plan.quantize(file, _plan(file.model, weights, grid))


def _kernel_and_gain(encoder: Any, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns filters `[3, 3, C, F + C]` for raw inputs and their gains `[F + C]`.

    The filters are scaled so that responses reach 1. A gain is the true value of a response of 1.
    Filters that do not respond, such as horizontal ones on inputs of one column, become 0.
    """
    scale = float(ops.convert_to_numpy(encoder.input_scale))
    shape = [n or -1 for n in quality_encoder.as_image_shape((None, *inputs.shape[1:]))[1:]]
    # In float32, the sums of a convolution depend on the processor.
    images = np.asarray(inputs, "float64").reshape(-1, *shape)
    taps = quality_encoder.pixel_taps(images.shape[-1])
    kernel = np.concatenate([ops.convert_to_numpy(encoder.kernel), taps], axis=-1) / scale
    response = ops.conv(images, kernel.astype("float64"), strides=encoder.stride, padding="same")
    response = np.abs(ops.convert_to_numpy(response)).reshape(-1, kernel.shape[-1])
    gain = np.percentile(response, _CLIPPED_PERCENT, axis=0)
    gain[encoder.filters :] = response[:, encoder.filters :].max()
    responds = gain > _SMALLEST_GAIN
    gain = np.where(responds, gain, 1.0)
    return kernel * responds / gain, gain.astype("float32")


def _quantized(kernel: np.ndarray, input_step: float) -> folding.FoldedWeights:
    """Returns the filters as int8 `FoldedWeights`, one scale per filter."""
    largest = np.abs(kernel).max(axis=(0, 1, 2), keepdims=True)
    step = np.where(largest > 0, largest, 1.0) / 127
    precision = WeightPrecision(
        integers=np.rint(kernel / step).astype("int32"), step=step.astype("float32"), bit_width=8
    )
    return folding.fold_weights(
        "router", "kernel", folding.CONVOLUTION, precision, input_step=input_step
    )


def _keras_router(
    encoder: Any,
    policy: Any,
    weights: folding.FoldedWeights,
    gain: np.ndarray,
    shape: tuple[int | None, ...],
) -> keras.Model:
    """Returns the functional model from the input to `(profile, score)`."""
    x = image = keras.Input(shape)
    if len(shape) != 3:
        x = keras.layers.Reshape(
            [n or -1 for n in quality_encoder.as_image_shape((None, *shape))[1:]]
        )(x)
    filters = encoder.filters
    convolution = keras.layers.Conv2D(
        len(gain),
        3,
        encoder.stride,
        padding="same",
        data_format="channels_last",
        use_bias=True,
        name="response",
    )
    response = convolution(x)
    convolution.kernel.assign(folding.keras_kernel(weights, convolution.kernel.shape))
    means = ops.mean(ops.abs(response), axis=(1, 2))[:, :filters] * gain[:filters]
    squares = ops.mean(ops.square(response), axis=(1, 2)) * np.square(gain)
    magnitude = means + quality_encoder.EPSILON
    root = ops.sqrt(squares[:, :filters] + quality_encoder.EPSILON**2)
    pixels = ops.mean(response, axis=(1, 2))[:, filters:] * gain[filters:]
    mean = ops.mean(pixels, axis=1, keepdims=True)
    variance = ops.mean(squares[:, filters:], axis=1, keepdims=True) - ops.square(mean)
    spread = ops.sqrt(ops.maximum(variance, 0.0) + quality_encoder.EPSILON**2)
    features = ops.concatenate(
        [ops.log(magnitude), ops.log(root / magnitude), mean, ops.log(spread)], axis=1
    )
    centre, variance = map(ops.convert_to_numpy, (encoder.feature_mean, encoder.feature_variance))
    features = (features - centre) / np.sqrt(variance + quality_encoder.VARIANCE_FLOOR)
    features = ops.clip(features, -quality_encoder.FEATURE_LIMIT, quality_encoder.FEATURE_LIMIT)
    hidden = _dense(features, encoder.hidden_kernel, encoder.hidden_bias)
    z = _dense(hidden, encoder.output_kernel)
    direction = ops.convert_to_numpy(policy.direction).mean(axis=0)
    score = ops.sum(z * direction, axis=-1)
    thresholds = ops.convert_to_numpy(policy.thresholds)[: policy.profiles - 1]
    above = [score > float(threshold) for threshold in thresholds]
    profile = sum(ops.cast(condition, "int32") for condition in above)
    return keras.Model(image, [profile, score, *above])


def _dense(x: Any, kernel: Any, bias: Any = None) -> Any:
    kernel = ops.convert_to_numpy(kernel)
    layer = keras.layers.Dense(kernel.shape[1], activation="tanh")
    result = layer(x)
    layer.kernel.assign(kernel)
    if bias is not None:
        layer.bias.assign(bias)
    return result


def _name(model: ModelT) -> None:
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        tensor.name = f"r{index}".encode()


def _plan(
    model: ModelT, weights: folding.FoldedWeights, grid: ActivationPrecision
) -> quantization_plan.Plan:
    """Returns a plan with integers up to the convolution's response and floating point after it."""
    graph, floats = model.subgraphs[0], set(activation_tensors(model, model.subgraphs[0]))
    activations: dict[int, ActivationPrecision] = {}
    operators: list[int] = []
    for index, operator in enumerate(graph.operators):
        operators.append(index)
        activations |= {i: grid for i in operator.inputs if i in floats}
        if flatbuffer.operator_name(model, operator) == "CONV_2D":
            activations[operator.outputs[0]] = _RESPONSE
            return quantization_plan.Plan(
                activations=activations,
                weights={index: weights},
                operators=tuple(operators),
            )
    raise AssertionError("The router has no convolution.")
