"""MindSpore's and MindSpore Transformers' formats: checkpoints, strategy files, rank shards, iteration folders."""
