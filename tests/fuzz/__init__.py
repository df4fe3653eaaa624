"""Fuzzing of everything that reshard reads; see ``docs/security.md``."""
