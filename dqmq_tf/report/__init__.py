"""Summaries: tables and figures of what was decided."""
