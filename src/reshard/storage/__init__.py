"""Object stores behind one small protocol: S3 and OBS, local files, memory, and fsspec URLs for reading."""

from .local import LocalStore
from .memory import MemoryStore
from .open import Location, open_location, open_source, open_target
from .protocol import Body, ObjectInfo, ReadStore, Stoppable, Store, StoreLimits, Upload
from .recording import Figures, RecordingReadStore, RecordingStore, recording
from .retry import RetryPolicy
from .stopping import ShouldStop

__all__ = [
    "Body",
    "Figures",
    "LocalStore",
    "Location",
    "MemoryStore",
    "ObjectInfo",
    "ReadStore",
    "RecordingReadStore",
    "RecordingStore",
    "RetryPolicy",
    "ShouldStop",
    "Stoppable",
    "Store",
    "StoreLimits",
    "Upload",
    "open_location",
    "open_source",
    "open_target",
    "recording",
]
