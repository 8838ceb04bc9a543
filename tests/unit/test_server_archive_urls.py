"""torchmar.server.models.archive_urls reads URLs of archives strictly, and shows none of their secrets."""

from __future__ import annotations

import pytest

from torchmar.server.api_error import ApiError
from torchmar.server.models.archive_urls import is_remote, parse_object, without_secrets


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/x.mar", ("s3", "bucket", "x.mar", "")),
        ("S3://bucket/a/b c%20d.mar?versionId=3/L4", ("s3", "bucket", "a/b c%20d.mar", "3/L4")),
        ("gs://my.bucket_1/x.mar?generation=17", ("gs", "my.bucket_1", "x.mar", "17")),
        ("az://container/folder/x.tar.gz", ("az", "container", "folder/x.tar.gz", "")),
    ],
)
def test_an_object_has_a_bucket_a_name_and_perhaps_a_version(url: str, expected: tuple[str, ...]) -> None:
    assert is_remote(url)
    assert parse_object(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://bucket",
        "s3://bucket/",
        "s3:///x.mar",
        "s3://bucket/folder/",
        "s3://bucket//x.mar",
        "s3://user@bucket/x.mar",
        "az://container@elsewhere.blob.core.windows.net/x.mar",
        "s3://arn:aws:s3:eu-west-1:1:accesspoint/x/y.mar",
        "s3://bucket/x.mar?versionId=",
        "s3://bucket/x.mar?sig=abc",
        "gs://bucket/x.mar?versionId=1",
        "s3://bucket/x.mar?versionId=1&endpoint_url=http://elsewhere",
        "s3://bucket:9000/x.mar",
    ],
)
def test_what_names_no_object_is_rejected(url: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_object(url)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/x.mar", "https://host/x.mar"),
        ("https://host/x.mar?X-Amz-Signature=1", "https://host/x.mar?..."),
        ("https://user:password@host/x.mar", "https://...@host/x.mar"),
        ("https://host?X-Amz-Signature=1", "https://host?..."),
        ("ftp://user:password@host/x?sig=1", "ftp://...@host/x?..."),
        ("az://container/x.mar?sv=2020&sig=abc", "az://container/x.mar?..."),
        ("s3://bucket/x.mar?versionId=abc.1", "s3://bucket/x.mar?versionId=abc.1"),
        ("s3://bucket/x.mar?versionId=abc&sig=1", "s3://bucket/x.mar?..."),
        ("x?y.mar", "x?y.mar"),
        ("file:///store/x?y.mar", "file:///store/x?y.mar"),
    ],
)
def test_secrets_of_urls_are_not_shown(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
