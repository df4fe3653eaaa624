"""Opens stores by URL: the scheme chooses a row of one table, and the row's module opens the store."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from ..errors import ReshardError, Unsupported, UsageError, is_signed
from .location import Location, normal_key
from .protocol import ReadStore
from .providers import UPLOAD_CHECKS, Provider


@dataclass(frozen=True, slots=True)
class StoreKind:
    """A kind of store, as its row in the table has it.

    ``module`` is one of this package with a function ``open_store(url)`` that opens the store whose root is ``url``.
    It is imported when a URL first asks for it: boto3 and fsspec take a while. ``provider`` is the most likely
    service behind a URL that cannot be opened here. What a private store holds only this process has.
    """

    module: str
    is_writable: bool = True
    is_private: bool = False
    provider: str = ""


STORES: Mapping[str, StoreKind] = {
    "file": StoreKind("local_store"),
    "memory": StoreKind("memory_store", is_private=True),
    "s3": StoreKind("s3_store"),
    "obs": StoreKind("s3_store", provider="Huawei OBS"),
}
"""The kinds of stores by scheme. A new kind is a new module and a line here."""

_ANY_OTHER = StoreKind("fsspec_store", is_writable=False)

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.:-]*)://(?P<rest>.*)", re.DOTALL)
_ONE_SLASH = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]+):/")  # two letters at least: C:/ is a drive


def open_store(url: str) -> ReadStore:
    """Open the store whose root is ``url``, without sending a request; see :attr:`ReadStore.url`.

    Examples
    --------
    >>> open_store("file:///data/models").url, open_store("memory://lab").url
    ('file:///data/models', 'memory://lab')
    """
    module = import_module(f".{_kind_of(url).module}", __package__)
    store: ReadStore = module.open_store(url)
    return store


def open_location(url: str) -> Location:
    """Open a place, without sending a request.

    Its URL is ``s3://bucket/key``, ``obs://bucket/key``, ``memory://name/key``, ``file:///path``, a plain path, or
    any URL that fsspec reads.

    Raises
    ------
    UsageError
        The URL is malformed, its scheme unknown, or the settings for it incomplete.
    Unsupported
        The URL is a chain of fsspec URLs.
    """
    root, key = _split(url)
    return Location(open_store(root), key)


def open_source(url: str) -> Location:
    """Open a place to read from; see :func:`open_location`."""
    return open_location(url)


def open_target(url: str) -> Location:
    """Open a place to write to as :func:`open_location` does; raise Unsupported if its store is read-only."""
    if not _kind_of(url).is_writable:
        raise Unsupported(
            f"{url.partition('://')[0]}:// URLs are read-only.",
            hint="Write to s3://bucket/key, obs://bucket/key or a local path.",
        )
    return open_location(url)


def open_target_object(url: str) -> tuple[Location, str]:
    """Open the place above an object to be written; see :func:`open_target`.

    ``place.child(name)`` of the place and the name that are returned is the object.

    Raises
    ------
    Unsupported
        The store is read-only.
    UsageError
        The URL names a whole store or a folder.

    Examples
    --------
    >>> place, name = open_target_object("memory://lab/out/model.safetensors")
    >>> place.url, name
    ('memory://lab/out', 'model.safetensors')
    """
    place = open_target(url)
    name = place.key.rpartition("/")[2]
    if not name:
        raise UsageError(
            f"{url} is a whole store, not an object to write.",
            hint="Append the object's name: s3://bucket/model.safetensors, or folder/model.safetensors.",
        )
    if url.endswith(("/", "/.", "/..")) or url in (".", ".."):
        raise UsageError(f"{url} is a folder, not an object to write.", hint="Append the object's name.")
    return place.parent, name


def connects_when_opened(url: str) -> bool:
    """Whether opening a URL may send something already, as some of fsspec's packages do.

    Examples
    --------
    >>> connects_when_opened("s3://bucket/a"), connects_when_opened("sftp://host/a")
    (False, True)
    """
    return _kind_of(url) is _ANY_OTHER


def opens_anywhere(url: str) -> bool:
    """Whether another process of this machine finds the same objects at a URL.

    Examples
    --------
    >>> opens_anywhere("s3://bucket/a"), opens_anywhere("memory://lab/a")
    (True, False)
    """
    return not _kind_of(url).is_private


def provider_name(url: str) -> str:
    """Name the service behind a URL, for price tables; its scheme if the service is unknown.

    Examples
    --------
    >>> provider_name("memory://lab/a"), provider_name("models/llama"), provider_name("gs://bucket/a")
    ('memory', 'local', 'gs://')
    """
    kind, scheme = _kind_of(url), _scheme_of(url)
    if kind is _ANY_OTHER:
        return f"{scheme}://"
    try:
        return open_location(url).store.provider
    except ReshardError:  # a saved plan can be shown where its stores cannot be reached
        return kind.provider or f"{scheme}://"


def upload_check(url: str) -> str:
    """Say in words what the service behind a URL checks of the bodies that it receives; sends no request.

    Examples
    --------
    >>> upload_check("memory://lab/a")
    'no network between'
    """
    try:
        provider = provider_behind(url)
    except ReshardError:
        return "unknown here"
    return UPLOAD_CHECKS[provider.upload_check] if provider else "no network between"


def provider_behind(url: str) -> Provider | None:
    """Return the row of the service behind a URL, None if it is not one of S3's kind; sends no request."""
    settings = getattr(open_location(url).store, "settings", None)
    return settings.provider if settings else None


