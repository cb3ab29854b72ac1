"""`quantize_model`: from a float Keras model to a `DQMQModel`."""

import warnings
from typing import Any

import keras

from dqmq_tf import assembly, targets
from dqmq_tf.config import Budget, DQMQConfig
from dqmq_tf.layers import QuantizeWrapper
from dqmq_tf.model import DQMQModel
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.targets import Target


def quantize_model(
    model: keras.Model,
    *,
    target: str | Target = "android",
    budget: Budget | None = None,
    config: DQMQConfig | None = None,
) -> DQMQModel:
    """Returns a `DQMQModel` with the inputs, outputs, layer names and weights of a Keras model.

    A layer that needs several kernels on a device, such as a separable convolution, is split into
    several layers. `dqmq_tf.graph.splitting.split_layers` lists their names. A rule for such a
    layer holds for all its parts.

    Args:
        model: A Sequential or functional model of Keras 3. It may contain nested models, shared
            layers and custom layers. It is not changed.
        target: A `Target`, or the name of one: `"android"`, `"android_small"`,
            `"microcontroller"`, `"ethos_u"` or `"simulation"`.
        budget: A `Budget`. None for a default: a mean of 4 bits for the target `"simulation"`, and
            the bytes of a file with about 5 bits per weight for the other targets.
        config: A `DQMQConfig`. None for the defaults.

    Returns:
        A `DQMQModel`, ready for `compile` and `fit`. For a deployable target, its file is written
        once to learn its size. If `convert` would reject the model, a warning says why.

    Raises:
        ValueError: If the model is subclassed, quantized or not a Keras 3 model, if a rule asks for bit-widths
            that the target does not support, or if the budget is below the smallest possible cost.
        RuntimeError: If Keras does not run on the TensorFlow backend.

    Example:

    >>> qmodel = dqmq_tf.quantize_model(model, budget=dqmq_tf.Budget(download_bytes=50_000))
    >>> qmodel.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    >>> qmodel.fit(dataset, epochs=8)
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "dqmq_tf needs Keras on the TensorFlow backend. Found "
            f"{keras.backend.backend()!r}. Set KERAS_BACKEND=tensorflow before importing keras."
        )
    _check_arguments(model, config)
    inputs, outputs, parts = assembly.build(
        model, targets.get(target), budget, config or DQMQConfig()
    )
    qmodel = DQMQModel(inputs, outputs, model.name, parts=parts)
    for wrapper in parts.wrappers.values():
        wrapper.fit_steps()
    keeper = qmodel._training.keeper
    keeper.set_budget(budget)
    if keeper.refusal is not None:
        warnings.warn(
            f"{model.name!r} can be trained, but in its current form it cannot be converted for "
            f"target {qmodel.target.name!r}: {keeper.refusal}",
            stacklevel=2,
        )
    return qmodel


def _check_arguments(model: Any, config: Any) -> None:
    """Raises `ValueError` if a model is quantized already, or if a configuration is of another type."""
    if _holds_quantized_layers(model):
        raise ValueError(
            f"Model {model.name!r} is quantized already, or contains layers of a quantized model. "
            "Quantize the float model, which qmodel.float_model() returns."
        )
    if config is not None and not isinstance(config, DQMQConfig):
        raise ValueError(
            f"config={config!r} is not a configuration: give a dqmq_tf.DQMQConfig, such as "
            "DQMQConfig(seed=1)."
        )


def _holds_quantized_layers(model: Any) -> bool:
    """Returns whether a model, or a model inside it, has layers that `quantize_model` creates."""
    if isinstance(model, (DQMQModel, BitWidthPolicy, QuantizeWrapper)):
        return True
    return isinstance(model, keras.Model) and any(map(_holds_quantized_layers, model.layers))
