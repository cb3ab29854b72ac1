"""TensorFlow Model Optimization (TFMOT), imported without side effects on Keras 3.

This is the only module that imports TFMOT, which is optional, slow to import and built on Keras 2.
Modules that can do without it import this one where they need it.
"""

import importlib
import os
from typing import Any

import keras


def _import_tfmot() -> Any:
    """Imports TFMOT without its two side effects on the process.

    TFMOT sets `TF_USE_LEGACY_KERAS` and reads `tf.keras`, which then stays Keras 2 if nobody used it
    before. During the import, `tf.keras` is replaced by Keras 3, whatever it was before. TFMOT then
    takes Keras 2 from the package `tf_keras`.
    """
    legacy = os.environ.get("TF_USE_LEGACY_KERAS")
    names = ("tensorflow", "tensorflow.compat.v1", "tensorflow.compat.v2")
    modules: list[Any] = [importlib.import_module(name) for name in names]
    originals = [vars(module)["keras"] for module in modules]
    try:
        for module in modules:
            module.keras = keras
        return importlib.import_module("tensorflow_model_optimization")
    except ImportError as error:
        raise ImportError(
            "dqmq_tf.tfmot.quantize_config needs TensorFlow Model Optimization and tf_keras. "
            'Install the extra `tfmot`: pip install ".[tfmot]" in the checkout of dqmq_tf '
            f"({error})."
        ) from error
    finally:
        for module, original in zip(modules, originals):
            module.keras = original
        if legacy is None:
            os.environ.pop("TF_USE_LEGACY_KERAS", None)
        else:
            os.environ["TF_USE_LEGACY_KERAS"] = legacy


tfmot = _import_tfmot()
# The public module does not offer all quantizers.
quantizers: Any = importlib.import_module(
    "tensorflow_model_optimization.python.core.quantization.keras.quantizers"
)
