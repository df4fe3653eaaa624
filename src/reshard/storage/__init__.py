"""Object stores behind one small protocol: S3 and OBS, local files, memory, and fsspec URLs for reading."""

from .local import LocalStore
from .memory import MemoryStore
from .open import Location, open_location, open_source, open_target, open_target_object, shared_connections
from .protocol import (
    Body,
    Identified,
    ObjectInfo,
    PartCopier,
    ReadStore,
    Stoppable,
    Store,
    StoreLimits,
    Upload,
    Wrapper,
    identity_of,
    unwrapped,
)
from .recording import Figures, RecordingReadStore, RecordingStore, recording
from .retry import RetryPolicy
from .stopping import ShouldStop

__all__ = [
    "Body",
    "Figures",
    "Identified",
    "LocalStore",
    "Location",
    "MemoryStore",
    "ObjectInfo",
    "PartCopier",
    "ReadStore",
    "RecordingReadStore",
    "RecordingStore",
    "RetryPolicy",
    "ShouldStop",
    "Stoppable",
    "Store",
    "StoreLimits",
    "Upload",
    "Wrapper",
    "identity_of",
    "open_location",
    "open_source",
    "open_target",
    "open_target_object",
    "recording",
    "shared_connections",
    "unwrapped",
]
