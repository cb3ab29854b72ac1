"""Finds out whether a float model gains from `layers.Exposure` in front of it."""

import dataclasses
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from dqmq_tf.graph.from_keras import trace
from dqmq_tf.graph.plain_pixels import IMAGE_RANK
from dqmq_tf.graph.rebuild import copy_model, put_in_front, single
from dqmq_tf.graph.splitting import free_name
from dqmq_tf.inputs import labeled_batches, structured
from dqmq_tf.layers.exposure import Exposure
from dqmq_tf.terminal import with_progress
from dqmq_tf.training.batch_statistics import normalizations
from dqmq_tf.training.objective import per_sample_losses

# The inputs of a batch in the structure of the model, labels, and sample weights if there are any.
_Batch = tuple[Any, ...]

_BATCH_SIZE = 32
# `Exposure` is for gray and color images.
_CHANNELS = (1, 3)
# Exposure adapts to this many images.
_ADAPT_IMAGES = 2048
# Without validation data, one batch of five is held back, until there are this many samples.
_HOLD_EVERY, _HOLD_SAMPLES = 5, 2048
# Batch-norm statistics are those of this many samples.
_STATISTICS_SAMPLES = 512
# A gain pays if it is this many times its standard error, from at least so many samples.
_CLEAR, _LEAST_SAMPLES = 2.0, 30


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExposureTrial:
    """What `try_exposure` found.

    Attributes:
        model: The model to go on with: the one behind `Exposure`, trained in the trial, or the model
            that was given, unchanged.
        pays: Whether `Exposure` is in front of it.
        loss: The mean loss without `Exposure` on the samples that were held back, after the trial.
        exposed_loss: The mean loss with it on the same samples.
        gain: `loss - exposed_loss`.
        error: The standard error of `gain` over these samples.
        steps: The steps that each of the two was trained.
        samples: The samples that were held back.
    """

    model: keras.Model
    pays: bool
    loss: float
    exposed_loss: float
    gain: float
    error: float
    steps: int
    samples: int

    def __str__(self) -> str:
        verdict = "pays" if self.pays else "does not pay"
        # The network had its whole training without the layer, and the layer a few steps.
        hope = "" if self.pays else " A network trained behind it from the start may still gain."
        return (
            f"Exposure {verdict}: after {self.steps} steps the loss on {self.samples} samples is "
            f"{self.loss:.4f} without it and {self.exposed_loss:.4f} with it, a gain of "
            f"{self.gain:.4f} ± {self.error:.4f}.{hope}"
        )


