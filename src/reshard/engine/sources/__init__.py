"""Detect what lies at a URL and read its headers; one module per source format."""
