"""What a `DQMQModel` is made of."""

import dataclasses

import keras

from dqmq_tf.config import Budget, DQMQConfig


@dataclasses.dataclass(kw_only=True)
class Parts:
    """What a `DQMQModel` is made of, beside its graph; views on its layers, not tracked by Keras.

    Attributes:
        body: The float model whose variables the quantized graph uses.
        instrumented: The same graph with the decision among its outputs.
        encoder, policy: The layers that decide.
        affines: The `QualityAffine`s.
        quantizers: The `ActivationQuantizer` of each activation point.
        wrappers: `{site: QuantizeWrapper}`.
        norms: The `BatchNormalization`s that a training step calls once.
        costs, target, budget, config: See `quantize_model`.
        bit_ops: By which encoder and normalization were measured out.
        measure_file: `measure_file(model, precision)` gives the bytes of the file by kind of budget,
            or None (see `dqmq_tf.export.convert.measure`).
    """

    body: keras.Model
    instrumented: keras.Model
    encoder: keras.layers.Layer
    policy: keras.layers.Layer
    affines: list
    quantizers: list
    wrappers: dict
    norms: list
    costs: object
    target: object
    budget: Budget
    config: DQMQConfig
    bit_ops: float
    measure_file: object
