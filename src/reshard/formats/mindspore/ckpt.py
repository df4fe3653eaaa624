"""MindSpore ``.ckpt`` objects: each tensor found by ranged reads, and new objects laid out before a byte moves.

An object is one protocol buffer after the other, each a ``Checkpoint`` of a single value, so that the
whole reads as one message; there is no list of contents anywhere::

    0A <length> 0A <length> name 12 <length> { 08 extent }* 12 <length> type 1A <length> bytes

A tensor of more than 512 MiB is several values, neighbours, of one name and the full shape each. A
checksum may follow the last value. ``scan_ckpt`` reads all of it that is no tensor's bytes, strictly: what
MindSpore fills with zeros, cuts off or overwrites without a word (contents that do not fit their
shapes, names that come again later) is refused with the tensors' names.

Differences between what MindSpore saves, loads and what is done here:

- Shape (), saved as [0] before MindSpore 2.5, is a scalar to its reader and here. Shape (0,) is written the
  same way and would be loaded as a scalar of value 0: read here as the empty tensor that it was, never written.
- Other empty tensors are left out by a normal save. They are written here, and MindSpore loads them.
- Text (``append_dict``) goes from .ckpt to .ckpt only; safetensors cannot hold it.
- Encrypted objects and map parameters (hash tables of embeddings) are refused by name.

Source: mindspore 2.10.0, ``checkpoint.proto`` and ``train/serialization.py``; its wheel was run on every
form named here.
"""

from __future__ import annotations