def try_exposure(
    model: keras.Model,
    data: Any,
    validation_data: Any = None,
    *,
    steps: int = 200,
    learning_rate: float = 0.001,
) -> ExposureTrial:
    """Trains a model with and without `layers.Exposure` in front, and returns the better one.

    Both start from the weights of the model and see the same batches in the same order. Statistics of
    batch normalizations are then measured anew. `Exposure` pays if the loss on other samples is lower
    with it, by more than twice the standard error of the difference. Both are float models: where
    activations get few bits, `Exposure` may bring more.

    The standard error needs a loss for each sample. A loss function of your own that returns one value
    for a batch is therefore computed for one sample at a time. That is right for means and sums over
    samples, and wrong for a loss that compares the samples of a batch with each other.

    `quantize_model` does this with `DQMQConfig(exposure="auto")`.

    Args:
        model: A compiled Keras model with one input of images `[height, width, 1 or 3]` in
            floating point. It is not changed.
        data: Labeled batches of the training data: a `tf.data.Dataset`, a tuple of arrays
            `(images, labels)`, or another form that `fit` takes. Of a dataset without an end, the
            first batches are used.
        validation_data: Labeled batches for the comparison, on which the model was not trained. None
            to hold back one batch of five of `data`. If the model has learned those, or if `data`
            repeats itself, the comparison is not fair.
        steps: The number of steps. Where `data` has fewer batches, its first 2,048 samples are read
            again and again.
        learning_rate: The learning rate of Adam at the start. It falls to 0 along a cosine.

    Returns:
        An `ExposureTrial`.

    Raises:
        ValueError: If the model is not compiled, has no such input or contains an `Exposure`, if
            the data do not fit it, or if there are too few of them.

    Example:

    >>> model.compile("adam", "sparse_categorical_crossentropy")
    >>> trial = dqmq_tf.try_exposure(model, train_dataset, validation_dataset)
    >>> print(trial)
    >>> qmodel = dqmq_tf.quantize_model(trial.model)
    """
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} is not valid: give a positive integer.")
    if not getattr(model, "compiled", False) or model.loss is None:
        raise ValueError(
            f"{model.name!r} is not compiled with a loss, which decides whether Exposure pays. Call "
            'model.compile(optimizer, loss) first, such as model.compile("adam", "mse").'
        )
    position = _image_input(model)
    stream = _labeled(_shuffled(data), model, "data", may_be_endless=True)
    first: list[_Batch] = []
    while _count(first) < _ADAPT_IMAGES and (batch := next(stream, None)):
        first.append(batch)
    exposed = _behind_exposure(model, position, first)
    rivals = [copy_model(model), exposed]
    # Keras's `get_compile_config` has them too, but fails for a loss that cannot be serialized.
    loss_weights = model._compile_config.config["loss_weights"]
    for rival in rivals:
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        rival.compile(
            keras.optimizers.Adam(schedule),
            loss=model.loss,
            loss_weights=loss_weights,
            run_eagerly=model.run_eagerly,
            jit_compile=model.jit_compile,
        )
    held_back: list[_Batch] = []
    if validation_data is not None:
        held_back.extend(_labeled(validation_data, model, "validation_data"))
        if _count(held_back) < _LEAST_SAMPLES:
            raise ValueError(
                f"Exposure cannot be tried on validation_data of {_count(held_back)} samples: give at "
                f"least {_LEAST_SAMPLES}."
            )
    hold_every = 0 if validation_data is not None else _HOLD_EVERY
    batches = itertools.islice(_to_train_on(first, stream, held_back, hold_every), steps)
    done = 0
    for batch in with_progress(batches, "Trying Exposure", steps):
        for rival in rivals:
            rival.train_on_batch(*batch)
        done += 1
    if not done or _count(held_back) < _LEAST_SAMPLES:
        raise ValueError(
            f"Exposure cannot be tried with {done} batches to train on and {_count(held_back)} samples "
            f"to compare: give more data, at least one batch and {_LEAST_SAMPLES} samples."
        )
    for rival in rivals:
        _average_statistics(rival, _not_held_back(first, held_back))
    losses = [_losses(rival, loss_weights, held_back) for rival in rivals]
    gains = losses[0] - losses[1]
    gain, error = float(gains.mean()), float(gains.std(ddof=1) / len(gains) ** 0.5)
    pays = gain > _CLEAR * error
    if not pays and validation_data is None:
        warnings.warn(
            f"Exposure does not pay on {len(gains)} samples of `data`. If the model was trained on "
            "them, it knows them better than the network with Exposure can after so few steps: pass "
            "images that it was not trained on, as validation_data or, on the command line, in --data.",
            stacklevel=2,
        )
    return ExposureTrial(
        model=exposed if pays else model,
        pays=pays,
        loss=float(losses[0].mean()),
        exposed_loss=float(losses[1].mean()),
        gain=gain,
        error=error,
        steps=done,
        samples=len(gains),
    )


def has_exposure(model: keras.Model) -> bool:
    """Whether a model, or a model inside it, contains an `Exposure`."""
    return any(isinstance(node.layer, Exposure) for node in trace(model).nodes)


def _image_input(model: keras.Model) -> int:
    """Returns the position of the input of images."""
    images = [
        position
        for position, x in enumerate(model.inputs)
        if len(x.shape) == IMAGE_RANK and x.shape[-1] in _CHANNELS and "float" in x.dtype
    ]
    is_exposed = has_exposure(model)
    if len(images) != 1 or is_exposed:
        found = ", ".join(f"{x.name} {x.dtype} {list(x.shape[1:])}" for x in model.inputs)
        found += " and an Exposure" if is_exposed else ""
        raise ValueError(
            "Exposure can be tried in front of a model that has none, with one input of images "
            f"[height, width, 1 or 3] in floating point. {model.name!r} has {found}. Put "
            "dqmq_tf.layers.Exposure where it belongs in the float model."
        )
    return images[0]


