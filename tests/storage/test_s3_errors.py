from __future__ import annotations

import pytest
import urllib3.exceptions
from botocore import exceptions as boto

from reshard.errors import Denied, NotFound, ReshardError, StorageError, Transient, Unsupported, UsageError
from reshard.storage.s3_errors import RequestLabel, explain

LABEL = RequestLabel("read", "obs://models/a.bin", "Huawei OBS at https://obs.example")


def answered(code: str, status: int, headers: dict[str, str] | None = None, **error: str) -> boto.ClientError:
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers or {}}
    return boto.ClientError({"Error": {"Code": code, **error}, "ResponseMetadata": metadata}, "GetObject")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (answered("NoSuchBucket", 404), NotFound, "there is no such bucket [NoSuchBucket]."),
        (answered("NoSuchKey", 404), NotFound, "there is no such object"),
        (answered("404", 404), NotFound, "there is no such object or bucket."),
        (answered("AccessDenied", 403), Denied, "lacks this permission"),
        (answered("InvalidAccessKeyId", 403), Denied, "does not know this access key"),
        (answered("SignatureDoesNotMatch", 403), Denied, "OBS_ACCESS_KEY_ID"),
        (answered("ExpiredToken", 400), Denied, "has expired"),
        (answered("RequestTimeTooSkewed", 403), Denied, "clock"),
        (answered("SecondLevelDomainForbidden", 403), Unsupported, "RESHARD_S3_ADDRESSING=virtual"),
        (answered("PermanentRedirect", 301), StorageError, "AWS_REGION"),
        (answered("301", 301, {"x-amz-bucket-region": "eu-west-1"}), StorageError, "the bucket is in eu-west-1"),
        (answered("AuthorizationHeaderMalformed", 400, Region="cn-north-4"), Denied, "the bucket is in cn-north-4"),
        (answered("InvalidObjectState", 403), Denied, "archived"),
        (answered("SlowDown", 503), Transient, "SlowDown"),
        (answered("RequestTimeout", 400), Transient, "RequestTimeout"),
        (answered("", 502), Transient, "502"),
        (answered("TeapotError", 418, Message="short and stout"), StorageError, "418 TeapotError: short and stout"),
        (answered("", 408), Transient, "408"),
        (urllib3.exceptions.ProtocolError("reset"), Transient, "broke during the answer (ProtocolError)"),
        (boto.NoCredentialsError(), Denied, "no credentials were found"),
        (boto.PartialCredentialsError(provider="env", cred_var="x"), Denied, "incomplete"),
        (boto.EndpointConnectionError(endpoint_url="http://u?sig=1"), Transient, "no connection to the endpoint"),
        (boto.ConnectTimeoutError(endpoint_url="u?sig=1"), Transient, "no connection in time"),
        (boto.ReadTimeoutError(endpoint_url="u?sig=1"), Transient, "stopped answering"),
        (boto.ConnectionClosedError(endpoint_url="u?sig=1"), Transient, "closed before an answer"),
        (boto.HTTPClientError(error=OSError("u?sig=1")), Transient, "on its way (OSError)"),
        (boto.IncompleteReadError(actual_bytes=1, expected_bytes=2), Transient, "cut off"),
        (boto.ResponseStreamingError(error="u?sig=1"), Transient, "broke during the answer"),
        (boto.SSLError(endpoint_url="u?sig=1", error="certificate verify failed"), StorageError, "AWS_CA_BUNDLE"),
        (boto.SSLError(endpoint_url="u?sig=1", error="WRONG_VERSION_NUMBER"), StorageError, "http://"),
        (boto.SSLError(endpoint_url="u?sig=1", error="EOF occurred"), Transient, "TLS connection broke"),
        (boto.ParamValidationError(report="bad"), UsageError, "not the name"),
        (boto.NoRegionError(), StorageError, "NoRegionError"),
    ],
)
def test_errors_say_what_and_where_and_what_to_do(error: Exception, kind: type[ReshardError], text: str) -> None:
    found = explain(error, LABEL)
    assert type(found) is kind
    assert text in str(found)
    assert "obs://models/a.bin" in str(found)
    assert "https://obs.example" in str(found)
    assert "sig=" not in str(found)
