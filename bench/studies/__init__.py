"""Experiments that decide the default model's architecture, as programs."""
