"""The parameters of a registration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from torchmar.archive import file_digest
from torchmar.server.api_error import ApiError
from torchmar.server.models import archive_urls

RUNTIMES = ("python", "python3", "lsp")
MAX_WORKERS = 1024  # limit for a version; a larger number is probably a typing error, and no machine has the memory


@dataclass(frozen=True)
class Registration:
    """The parameters of a registration; None for those that are not set.

    Attributes:
        url: a file name in the model store, or an allowed URL; without a digest at its end.
        model_name: name of the model, in place of the archive's.
        handler: handler, in place of the archive's.
        runtime: runtime, in place of the archive's: ``python`` or ``python3``, which are equal here.
        batch_size: largest number of requests in a batch; less than 1 means 1.
        max_batch_delay: milliseconds; less than 0 means 0.
        response_timeout: seconds.
        startup_timeout: seconds; 0: no limit.
        initial_workers: number of workers; zero or less means none.
        synchronous: whether to respond only when the workers are ready.
        fallback_name: name of the model if neither ``model_name`` nor the archive has one.
        ignored_checks: codes of checks, or prefixes of codes, to ignore.
        state: state of the version in a snapshot, under TorchServe's keys; takes precedence over all else.
        version: version, in place of the archive's; empty: the archive's.
        by_operator: whether the server registers it for its configuration: the archive's path need not match
            ``allowed_urls``, and it has the number of workers for the start.
        digest: expected SHA-256 of the file, in hexadecimal; empty: any.
    """

    url: str
    _: KW_ONLY
    model_name: str = ""
    handler: str = ""
    runtime: str | None = None
    batch_size: int | None = None
    max_batch_delay: int | None = None
    response_timeout: int | None = None
    startup_timeout: int | None = None
    initial_workers: int | None = None
    synchronous: bool = True
    fallback_name: str = ""
    ignored_checks: tuple[str, ...] = ()
    state: Mapping[str, Any] = field(default_factory=dict)
    version: str = ""
    by_operator: bool = False
    digest: str = ""

    @property
    def shown_url(self) -> str:
        """The URL for logs and messages."""
        return archive_urls.without_secrets(self.url)

    def check(self) -> None:
        """Check the parameters that do not depend on the archive.

        Raises:
            ApiError: 400, a value is out of range; 404, the URL is empty, as in TorchServe.
        """
        if not self.url:
            raise ApiError(404, "ModelNotFoundException", "empty url")
        if self.runtime is not None and self.runtime not in RUNTIMES:
            raise ApiError(400, "BadRequestException", f"Invalid RuntimeType value: {self.runtime}")
        # With these values, TorchServe never responds to a request; a batch size less than 1 means 1 there.
        for name, least in (("response_timeout", 1), ("startup_timeout", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ApiError(
                    400, "BadRequestException", f"Parameter {name} is {value}, and must be at least {least}."
                )
        check_workers("initial_workers", self.initial_workers or 0)


def source(url: str, digest: str = "") -> tuple[str, str]:
    """Return the URL and the hexadecimal digest of a `Registration`.

    Args:
        url: URL, which may end in ``#sha256=HEX``.
        digest: ``sha256:HEX``, or empty.

    Raises:
        ApiError: 400, the digest is malformed, or there are two.
    """
    try:
        location, at_its_end = file_digest.split(url)
        expected = file_digest.parse(digest)
    except ValueError as error:
        raise ApiError(400, "BadRequestException", f"Parameter digest: {error}.") from None
    if expected and at_its_end not in ("", expected):
        raise ApiError(400, "BadRequestException", "Parameter digest is another one than that at the end of the URL.")
    return location, expected or at_its_end


def check_workers(parameter: str, count: int) -> None:
    """Raise ApiError (400) for more workers than any machine could run."""
    if count > MAX_WORKERS:
        message = f"Parameter {parameter} is {count}; this server starts at most {MAX_WORKERS} workers of a version."
        raise ApiError(400, "BadRequestException", message)
