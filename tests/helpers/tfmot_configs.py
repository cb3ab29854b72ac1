"""A `QuantizeConfig` of TFMOT with given quantizers, as a user would write one."""

from dqmq_tf.tfmot.quantize_config import tfmot


class ListedConfig(tfmot.quantization.keras.QuantizeConfig):
    """A config with given quantizers of weights, of the activation and of the output.

    Args:
        weights: `{name of a variable: quantizer}`, or None for no weights.
        activation: The quantizer of the layer's activation, or None.
        outputs: The quantizers of the output.
    """

    def __init__(self, weights=None, activation=None, outputs=()):
        self.weights, self.activation, self.outputs = weights or {}, activation, outputs

    def get_weights_and_quantizers(self, layer):
        return [(getattr(layer, name), quantizer) for name, quantizer in self.weights.items()]

    def get_activations_and_quantizers(self, layer):
        return [] if self.activation is None else [(layer.activation, self.activation)]

    def get_output_quantizers(self, layer):
        return list(self.outputs)

    def set_quantize_weights(self, layer, quantize_weights):
        raise AssertionError("not called: the quantized layer gets its kernels without it")

    set_quantize_activations = set_quantize_weights

    def get_config(self):
        return {}
