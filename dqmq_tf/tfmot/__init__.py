"""The interface of TFMOT: `quantize_annotate_layer`, `quantize_apply`, `QuantizeConfig`."""
