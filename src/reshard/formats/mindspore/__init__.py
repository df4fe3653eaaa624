"""MindSpore's and MindSpore Transformers' formats.

- ``ckpt`` and ``ckpt_read``: ``.ckpt`` objects, written and read;
- ``rank_names`` and ``rank_objects``: the object of each ``rank_R/`` prefix that belongs to one checkpoint;
- ``iteration``: names and small objects of the folder of MindSpore Transformers 2.x; ``iteration_shards``: how it
  counts shards; ``iteration_metadata`` and ``iteration_encode``: its ``metadata.json``, read and written;
- ``strategy_file``: the content of a strategy file; ``strategy_json`` and ``strategy_protobuf``: its two forms;
  ``strategy_merge``: files of several stages, and a ``Strategy`` made of them and back.
"""
