"""What stores answer: one target for each operation, through botocore's own parsers, with nothing sent.

An input holds answers, divided by :data:`SEPARATOR`. Each is a status, headers, an empty line, and a body. The last one
answers everything that is asked after it.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar
from unittest.mock import patch

from botocore.awsrequest import AWSResponse, HeadersDict
from fsspec import AbstractFileSystem

from reshard.errors import StorageError
from reshard.storage import Checksum, Location, Upload, read_object, s3_client
from reshard.storage.fsspec_store import FsspecStore
from reshard.storage.retry import RetryPolicy
from reshard.storage.s3_client import make_client
from reshard.storage.s3_settings import s3_settings
from reshard.storage.s3_store import S3Store
from reshard.tensor import ByteRange

Target = Callable[[bytes], object]

SEPARATOR = b"\0--\0"
"""Between the parts of an input that holds several."""
_URL = "http://answers.invalid"
_KEYS = {"ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "s"}
_SETTINGS = {
    "bucket": replace(s3_settings("b", _KEYS, _URL), transfers="boto3"),  # asked what it checks
    "aws": replace(s3_settings("b", _KEYS), transfers="boto3"),  # listed by ListObjectsV2, checks CRC-32C
}
_ONE_TRY = RetryPolicy(0.0, 0.0, 0.0, 0.0, 0.0)
_BODY = b"some bytes"
_CHECKSUM = Checksum(0x12345678, may_hash=True)
_MOST_REQUESTS = 40


class _Raw(io.BytesIO):
    """A body as urllib3 has it."""

    def stream(self, *_: object, **__: object) -> Iterator[bytes]:
        yield self.read()

    def shutdown(self) -> None:
        """Break off; there is no connection."""


def _answer(text: bytes) -> AWSResponse:
    head, _, body = text.replace(b"\r\n", b"\n").partition(b"\n\n")
    status, *lines = head.decode("latin-1").split("\n")
    fields = (line.partition(":") for line in lines if ":" in line)
    headers = HeadersDict({name.strip().lower(): value.strip() for name, _, value in fields})
    return AWSResponse(_URL, int(status) if status.isdecimal() and len(status) == 3 else 200, headers, _Raw(body))


class _Wire:
    """Stands for the network of a client: requests are neither made nor signed, answers are parsed by botocore."""

    def __init__(self, client: Any) -> None:
        self.answers: list[bytes] = []
        self.requests = 0
        self._endpoint = client._endpoint
        client._emit_api_params = lambda api_params, **_: api_params
        client._resolve_endpoint_ruleset = lambda *_: (_URL, {}, {})
        client._convert_to_request_dict = lambda context, **_: {"headers": {}, "body": b"", "context": context}
        client._make_request = self._send
        client.meta.events.register("before-send.s3", lambda **_: self._next())

    def _send(self, operation: Any, _request: object, context: Any) -> Any:
        found, error = self._endpoint._get_response(_NO_REQUEST, operation, context)
        if error is not None:
            raise error
        return found

    def _next(self) -> AWSResponse:
        self.requests += 1
        if self.requests > _MOST_REQUESTS:  # a store may always have more to list
            raise StorageError("enough was asked")
        return _answer(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


class _NoRequest:
    method, url, headers, body = "GET", _URL, HeadersDict(), b""


_NO_REQUEST = _NoRequest()


@cache
def _connected(name: str) -> tuple[s3_client.Connection, _Wire]:
    client = make_client(_SETTINGS["bucket"])
    with patch.object(s3_client, "make_client", lambda _: client):
        return s3_client.Connection(_SETTINGS[name]), _Wire(client)


def _asked(ask: Callable[[S3Store], object], name: str = "bucket") -> Target:
    def target(data: bytes) -> object:
        connection, wire = _connected(name)
        wire.answers, wire.requests = data.split(SEPARATOR), 0
        return ask(S3Store(_SETTINGS[name], policy=_ONE_TRY, connection=connection))

    return target


def _head(store: S3Store) -> object:
    info = store.head("p/a")
    assert info.nbytes >= 0
    return info


def _list(store: S3Store) -> object:
    found = list(Location(store, "p").named_objects())
    assert all(info.nbytes >= 0 and info.key == f"p/{name}" for name, info in found)
    return found


def _get(store: S3Store) -> object:
    data = store.read("p/a", ByteRange(3, 10))
    assert len(data) == 7
    return data, store.read("p/a", ByteRange(0, 10), "e")


def _put(store: S3Store) -> object:
    return store.put("p/a", _BODY, _CHECKSUM), store.upload_part(Upload("p/a", "u"), 1, 0, _BODY, _CHECKSUM)


def _list_parts(store: S3Store) -> object:
    found = list(store.list_parts(Upload("p/a", "u")))
    assert all(part.nbytes >= 0 and part.number >= 0 for part in found)
    return found


def _copy(store: S3Store) -> object:
    return store.copy_part(Upload("p/a", "u"), 1, 0, store, "p/b", ByteRange(0, 10), "e")


def _complete(store: S3Store) -> object:
    return store.complete_upload(Upload("p/a", "u"), [(1, "e"), (2, "f")], {1: (1, 5), 2: (2, 5)})


class _Listed(AbstractFileSystem):  # type: ignore[misc]
    """A file system that has what a document says, by name."""

    protocol: ClassVar[str] = "fuzz"
    cachable = False
    found: Mapping[str, Any]

    def info(self, path: str, **_: object) -> Any:
        return self.found[path.rpartition("/")[2]]

    def find(self, path: str, **_: object) -> Any:
        return {f"{path}/{name}": info for name, info in self.found.items()}

    def cat_file(self, _path: str, start: int, end: int, **_: object) -> bytes:
        return bytes(max(0, end - start))


@contextmanager
def _as_file_system(found: Mapping[str, Any]) -> Iterator[FsspecStore]:
    files = _Listed()
    files.found = found
    with patch("reshard.storage.fsspec_store._file_system", lambda *_: (files, "root")):
        yield FsspecStore("fuzz://root", policy=_ONE_TRY)


def _other_store(data: bytes) -> object:
    """Read what one of fsspec's file systems says of its objects."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(isinstance(info, dict) for info in found.values()):
        return None
    with _as_file_system(found) as store:
        infos = list(itertools.islice(store.list(""), 20))
        assert all(info.nbytes >= 0 for info in infos)
        return [read_object(Location(store, info.key), 1000) for info in infos[:2]]


ANSWERS: Mapping[str, Target] = {
    "answer_complete": _asked(_complete, "aws"),
    "answer_copy": _asked(_copy),
    "answer_create": _asked(lambda store: store.create_upload("p/a", is_checked=True)),
    "answer_get": _asked(_get),
    "answer_head": _asked(_head),
    "answer_list": _asked(_list),
    "answer_list_v2": _asked(_list, "aws"),
    "answer_parts": _asked(_list_parts),
    "answer_put": _asked(_put),
    "answer_uploads": _asked(lambda store: list(store.open_uploads("p/"))),
    "other_store": _other_store,
}
"""Targets by their names."""
