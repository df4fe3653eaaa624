"""Bytes to values and back, without I/O: safetensors, indices, strategies, layout files."""
