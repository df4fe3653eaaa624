"""How many requests of each kind a conversion makes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from .cost import Cost

_Counted = TypeVar("_Counted", bound=Any)


@dataclass(frozen=True, slots=True)
class RequestCounts:
    """Requests of one conversion, by kind, without those that were made to plan it.

    Parameters
    ----------
    get, head
        Of the source; HEADs also of the claim and an earlier manifest. A HEAD for each object proves that it is still
        the one that was planned, two that an upload was completed as it was sent.
    put, part, copy, open, complete
        Single PUTs (also of manifest, run record and journal), parts sent, parts copied, multipart uploads opened and
        completed.
    list
        Listings of the target and of the staged chunks, if they take one page each: before and after the run claims
        the target, and before the manifest is written.
    delete
        Of the run's record and journal, and of staged chunks once they have been read; no service charges for them.
    """

    get: int = 0
    head: int = 0
    put: int = 0
    part: int = 0
    copy: int = 0
    open: int = 0
    complete: int = 0
    list: int = 0
    delete: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(asdict(self).values())

    @classmethod
    def of(cls, cost: Cost, head_count: int = 0, list_count: int = 3, delete_count: int = 0) -> RequestCounts:
        """Count those of one pass."""
        return cls(
            get=cost.get_count,
            head=head_count,
            put=cost.put_count + 3 + (cost.upload_count > 0),  # record, journal, uploads in the journal, manifest
            part=cost.part_count,
            copy=cost.copy_count,
            open=cost.upload_count,
            complete=cost.upload_count,
            list=list_count,
            delete=delete_count + 2 + (cost.upload_count > 0),
        )


@dataclass(frozen=True, slots=True)
class ProofRequests:
    """What a service is asked besides, so that bytes are proven; of one behind no network nothing is.

    Parameters
    ----------
    heads_per_put, heads_per_upload
        HEADs after a PUT whose body is not checked, and before and after an upload is completed.
    question
        The upload that finds out what a service checks of which nothing is known, once a pass; how many parts it takes
        depends on the answer, mostly two.
    gets_per_object
        Reads of an object's header, to compare its checksum.
    """

    heads_per_put: int = 0
    heads_per_upload: int = 0
    question: RequestCounts = RequestCounts()
    gets_per_object: int = 0

    def of(self, cost: Cost, object_count: int) -> RequestCounts:
        """Count those of one pass."""
        head = self.heads_per_put * (cost.put_count + 1) + self.heads_per_upload * cost.upload_count  # and the manifest
        return summed(RequestCounts(head=head, get=self.gets_per_object * object_count), self.question)


def summed(one: _Counted, other: _Counted, *, sign: int = 1) -> _Counted:
    """Add two dataclasses of one kind field by field.

    Examples
    --------
    >>> summed(RequestCounts(get=3, put=1), RequestCounts(get=1), sign=-1)
    RequestCounts(get=2, head=0, put=1, part=0, copy=0, open=0, complete=0, list=0, delete=0)
    """
    names = [each.name for each in fields(one)]
    return type(one)(**{name: getattr(one, name) + sign * getattr(other, name) for name in names})  # type: ignore[no-any-return]
