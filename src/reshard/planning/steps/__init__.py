"""Derive reads and parts: what fills a box, which outputs are written together, and where they are cut."""
