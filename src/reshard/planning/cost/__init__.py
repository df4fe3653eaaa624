"""Count bytes, requests and memory, and estimate time and money."""
