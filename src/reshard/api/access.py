"""How a place is reached, for logs."""

from __future__ import annotations

from ..storage import open_location, unwrapped


def describe_access(url: str) -> str:
    """Name the service behind a URL, and where the credentials for it come from, without showing them.

    Raise UsageError if the URL or the settings for it cannot be used.

    Examples
    --------
    >>> describe_access("memory://lab/model")
    'memory'
    """
    store = unwrapped(open_location(url).store)
    return str(getattr(store, "access", store.provider))
