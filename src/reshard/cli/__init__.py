"""Typer: one file a command; parse, call, show."""
