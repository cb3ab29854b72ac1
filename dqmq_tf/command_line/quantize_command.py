"""The command `quantize`: trains a float model to mixed precision and writes its file."""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dqmq_tf import export, quality
from dqmq_tf.command_line import image_data
from dqmq_tf.command_line.loading import loaded
from dqmq_tf.config import BUDGET_KINDS, Budget, DQMQConfig
from dqmq_tf.export.artifacts import check_artifacts
from dqmq_tf.graph.resizing import with_input_shapes
from dqmq_tf.model import DQMQModel
from dqmq_tf.quantize import quantize_model
from dqmq_tf.report.summary import Summary, summary
from dqmq_tf.targets import TARGETS
from dqmq_tf.terminal import Lines, as_json
from dqmq_tf.training.callbacks import ProgressLine
from dqmq_tf.training.exposure_trial import try_exposure

_DEFAULT_CLEAN = 0.2
_DEFAULT_SEVERITY = (1, 5)
# Probabilities in float32 and float16 differ from 1 by less.
_SUM_TOLERANCE = 1e-2


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizeReport:
    """The result of `quantize`. Rich prints it as tables.

    Attributes:
        model: The path of the trained `DQMQModel`.
        classes: The names of the classes, in the order of the model's outputs.
        float_accuracy: The accuracy of the float model on the images that were held back. None if
            none were.
        accuracy: The accuracy of the quantized model on these images.
        summary: The `Summary` of the trained model.
        conversion: The `ConversionReport` of the file.
    """

    model: str
    classes: tuple[str, ...]
    float_accuracy: float | None
    accuracy: float | None
    summary: Summary
    conversion: export.ConversionReport

    def to_json(self) -> str:
        """Returns the report as a JSON string."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in ("summary", "conversion"):
            data[name] = json.loads(data[name].to_json())
        return as_json(data)

    def __rich__(self) -> Lines:
        parts: list[Any] = [self.summary, "", self.conversion, ""]
        if self.accuracy is not None and self.float_accuracy is not None:
            parts.append(
                f"Accuracy on the images held back: float {100 * self.float_accuracy:.2f} %, "
                f"quantized {100 * self.accuracy:.2f} %"
            )
        parts.append(f"The trained model is in {self.model}, the file in {self.conversion.path}")
        return Lines(parts)


def quantize(arguments: argparse.Namespace) -> QuantizeReport:
    """Trains a model, saves it, and writes its file.

    Args:
        arguments: The arguments of the command.

    Raises:
        ValueError: If model and data do not fit each other, or if an image cannot be read.
        DQMQError: If the model cannot be converted, or if the file fails a check.
    """
    check_artifacts(arguments.artifacts, arguments.output, TARGETS[arguments.target])
    # Keras prints its progress to standard output, which is for the report.
    with contextlib.redirect_stdout(sys.stderr):
        model = _load_float_model(arguments.model)
        form = image_data.input_format(
            model, arguments.image_size, arguments.value_range, arguments.crop
        )
        if None in model.inputs[0].shape[1:]:
            # A file has inputs of fixed size.
            batch = model.inputs[0].shape[0]
            model = with_input_shapes(model, [(batch, *form.size, form.channels)])
        keras.utils.set_random_seed(arguments.seed)
        try:
            return _train_and_convert(arguments, model, form)
        except tf.errors.OpError as error:
            _check_images(arguments, form)
            raise ValueError(str(error.message)) from error


def _train_and_convert(
    arguments: argparse.Namespace, model: keras.Model, form: image_data.InputFormat
) -> QuantizeReport:
    data = image_data.read(
        arguments.data,
        arguments.data_dir,
        arguments.split,
        form,
        batch_size=arguments.batch_size,
        validation_split=arguments.validation_split,
        seed=arguments.seed,
    )
    _check_classes(model, data.class_names)
    train = _for_model(data.train, arguments, form, arguments.seed, with_quality=False)
    held_back = None
    if data.validation is not None:
        held_back = _for_model(
            data.validation, arguments, form, arguments.seed + 1, with_quality=arguments.mix
        )
    images = next(iter(train))[0]
    loss, metric = _objective(model, images)
    model.compile(loss=loss, metrics=[metric])
    float_accuracy = None
    if held_back is not None:
        float_accuracy = _accuracy(model, held_back)
        print(f"Float model: {100 * float_accuracy:.2f} % of the images held back are right")
    kinds = [kind for kind in BUDGET_KINDS if getattr(arguments, kind) is not None]
    budget = Budget(**{kind: getattr(arguments, kind) for kind in kinds}) if kinds else None
    if arguments.exposure == "auto":
        # The images held back measure the result, so they must not decide about it.
        trial = try_exposure(model, train)
        print(trial)
        model = trial.model
    config = DQMQConfig(seed=arguments.seed)
    qmodel = quantize_model(model, target=arguments.target, budget=budget, config=config)
    qmodel.compile(keras.optimizers.Adam(arguments.learning_rate), loss, metrics=[metric])
    qmodel.fit(
        train.prefetch(tf.data.AUTOTUNE),
        epochs=arguments.epochs,
        verbose=0,
        callbacks=[ProgressLine()],
    )
    accuracy = None if held_back is None else _accuracy(qmodel, held_back)
    conversion = _save_and_convert(
        qmodel, arguments, train if held_back is None else held_back, form, data.class_names
    )
    return QuantizeReport(
        model=str(arguments.save),
        classes=data.class_names,
        float_accuracy=float_accuracy,
        accuracy=accuracy,
        summary=summary(qmodel, held_back),
        conversion=conversion,
    )


def _save_and_convert(
    qmodel: DQMQModel,
    arguments: argparse.Namespace,
    data: tf.data.Dataset,
    form: image_data.InputFormat,
    class_names: tuple[str, ...],
) -> export.ConversionReport:
    # Saved before the conversion, which may fail: the training must not be lost.
    qmodel.save(arguments.save)
    print(f"Saved {arguments.save}")
    report = export.convert(
        qmodel,
        arguments.output,
        data=data,
        io_dtype=arguments.io_dtype,
        verify=not arguments.noverify,
        artifacts=arguments.artifacts,
        # A classifier with one output names no class by its place.
        labels=class_names if len(class_names) == qmodel.outputs[0].shape[-1] else None,
        preprocessing=form.preprocessing(),
    )
    # The conversion has frozen the model.
    qmodel.save(arguments.save)
    return report


def _load_float_model(path: pathlib.Path) -> keras.Model:
    """Loads a float model without its optimizer and loss."""
    model = loaded(path, lambda file: keras.models.load_model(file, compile=False))
    if isinstance(model, DQMQModel):
        raise ValueError(
            f"{path} holds a DQMQModel, which is trained already. Use `dqmq_tf convert`, or give its "
            "float model, which qmodel.float_model() returns."
        )
    if len(model.outputs) != 1 or len(model.outputs[0].shape) != 2:
        shapes = ", ".join(str(list(x.shape[1:])) for x in model.outputs)
        raise ValueError(
            f"Model {model.name!r} has outputs of shape {shapes}, but `quantize` trains classifiers "
            "with one output [classes]. Train it in Python, with dqmq_tf.quantize_model."
        )
    return model


def _check_classes(model: keras.Model, class_names: tuple[str, ...]) -> None:
    count = model.outputs[0].shape[-1]
    if max(count, 2) != len(class_names):
        raise ValueError(
            f"Model {model.name!r} has {count} outputs, but the data has {len(class_names)} classes: "
            f"{', '.join(class_names[:12])}{', ...' if len(class_names) > 12 else ''}."
        )


def _for_model(
    data: tf.data.Dataset,
    arguments: argparse.Namespace,
    form: image_data.InputFormat,
    seed: int,
    with_quality: bool,
) -> tf.data.Dataset:
    """Returns images as the model takes them, of mixed quality if the user asks for it."""
    if arguments.mix:
        options = {} if arguments.kinds is None else {"kinds": arguments.kinds}
        data = quality.mixed_quality(
            data,
            severity=arguments.severity or _DEFAULT_SEVERITY,
            clean=_DEFAULT_CLEAN if arguments.clean is None else arguments.clean,
            seed=seed,
            with_quality=with_quality,
            value_range=(0, 255),
            **options,
        )
    return data.map(lambda image, *rest: (form.converted(image), *rest), tf.data.AUTOTUNE)


def _objective(model: keras.Model, images: tf.Tensor) -> tuple[Any, Any]:
    """Returns loss and metric for what a model predicts: probabilities or logits."""
    predictions = np.asarray(model.predict_on_batch(images))
    is_share = bool((predictions >= 0).all() and (predictions <= 1 + _SUM_TOLERANCE).all())
    if predictions.shape[-1] == 1:
        threshold = 0.5 if is_share else 0.0
        return (
            keras.losses.BinaryCrossentropy(from_logits=not is_share),
            keras.metrics.BinaryAccuracy("accuracy", threshold=threshold),
        )
    has_sum = np.allclose(predictions.sum(axis=-1), 1.0, atol=_SUM_TOLERANCE)
    return (
        keras.losses.SparseCategoricalCrossentropy(from_logits=not (is_share and has_sum)),
        keras.metrics.SparseCategoricalAccuracy("accuracy"),
    )


def _accuracy(model: keras.Model, data: tf.data.Dataset) -> float:
    """Returns the accuracy of a compiled model."""
    labeled = data.map(lambda image, label, *_: (image, label))
    return float(model.evaluate(labeled, verbose=0, return_dict=True)["accuracy"])


def _check_images(arguments: argparse.Namespace, form: image_data.InputFormat) -> None:
    """Raises `ValueError` with the path of the first image that TensorFlow cannot read."""
    if arguments.data.is_folder:
        path = image_data.first_unreadable(arguments.data.name, form.channels)
        if path is not None:
            raise ValueError(
                f"{path} is not an image that can be read: remove it, or save it again."
            )
