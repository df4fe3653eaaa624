"""reshard: model checkpoints in object stores, turned into other layouts without staging a byte on disk."""
