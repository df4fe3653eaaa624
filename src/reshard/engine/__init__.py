"""Moves the bytes: reads headers, runs steps under a memory limit, commits, verifies."""
