"""The front door: from a float Keras model to a `DQMQModel`."""

import warnings

import keras

from dqmq_tf import assembly, targets
from dqmq_tf.config import DQMQConfig
from dqmq_tf.model import DQMQModel


def quantize_model(model, *, target="android", budget=None, config=None):
    """Returns a `DQMQModel` with the inputs, outputs, layer names and weights of a Keras model.

    Layers that are several kernels on a device, such as a separable convolution, are taken apart:
    see `dqmq_tf.graph.splitting.split_layers` for the names of the parts. A rule for such a layer holds for
    all its parts.

    Args:
        model: A Keras 3 Sequential or functional model; nested models, shared layers and custom
            layers are fine. It is not changed.
        target: Name of a deployment target or a `Target`: `"android"`, `"android_small"`,
            `"microcontroller"`, `"ethos_u"` or `"simulation"`.
        budget: A `Budget`; None for a mean of 4 bits in simulation, and elsewhere for the bytes
            that the file takes at about 5 bits a weight.
        config: A `DQMQConfig`.

    Returns:
        A `DQMQModel`, ready for `compile` and `fit`. For a deployable target its file is written
        once to learn its size; if `convert` would refuse the model, a warning says why.

    Raises:
        ValueError: If the model is subclassed or not of Keras 3, if a rule asks for bits that the
            target does not run, or if the budget is below the smallest possible cost.

    Example:

    >>> qmodel = dqmq_tf.quantize_model(model, budget=dqmq_tf.Budget(download_bytes=50_000))
    >>> qmodel.compile(optimizer="adam", loss="sparse_categorical_crossentropy")
    >>> qmodel.fit(dataset, epochs=8)
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"dqmq_tf needs Keras on the TensorFlow backend, found {keras.backend.backend()!r}: "
            "set KERAS_BACKEND=tensorflow before keras is imported."
        )
    made = assembly.build(model, targets.get(target), budget, config or DQMQConfig())
    quantized = DQMQModel(*made, name=model.name)
    for wrapper in quantized._parts.wrappers.values():
        wrapper.fit_steps()
    keeper = quantized._training.keeper
    keeper.set_budget(budget)
    if keeper.refusal is not None:
        warnings.warn(
            f"{model.name!r} can be trained, but not converted for target "
            f"{quantized.target.name!r} as it stands: {keeper.refusal}",
            stacklevel=2,
        )
    return quantized
