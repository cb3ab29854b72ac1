"""TFMOT's way in: `quantize_annotate_layer`, `quantize_apply`, `QuantizeConfig`."""
