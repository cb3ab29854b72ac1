"""Summaries of a quantized model: its bit-widths and their cost, as tables and figures."""
