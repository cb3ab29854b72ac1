"""Rebuilds single layers of `tf_keras` (Keras 2) as layers of Keras 3, without their weights."""

import inspect
from collections.abc import Mapping
from typing import Any

import keras

from dqmq_tf.errors import UnsupportedLayerError

# Layers that have one name, one meaning and one order of weights in both. An activation, a pooling
# or a cell of the user's own is not among them.
_LAYERS = frozenset(
    {
        "Activation", "ActivityRegularization", "Add", "AlphaDropout", "Average",
        "AveragePooling1D", "AveragePooling2D", "AveragePooling3D", "BatchNormalization",
        "Bidirectional", "Concatenate", "Conv1D", "Conv1DTranspose", "Conv2D", "Conv2DTranspose",
        "Conv3D", "Cropping1D", "Cropping2D", "Dense", "DepthwiseConv1D", "DepthwiseConv2D", "Dot",
        "Dropout", "ELU", "Embedding", "Flatten", "GRU", "GaussianDropout", "GaussianNoise",
        "GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D",
        "GlobalMaxPooling2D", "GroupNormalization", "LSTM", "LayerNormalization", "LeakyReLU",
        "Masking", "MaxPooling1D", "MaxPooling2D", "MaxPooling3D", "Maximum", "Minimum", "Multiply",
        "PReLU", "Permute", "ReLU", "RepeatVector", "Rescaling", "Reshape", "SeparableConv1D",
        "SeparableConv2D", "SimpleRNN", "Softmax", "SpatialDropout1D", "SpatialDropout2D",
        "Subtract", "TimeDistributed", "UpSampling1D", "UpSampling2D", "ZeroPadding1D",
        "ZeroPadding2D",
    }
)  # fmt: skip
# Arguments that Keras 3 calls otherwise, by layer.
_RENAMED = {("LeakyReLU", "alpha"): "negative_slope"}
# Arguments that say nothing that a layer with weights and a known input would not know.
_SUPERFLUOUS = {
    "batch_input_shape",
    "implementation",
    "input_length",
    "zero_output_for_mask",
}
_BASE_ARGUMENTS = {"dtype", "name", "trainable"}
_ADVICE = "Replace the layer in the tf_keras model, or build the model with Keras 3."


def rebuilt(layer: Any, path: str) -> keras.layers.Layer:
    """Returns a new layer of Keras 3 for a layer of `tf_keras`.

    Args:
        layer: The layer.
        path: Its path, for error messages.

    Raises:
        UnsupportedLayerError: If Keras 3 has no such layer, or if an option has no counterpart.
    """
    kind = type(layer).__name__
    module = type(layer).__module__.partition(".")[0]
    if kind not in _LAYERS or module != "tf_keras":
        raise UnsupportedLayerError(
            path, f"{type(layer).__module__}.{kind}: not among the layers to rebuild", _ADVICE
        )
    layer_class = getattr(keras.layers, kind)
    accepted = _BASE_ARGUMENTS | set(inspect.signature(layer_class.__init__).parameters)
    options: dict[str, Any] = {}
    for old_name, value in layer.get_config().items():
        name = _RENAMED.get((kind, old_name), old_name)
        if name in _SUPERFLUOUS or name.endswith("_initializer"):
            continue  # The weights are set after this.
        if name in ("layer", "backward_layer"):
            is_forward = kind == "Bidirectional" and name == "layer"
            inner: Any = getattr(layer, "forward_layer" if is_forward else name)
            options[name] = rebuilt(inner, f"{path}/{inner.name}")
            continue
        if name not in accepted:
            # One group, or nothing, is what a layer without the argument has.
            if value is not None and value is not False and (value is True or value != 1):
                raise UnsupportedLayerError(
                    path, f"{kind}: Keras 3 has no {old_name}={value!r}", _ADVICE
                )
            continue
        options[name] = _converted(value, name)
    try:
        return layer_class(**options)
    except (TypeError, ValueError) as error:
        raise UnsupportedLayerError(
            path, f"{kind}: Keras 3 refuses it: {error}", _ADVICE
        ) from error


def new_input(layer: Any, path: str) -> Any:
    """Returns the Keras 3 input for an `InputLayer` of `tf_keras`.

    Raises:
        UnsupportedLayerError: If the input is sparse or ragged.
    """
    config = layer.get_config()
    for option in ("sparse", "ragged"):
        if config.get(option):
            raise UnsupportedLayerError(path, f"InputLayer: {option}=True", _ADVICE)
    shape = tuple(config.get("batch_input_shape") or config["batch_shape"])
    return keras.Input(batch_shape=shape, dtype=config["dtype"], name=config["name"])


def _converted(value: Any, name: str) -> Any:
    """Returns an option of Keras 2 in the form that Keras 3 takes."""
    if name == "dtype" and isinstance(value, Mapping):
        return value["config"]["name"]
    if name == "axis" and isinstance(value, (list, tuple)) and len(value) == 1:
        return int(value[0])
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list) or type(value).__name__ == "ListWrapper":
        return tuple(value)
    return value
