"""MindSpore's and MindSpore Transformers' own commands and functions, each run as one conversion."""
