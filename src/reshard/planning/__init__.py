"""Catalog, plan and steps: everything that is decided before a byte moves. No I/O, no clock, no randomness."""
