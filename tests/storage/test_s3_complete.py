"""Complete, the request whose lost answer hurts most: against a client that answers by a script."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import urllib3.exceptions
from botocore.exceptions import ClientError, ReadTimeoutError

from reshard.errors import NotFound, StorageError, Transient, Unsupported, UsageError
from reshard.storage import RetryPolicy, Upload
from reshard.storage.s3_settings import S3Settings, s3_settings
from reshard.storage.s3_store import S3Store

UPLOAD = Upload("k", "u")
PARTS = [(1, "p1"), (2, "p2")]
LOST = ReadTimeoutError(endpoint_url="http://x")


def failed(code: str, status: int) -> ClientError:
    answer = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "CompleteMultipartUpload")


class Scripted:
    """Stands in for the boto3 client.

    ``before`` and ``etag`` are what HEAD answers before the first Complete and after it.
    """

    def __init__(self, *answers: object, etag: object = "abc-2", before: object = None) -> None:
        self.answers, self.etag, self.before = list(answers), etag, before or failed("404", 404)
        self.completes = self.heads = 0

    def complete_multipart_upload(self, **_: Any) -> object:
        self.completes += 1
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def head_object(self, **_: Any) -> dict[str, object]:
        self.heads += 1
        told = self.etag if self.completes else self.before
        if isinstance(told, Exception):
            raise told
        return {"ContentLength": 7, "ETag": f'"{told}"'}


def store(client: Scripted) -> S3Store:
    made = S3Store(settings(), policy=RetryPolicy(give_up_after_s=0.2, first_delay_s=0))
    made._connection.client = client
    return made


def settings(endpoint: str = "http://127.0.0.1:1") -> S3Settings:
    return s3_settings("b", {}, endpoint)


def test_length_and_etag_come_from_head() -> None:
    info = store(Scripted({"ETag": ""})).complete_upload(UPLOAD, PARTS)
    assert (info.key, info.nbytes, info.etag) == ("k", 7, "abc-2")


def test_error_inside_an_answer_of_200_is_tried_again() -> None:
    client = Scripted(failed("InternalError", 500), {"Key": "k"})
    store(client).complete_upload(UPLOAD, PARTS)
    assert client.completes == 2


def test_refusal_inside_an_answer_of_200_is_final() -> None:
    client = Scripted(failed("InvalidPart", 500))
    with pytest.raises(StorageError, match="a part is missing"):
        store(client).complete_upload(UPLOAD, PARTS)
    assert client.completes == 1


def test_lost_answer_of_a_done_complete_is_no_failure() -> None:
    for before in (None, "old-2", "of-one-put"):
        client = Scripted(LOST, failed("NoSuchUpload", 404), before=before)
        assert store(client).complete_upload(UPLOAD, PARTS).etag == "abc-2"


def test_lost_answer_of_a_complete_that_ends_an_outage() -> None:
    """The Complete is the one request that asks whether the store is back, and others follow from its answer."""
    made = store(Scripted(LOST, LOST, LOST, LOST, failed("NoSuchUpload", 404), before="old-2"))
    made._policy = RetryPolicy(give_up_after_s=5, first_delay_s=0)
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(made.complete_upload(UPLOAD, PARTS).etag), daemon=True)
    thread.start()
    thread.join(5)
    assert done == ["abc-2"]


DENIED = failed("403", 403)


@pytest.mark.parametrize(("before", "after"), [("old-2", "old-2"), (DENIED, "abc-2"), ("old-2", DENIED)])
def test_old_object_is_not_taken_for_the_new_one(before: object, after: object) -> None:
    client = Scripted(LOST, failed("NoSuchUpload", 404), before=before, etag=after)
    with pytest.raises(StorageError, match="unknown whether") as caught:
        store(client).complete_upload(UPLOAD, PARTS)
    assert type(caught.value) is StorageError
    assert client.completes == 2


@pytest.mark.parametrize("before", [None, "old-2", DENIED])
def test_complete_asks_for_the_object_once_before_and_once_after(before: object) -> None:
    client = Scripted({"Key": "k"}, before=before)
    assert store(client).complete_upload(UPLOAD, PARTS).etag == "abc-2"
    assert (client.heads, client.completes) == (2, 1)


def test_upload_that_never_was_is_a_failure() -> None:
    with pytest.raises(NotFound, match="not open any more"):
        store(Scripted(failed("NoSuchUpload", 404), etag=failed("404", 404))).complete_upload(UPLOAD, PARTS)


def test_a_complete_that_was_delivered_twice_is_no_failure() -> None:
    """Something between sent it again, and the answer is that to the second."""
    assert store(Scripted(failed("NoSuchUpload", 404))).complete_upload(UPLOAD, PARTS).etag == "abc-2"


@pytest.mark.parametrize("found", ["of-one-put", "abc-3", failed("404", 404)])
def test_lost_answer_and_another_object_or_none_is_a_failure(found: object) -> None:
    client = Scripted(LOST, failed("NoSuchUpload", 404), etag=found)
    with pytest.raises(NotFound, match="not open any more"):
        store(client).complete_upload(UPLOAD, PARTS)


def test_listing_that_does_not_move_on_is_broken_off() -> None:
    class Stuck(Scripted):
        def list_objects(self, **_: Any) -> dict[str, object]:
            return {"IsTruncated": True, "Contents": [{"Key": "a", "Size": 1, "ETag": '"e"'}]}

    with pytest.raises(StorageError, match="more to list, but does not say where to continue"):
        store(Stuck()).list("")


def test_parts_are_needed() -> None:
    with pytest.raises(UsageError, match="no parts"):
        store(Scripted()).complete_upload(UPLOAD, [])


def test_stores_that_want_equal_parts_are_refused() -> None:
    r2 = S3Store(settings("https://account.r2.cloudflarestorage.com"))
    with pytest.raises(Unsupported, match="of equal length"):
        r2.create_upload("k")


@pytest.mark.parametrize("lost", [{}, {"ServerSideEncryption": "AES256"}])
def test_an_answer_that_says_nothing_is_lost(lost: dict[str, object]) -> None:
    client = Scripted(lost, failed("NoSuchUpload", 404))
    assert store(client).complete_upload(UPLOAD, PARTS).etag == "abc-2"
    assert client.completes == 2


def test_a_connection_that_breaks_inside_an_answer() -> None:
    """botocore reads the XML of an answer, and translates nothing that happens then."""
    broken = urllib3.exceptions.ProtocolError("Connection broken", ConnectionResetError(104, "reset by peer"))
    client = Scripted(broken, ConnectionResetError(104, "reset by peer"), {"Key": "k"})
    assert store(client).complete_upload(UPLOAD, PARTS).etag == "abc-2"
    assert client.completes == 3


def test_a_listing_that_says_nothing_is_not_empty() -> None:
    class Silent(Scripted):
        def list_objects(self, **_: Any) -> dict[str, object]:
            return {}

    with pytest.raises(Transient, match="not that of an S3 service"):
        store(Silent()).list("")


def test_the_reason_of_a_failed_head_is_asked_for_again() -> None:
    """HEAD says 404 without a body, and the GET that would say why fails for a reason of its own."""

    class Busy(Scripted):
        gets = iter([failed("SlowDown", 503), failed("NoSuchKey", 404)])

        def get_object(self, **_: Any) -> object:
            raise next(self.gets)

    with pytest.raises(NotFound, match="no such object"):
        store(Busy()).head("k")
