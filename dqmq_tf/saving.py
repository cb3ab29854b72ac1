"""Which of Keras's formats can hold a quantized model, and what to use in place of the others."""

import os
from typing import Any

import keras

_SAVED_MODEL = "tf_saved_model"
_OTHER_FORMATS = ("litert", "onnx", "openvino", "torch")
_HDF5_ENDINGS = (".h5", ".hdf5")


class QuantizedSaving(keras.Model):
    """The methods by which a quantized model is saved, exported and loaded."""

    def save(
        self,
        filepath: str | os.PathLike[str],
        overwrite: bool = True,
        zipped: bool | None = None,
        **kwargs: Any,
    ) -> None:
        """Saves the model as a `.keras` file. Arguments are those of `keras.Model.save`.

        Raises:
            ValueError: If `filepath` ends in `.h5` or `.hdf5`.
        """
        if str(filepath).endswith(_HDF5_ENDINGS):
            raise ValueError(
                f"filepath={str(filepath)!r}: Keras cannot load a quantized model from an HDF5 "
                "file. Use a name that ends in '.keras'."
            )
        super().save(filepath, overwrite, zipped, **kwargs)

    def load_weights(
        self, filepath: str | os.PathLike[str], skip_mismatch: bool = False, **kwargs: Any
    ) -> None:
        """Loads weights that `save_weights` saved. Arguments are those of `keras.Model`'s method.

        Raises:
            ValueError: If the weights are not those of a quantized model of the same network,
                target and configuration.
        """
        try:
            super().load_weights(filepath, skip_mismatch, **kwargs)
        except ValueError as error:
            raise ValueError(
                f"{str(filepath)!r} does not hold the weights of quantized model {self.name!r}: "
                f"{str(error).splitlines()[0]} Load the weights of a float model into the float "
                "model, before quantize_model. Load those of a quantized model into one with the "
                "same target, budget and config, or save whole models as '.keras' files."
            ) from error
        self._training.forget_costs()

    def set_weights(self, weights: Any) -> None:
        super().set_weights(weights)
        self._training.forget_costs()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        self.compile(**keras.saving.deserialize_keras_object(config))

    def export(
        self,
        filepath: str | os.PathLike[str],
        format: str = _SAVED_MODEL,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Exports the model as a TensorFlow SavedModel, which computes what `predict` computes.

        Its weights are stored in floating point, and it rounds them when it runs: use
        `dqmq_tf.convert` for a device. Arguments are those of `keras.Model.export`.

        Raises:
            ValueError: If `format` is one that cannot hold the bits.
        """
        if format in _OTHER_FORMATS:
            raise ValueError(
                f"format={format!r} cannot hold the bits of a quantized model. Use "
                "dqmq_tf.convert(qmodel, 'model.tflite') for a quantized file, or "
                f"qmodel.float_model().export(..., format={format!r}) for one in floating point."
            )
        super().export(filepath, format, *args, **kwargs)

    def quantize(self, *args: Any, **kwargs: Any) -> None:
        """Raises an error: the model is quantized already.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            f"{self.name!r} is quantized already: `fit` learns its bits. For the method of Keras, "
            "call qmodel.float_model().quantize(...)."
        )


def check_parts(parts: Any) -> None:
    """Raises `ValueError` if a `DQMQModel` is created without its parts.

    `keras.models.clone_model` does so: it passes the arguments of `keras.Model`.
    """
    if parts is None:
        raise ValueError(
            "clone_model cannot clone a DQMQModel, and one cannot be made of inputs and outputs "
            "alone. Call dqmq_tf.quantize_model(model). For a copy call copy.deepcopy(qmodel), or "
            "dqmq_tf.DQMQModel.from_config(qmodel.get_config()) for one with new weights."
        )
