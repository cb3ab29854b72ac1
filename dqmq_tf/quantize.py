"""`quantize_model` makes a `DQMQModel` of a float model, `change_input_shape` gives it another size."""

import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import keras
from keras import ops

from dqmq_tf import assembly, targets
from dqmq_tf.config import Budget, DQMQConfig, LayerRule
from dqmq_tf.errors import check_quantized
from dqmq_tf.graph import trace
from dqmq_tf.graph.overrides import warn_of_training_methods
from dqmq_tf.graph.resizing import with_input_shapes
from dqmq_tf.graph.splitting import with_part_rules
from dqmq_tf.graph.unfolding import functional_form
from dqmq_tf.layers import QuantizeWrapper
from dqmq_tf.model import DQMQModel
from dqmq_tf.policy.bit_width_policy import BitWidthPolicy
from dqmq_tf.targets import Target
from dqmq_tf.terminal import output_console, stages
from dqmq_tf.training.exposure_trial import has_exposure, try_exposure

_ESTIMATED = (
    " Until a file can be written, the budget holds for an estimate of its size: leave some room."
)


def quantize_model(
    model: keras.Model,
    *,
    target: str | Target = "android",
    budget: Budget | None = None,
    config: DQMQConfig | None = None,
    data: Any = None,
    validation_data: Any = None,
) -> DQMQModel:
    """Returns a `DQMQModel` with the inputs, outputs, layer names and weights of a Keras model.

    A layer that needs several kernels on a device, such as a separable convolution, is split into
    several layers. `dqmq_tf.graph.splitting.split_layers` lists their names. A layer of a class of
    your own becomes a model of the layers that it calls (`dqmq_tf.graph.unfolding`). A rule for such
    a layer holds for all its parts. Multiplications and additions of constants in a row become one
    layer, with the name of the last (`dqmq_tf.graph.constant_merging`).

    Args:
        model: A Sequential or functional model of Keras 3, or a subclassed one that was called on data
            and whose `call` is made of layers and functions. It may contain nested models, shared
            layers and custom layers. It is not changed.
        target: A `Target`, or the name of one: `"android"`, `"android_small"`,
            `"microcontroller"`, `"ethos_u"` or `"simulation"`.
        budget: A `Budget`. None for a default: a mean of 4 bits for the target `"simulation"`, and
            the bytes of a file with about 5 bits per weight for the other targets.
        config: A `DQMQConfig`. None for the defaults.
        data, validation_data: Labeled batches, as `try_exposure` takes them, for a configuration with
            `exposure="auto"`. No other needs data.

    Returns:
        A `DQMQModel`, ready for `compile` and `fit`. For a deployable target, its file is written
        once to learn its size. If `convert` would reject the model, a warning says why. Another
        one names the methods for training that the class of the model overrides, such as
        `train_step`: the quantized model does not have them. A rule that matches no layer causes
        a warning as well.

    Raises:
        ValueError: If the model is quantized or not a Keras 3 model, if it is subclassed and not made
            of layers, if the class of a functional model overrides `call`, if a rule asks for bit-widths that the target does not
            support, or if the budget is below the smallest possible cost.
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
    config, target = _checked_config(model, config, data), targets.get(target)
    warn_of_training_methods(model)
    model, unfolded = functional_form(model, config)
    config = with_part_rules(config, unfolded)
    if config.exposure == "auto" and not has_exposure(model):
        trial = try_exposure(model, data, validation_data)
        output_console().print(str(trial), markup=False, highlight=False)
        model = trial.model
    with stages("Quantizing") as stage:
        stage("building the quantized model")
        inputs, outputs, parts = assembly.build(model, target, budget, config)
        qmodel = DQMQModel(inputs, outputs, model.name, parts=parts)
        stage("fitting the steps of weights")
        for wrapper in parts.wrappers.values():
            wrapper.fit_steps()
        qmodel._training.agreement.remember(model)
    _warn_of_zeros(model.name, parts)
    if config.rules:
        graph = trace(model)
        # A rule may also name a part of a layer that was split.
        nodes = (*graph.nodes, *parts.graph.nodes)
        paths = [*graph.input_names, *unfolded, *(node.path for node in nodes)]
        _warn_of_unmatched(config.rules, paths)
    keeper = qmodel._training.keeper
    keeper.set_budget(budget)
    if keeper.refusal is not None:
        warnings.warn(
            f"{model.name!r} can be trained, but in its current form it cannot be converted for "
            f"target {qmodel.target.name!r}: {keeper.refusal}"
            + (_ESTIMATED if budget is not None and parts.costs.in_bytes else ""),
            stacklevel=2,
        )
    return qmodel


def change_input_shape(qmodel: DQMQModel, *input_shapes: Sequence[int | None]) -> DQMQModel:
    """Returns a copy of a model for inputs of another size, with its weights and bits.

    A file has inputs of fixed size. A model that was trained on images of any size, with
    `keras.Input((None, None, 3))`, can be converted after this.

    Args:
        qmodel: A `DQMQModel`, trained or not. It is not changed.
        *input_shapes: The shape of each input of the model, without the batch axis.

    Returns:
        A new `DQMQModel` in the same phase. It is not compiled.

    Raises:
        ValueError: If `qmodel` is not a `DQMQModel`, if the number of shapes is not the number of
            inputs, if a shape does not fit an input, or if a layer does not accept inputs of these
            sizes, as a `Dense` layer after a `Flatten` does not.

    Example:

    >>> fixed = dqmq_tf.change_input_shape(qmodel, (224, 224, 3))
    >>> dqmq_tf.convert(fixed, "model.tflite", data=images)
    """
    check_quantized(qmodel)
    inputs = qmodel.inputs
    if len(input_shapes) != len(inputs):
        raise ValueError(
            f"{qmodel.name!r} has {len(inputs)} inputs, but change_input_shape got "
            f"{len(input_shapes)} shapes. Pass one shape for each, without the batch axis."
        )
    for x, shape in zip(inputs, input_shapes):
        if not hasattr(shape, "__len__") or len(shape) != len(x.shape) - 1:
            raise ValueError(
                f"Input {x.name!r} has shape {tuple(x.shape[1:])}, but change_input_shape got "
                f"{shape!r}. Pass a shape of as many axes, without the batch axis."
            )
    shapes = [(x.shape[0], *shape) for x, shape in zip(inputs, input_shapes)]
    try:
        body = with_input_shapes(qmodel._parts.current_body(), shapes)
        resized = DQMQModel._build_again(body, qmodel._settings())
        resized.set_weights(qmodel.get_weights())
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(
            f"{qmodel.name!r} cannot run on inputs of shapes {[s[1:] for s in shapes]}: {reason} "
            "Pass other shapes, or use layers that accept any size, such as global pooling before "
            "the first Dense layer."
        ) from error
    _copy_policy(qmodel, resized)
    too_large = resized._training.keeper.meet_new_file()
    if too_large is not None:
        warnings.warn(
            f"With its present bits, the file of {qmodel.name!r} takes about {too_large:,.0f} bytes, but "
            f"its budget is {resized.budget.value:,g}: the size of the inputs was not known in "
            "training. Call fit, which lowers the bits and fine-tunes. convert alone lowers them and "
            "loses accuracy.",
            stacklevel=2,
        )
    return resized


def _copy_policy(qmodel: DQMQModel, resized: DQMQModel) -> None:
    """Copies what a policy knows beside its weights. Vela measures the inputs of another size itself."""
    policy, costs = resized._parts.policy, resized._parts.costs
    stored: dict[str, Any] = {}
    qmodel._parts.policy.save_own_variables(stored)
    policy.load_own_variables(stored)
    if costs.on_npu:
        policy.byte_table.assign(ops.zeros_like(policy.byte_table))
        resized._training.keeper.measure()


def _checked_config(model: Any, config: Any, data: Any) -> DQMQConfig:
    """Returns the configuration. Raises `ValueError` if it or the model cannot be used."""
    if keras.config.floatx() != "float32":
        raise ValueError(
            f"keras.config.floatx() is {keras.config.floatx()!r}, but quantization needs float32. Call "
            'keras.config.set_floatx("float32") before you build the model. To train in half '
            'precision, use keras.mixed_precision.set_global_policy("mixed_float16").'
        )
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
    config = config or DQMQConfig()
    if config.exposure == "auto" and data is None:
        raise ValueError(
            'exposure="auto" trains the float model for a short time. Pass data=..., the labeled '
            "training data, to quantize_model."
        )
    if config.exposure is None and data is not None:
        raise ValueError(
            'quantize_model got data, which it needs for DQMQConfig(exposure="auto") alone. Leave them '
            "out, or set exposure."
        )
    return config


def _warn_of_zeros(name: str, parts: Any) -> None:
    """Warns, at the caller of `quantize_model`, of layers with a quantized variable of zeros."""
    paths = [
        repr(path)
        for path, wrapper in parts.wrappers.items()
        if any(not wrapper.kernel(point["variable"]).numpy().any() for point in wrapper.points)
    ]
    if paths:
        warnings.warn(
            f"{name!r}: all weights of {', '.join(paths)} are 0, so nothing says which range they and "
            "their outputs will need, and they hardly learn. Train the float model before "
            "quantize_model.",
            stacklevel=3,
        )


def _warn_of_unmatched(rules: Iterable[LayerRule], paths: Sequence[str]) -> None:
    """Warns, at the caller of `quantize_model`, of each rule that matches none of the paths."""
    for rule in rules:
        if any(re.fullmatch(rule.pattern, path) for path in paths):
            continue
        likely = sorted(dict.fromkeys(paths), key=lambda path: not re.search(rule.pattern, path))
        warnings.warn(
            f"LayerRule(pattern={rule.pattern!r}) matches no layer, so it changes nothing. A pattern "
            f"must match the whole path of a layer or input, such as {', '.join(likely[:4])}. "
            "\".*conv.*\" matches every path that contains 'conv'.",
            stacklevel=3,
        )


def _holds_quantized_layers(model: Any) -> bool:
    """Returns whether a model, or a model inside it, has layers that `quantize_model` creates."""
    if isinstance(model, (DQMQModel, BitWidthPolicy, QuantizeWrapper)):
        return True
    return isinstance(model, keras.Model) and any(map(_holds_quantized_layers, model.layers))
