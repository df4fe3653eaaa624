"""Compute and scatter within memory."""