def _behind_exposure(model: keras.Model, position: int, batches: list[_Batch]) -> keras.Model:
    """Returns a copy of a model with an `Exposure` behind an input, adapted to its images."""
    images = [keras.tree.flatten(batch[0])[position] for batch in batches]
    if not images:
        raise ValueError("`data` holds no inputs: pass at least one.")
    lowest, highest = min(float(x.min()) for x in images), max(float(x.max()) for x in images)
    # Images of one batch may be dark, so the usual ranges are tried first.
    white = 1.0 if highest <= 1 else max(255.0, highest)
    value_range = (lowest, highest) if lowest < 0 else (0.0, white)
    own_name = free_name("exposure", [{other.name for other in model.layers}])
    layer = Exposure(value_range=value_range, name=own_name, dtype="float32")
    layer.adapt(images)
    return put_in_front(model, position, layer)


def _shuffled(data: Any) -> Any:
    """Returns a tuple of arrays in random order, as `fit` reads it, and other data as they are."""
    if not isinstance(data, tuple):
        return data
    arrays = keras.tree.map_structure(np.asarray, data)
    order = np.random.default_rng(0).permutation(len(keras.tree.flatten(arrays)[0]))
    return keras.tree.map_structure(lambda array: array[order], arrays)


def _labeled(
    data: Any, model: keras.Model, argument: str, may_be_endless: bool = False
) -> Iterator[_Batch]:
    batches = labeled_batches(
        data, model, batch_size=_BATCH_SIZE, argument=argument, may_be_endless=may_be_endless
    )
    for arrays, rest in batches:
        if not rest:
            raise ValueError(f"`{argument}` has no labels: pass elements (inputs, labels).")
        yield single(structured(arrays, model)), *rest


def _to_train_on(
    first: list[_Batch], others: Iterator[_Batch], held_back: list[_Batch], hold_every: int
) -> Iterator[_Batch]:
    """Yields the batches to train on. After the last one, the first ones come again and again.

    Args:
        first: The first batches.
        others: Those that follow.
        held_back: Batches that are held back are appended to this list.
        hold_every: One batch of so many is held back. 0 for none.
    """
    for number, batch in enumerate(itertools.chain(first, others)):
        if hold_every and number % hold_every == 0 and _count(held_back) < _HOLD_SAMPLES:
            held_back.append(batch)
        else:
            yield batch
    again = _not_held_back(first, held_back)
    while again:
        yield from again


def _not_held_back(first: list[_Batch], held_back: list[_Batch]) -> list[_Batch]:
    """Returns those of the first batches that are trained on."""
    held = set(map(id, held_back))
    return [batch for batch in first if id(batch) not in held]


def _average_statistics(model: keras.Model, batches: list[_Batch]) -> None:
    """Sets batch-norm statistics to their plain mean over batches, for the weights as they are.

    Behind a new layer a network sees other values. Moving statistics would need hundreds of steps to
    follow: with a momentum of 0.99, 0.99 ** 200 = 13 % of the old ones are left after 200.
    """
    norms = normalizations(trace(model))
    momenta = [norm.momentum for norm in norms]
    counts = itertools.accumulate(_count([batch]) for batch in batches)
    for number, (batch, count) in enumerate(zip(batches, counts)):
        for norm in norms:
            norm.momentum = number / (number + 1)
        model(batch[0], training=True)
        if count >= _STATISTICS_SAMPLES or not norms:
            break
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum


def _count(batches: list[_Batch]) -> int:
    return sum(len(keras.tree.flatten(batch[0])[0]) for batch in batches)


def _losses(model: keras.Model, loss_weights: Any, batches: list[_Batch]) -> np.ndarray:
    """Returns the loss of each sample."""
    parts = []
    # A Sequential model has one output, which needs no name.
    names = getattr(model, "output_names", None)
    for x, *rest in batches:
        y, *weights = keras.tree.map_structure(keras.ops.convert_to_tensor, rest)
        prediction = model(x, training=False)
        weight = weights[0] if weights else None
        values = per_sample_losses(
            model.loss, y, prediction, weight, loss_weights, names, separately=True
        )
        parts.append(keras.ops.convert_to_numpy(values))
    return np.concatenate(parts)
