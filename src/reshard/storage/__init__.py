"""Object stores behind one small protocol: S3 and OBS, local files, memory, and fsspec URLs for reading.

A new store is a module with an ``open_store(url)`` and one line in the table :data:`reshard.storage.open.STORES`.
A new S3 service is a row in :mod:`reshard.storage.providers`.
"""

from .availability import Outage, ToldOutage
from .body_watch import WATCH_THREAD
from .connections import current_policy, fresh_connections, report_outages, shared, shared_connections
from .local_store import LocalStore
from .location import Location, read_object
from .memory_store import MemoryStore
from .open import (
    connects_when_opened,
    open_location,
    open_source,
    open_store,
    open_target,
    open_target_object,
    opens_anywhere,
    provider_behind,
    provider_name,
    upload_check,
)
from .protocol import (
    PROOFS,
    Body,
    Checksum,
    KeptChecksum,
    ObjectInfo,
    PartCopier,
    PartInfo,
    Proof,
    ReadStore,
    Store,
    StoreLimits,
    Upload,
    Wrapper,
    unwrapped,
)
from .retry import RetryPolicy
from .stopping import ShouldStop, never

__all__ = [
    "PROOFS",
    "WATCH_THREAD",
    "Body",
    "Checksum",
    "KeptChecksum",
    "LocalStore",
    "Location",
    "MemoryStore",
    "ObjectInfo",
    "Outage",
    "PartCopier",
    "PartInfo",
    "Proof",
    "ReadStore",
    "RetryPolicy",
    "ShouldStop",
    "Store",
    "StoreLimits",
    "ToldOutage",
    "Upload",
    "Wrapper",
    "connects_when_opened",
    "current_policy",
    "fresh_connections",
    "never",
    "open_location",
    "open_source",
    "open_store",
    "open_target",
    "open_target_object",
    "opens_anywhere",
    "provider_behind",
    "provider_name",
    "read_object",
    "report_outages",
    "shared",
    "shared_connections",
    "unwrapped",
    "upload_check",
]