def _scheme_of(url: str) -> str:
    match = _SCHEME.fullmatch(url)
    return match["scheme"].lower() if match else "file"


def _kind_of(url: str) -> StoreKind:
    return STORES.get(_scheme_of(url), _ANY_OTHER)


def _split(url: str) -> tuple[str, str]:
    """Split a URL into its store's root and a key."""
    match = _SCHEME.fullmatch(url)
    if match is None:
        if typo := _ONE_SLASH.match(url):
            scheme = typo["scheme"]
            raise UsageError(  # the rest is not shown: in a signed URL it holds a secret
                f"{scheme}:/... is not a URL: a URL has two slashes after its scheme.",
                hint=f"Write {'file:///' if scheme.lower() == 'file' else f'{scheme}://'}..., "
                f"or ./{scheme}:/... for a folder of that name.",
            )
        return _split_path(url)
    scheme, rest = match["scheme"].lower(), match["rest"]
    if scheme == "file":
        path = rest.removeprefix("localhost")
        if not path.startswith("/"):
            raise UsageError(f"{url} has no absolute path.", hint="Write three slashes: file:///path.")
        return _split_path(path)
    host, _, key = rest.partition("/")
    if not host:
        raise UsageError(f"{url} has no name after its scheme.", hint=f"Write {scheme}://name/key.")
    if scheme in STORES and (":" in host or "@" in host):
        raise UsageError(  # the URL is not shown: it holds a secret
            f"{scheme}:// URLs hold no credentials and no port: a name and a key only.",
            hint="Keys come from environment variables or a profile, endpoints from AWS_ENDPOINT_URL or OBS_ENDPOINT.",
        )
    port = host.rpartition("@")[2].rpartition("]")[2].partition(":")[2]
    if port and not port.isdecimal():  # not shown either: a slash in a password ends the host too early
        raise UsageError(f"The URL is malformed ({scheme}://): expected a name, or a host and a port.")
    is_web = scheme in ("http", "https")
    if (is_web and ("?" in rest or "#" in rest)) or is_signed(url):
        raise UsageError(  # the URL is not shown: its query is a secret
            f"{scheme}:// URLs with a query are not supported: a signed URL names one object for a short time only.",
            hint="Use the store's own scheme and credentials: s3://, obs://, gs:// ...",
        )
    return f"{scheme}://{host}", normal_key(key)


def _split_path(path: str) -> tuple[str, str]:
    if not path or "\0" in path:
        raise UsageError("The path is empty or has a NUL character.", hint="Write '.' for the current folder.")
    try:
        full = Path(path).expanduser().absolute()
        is_folder = full.is_dir()
    except (OSError, RuntimeError) as error:  # a name that is too long, a home that nobody has
        raise UsageError(f"{path[:100]!r} is not a path of this machine: {error}"[:300]) from error
    if is_folder:
        # Outputs below a linked folder belong where the link points. A linked object keeps its own name: in a model
        # cache it points to a name without meaning.
        full = full.resolve()
    # Relative to its parent a path may be an object, a prefix, or not exist yet.
    return f"file://{full.parent}", full.name
