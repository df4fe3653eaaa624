"""Bytes to values and back, without I/O: every format that reshard reads or writes, one module each.

Container formats hold tensors in one object:

- ``safetensors``, ``mindspore.ckpt`` (the format and writing) and ``mindspore.ckpt_read``;
- ``containers``: the table of them. A new one is a module that fills a ``container_format.ContainerFormat``, and one
  line in the table;
- ``frame``: the layout of an object that does not exist yet; every writer makes one.

Checkpoints of many objects:

- ``weight_index``: Hugging Face's index and MindSpore's ``param_name_map.json``;
- ``zarr`` (names and writing) and ``zarr_read``;
- ``mindspore``: iteration folders and rank shards.

How tensors are cut over ranks: ``layout_file``, the YAML that people write, with ``layout_rules``, its content, and
``device_grid``; MindSpore's strategy files are in ``mindspore``. How tensors are renamed: ``name_map``.

Shared by all: ``strict_json``, ``strict_yaml`` and ``protobuf`` parse hostile bytes; ``findings`` gathers all that is
wrong with a document. Every parser bounds its work before it allocates, and raises FormatError with object, place,
expected and found. A new format of another kind is one module here, used by a module of ``engine.sources`` that
detects it or of ``planning.targets`` that writes it.
"""
