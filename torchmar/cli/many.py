"""Requests for many inputs: write each result at once, report and count failures."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from torchmar.cli import responses
from torchmar.cli.results_file import ResultsFile
from torchmar.cli.terminal import complain, err
from torchmar.connection.error_responses import PAGE
from torchmar.errors import ConnectError, NotFoundError, ServerError, TorchmarError, UnauthorizedError
from torchmar.exchange import Response

if TYPE_CHECKING:
    from rich.progress import Progress

    from torchmar.grpc import GrpcInference
    from torchmar.inference import InferenceClient

    Client = InferenceClient | GrpcInference

_SHOWN_ERRORS = 10  # errors that are printed if the results are written to a file; further errors are counted
_PERMANENT = (400, 413, 415, 422)  # the same input would get the same error again; other errors may be temporary


@dataclass
class _Input:
    """One input file.

    Attributes:
        source: path of the input.
        recorded: whether the results file has a line for the input.
        recorded_digest: digest of the content in that line; None: the line has none.
        digest: digest of the current content, after it has been read.
    """

    source: str
    recorded: bool = False
    recorded_digest: str | None = None
    digest: str = ""


class _UnreadableError(TorchmarError):
    """An input cannot be read."""


_Result = tuple[_Input, "Response | TorchmarError | None"]


class Requests:
    """Requests of one kind for many inputs.

    Args:
        client: function that creates a client for a thread.
        name: name of the model.
        version: version of the model; None: the default version.
        explain_headers: headers of requests for explanations; None: predictions are requested.
    """

    def __init__(
        self, client: Callable[[], Client], name: str, version: str | None, explain_headers: Mapping[str, str] | None
    ) -> None:
        self._client = client
        self._name = name
        self._version = version
        self._explain_headers = explain_headers
        self._errors = 0

    def run(self, inputs: list[Path], jobs: int, output: Path | None, in_order: bool) -> bool:
        """Send the requests; return whether every input has an answer now.

        Args:
            inputs: input files; a repeated file is sent once.
            jobs: number of simultaneous requests.
            output: a results file; inputs with an answer in it are not sent again. None: stdout.
            in_order: whether to sort the file at the end.

        Raises:
            TorchmarError: every input would fail: no server, no such model, no token, or the file cannot be written.
        """
        sources = list(dict.fromkeys(map(str, inputs)))
        if output is None:
            return self._print(sources, jobs)
        with ResultsFile(output, self._request()) as file:
            before = file.answered.keys() & set(sources)
            try:
                self._write(sources, jobs, file, before)
                if in_order or file.superseded:
                    file.sort(sources if in_order else ())
            finally:  # Ctrl-C included
                self._sum_up(sources, file, before)
            return all(file.answered.get(source) for source in sources)

    def _print(self, sources: list[str], jobs: int) -> bool:
        results = self._results([_Input(source) for source in sources], jobs, ordered=True)
        with contextlib.closing(results):
            for item, result in results:
                if isinstance(result, Response):
                    typer.echo(responses.line(item.source, responses.content(result)), nl=False)
                elif result:
                    self._report(item, result, len(sources))
        return not self._errors

    def _write(self, sources: list[str], jobs: int, file: ResultsFile, before: set[str]) -> None:
        """Write the missing results to ``file``; remove inputs that have been edited from ``before``."""
        items = [_Input(source, source in before, file.digests.get(source)) for source in sources]
        results = self._results(items, jobs, ordered=False)
        with contextlib.closing(results), _progress(len(sources)) as advance:
            for item, result in results:
                if result:
                    before.discard(item.source)
                    file.answered.pop(item.source, None)
                if isinstance(result, Response):
                    file.add_answer(item.source, item.digest, result)
                elif result:
                    self._report(item, result, _SHOWN_ERRORS)
                    if isinstance(result, ServerError) and result.status in _PERMANENT:
                        file.add_permanent_error(item.source, item.digest, result.status, result.message)
                advance()

    def _results(self, items: list[_Input], jobs: int, ordered: bool) -> Generator[_Result, None, None]:
        """Yield every input with its response or error, or with None if its result is up to date."""
        from torchmar.inference import each

        jobs = min(jobs, len(items))
        with contextlib.closing(each(items, self._send, self._client, jobs=jobs, ordered=ordered)) as results:
            for item, result in results:
                if isinstance(result, TorchmarError) and _affects_all(result):
                    raise result
                yield item, result

    def _send(self, client: Client, item: _Input) -> Response | None:
        headers = self._explain_headers
        try:
            request = responses.request(Path(item.source), headers is not None, None, headers)
        except TorchmarError as error:
            if item.recorded:
                return None
            raise _UnreadableError(error.message) from None
        item.digest = f"sha256:{hashlib.sha256(request.body).hexdigest()[:16]}"
        if item.recorded and item.recorded_digest in (None, item.digest):
            return None
        return client.request(self._name, request, self._version)

    def _report(self, item: _Input, error: TorchmarError, limit: int) -> None:
        self._errors += 1
        if self._errors <= limit:
            has_path = isinstance(error, _UnreadableError)
            complain(TorchmarError(error.message if has_path else f"{item.source}: {error.message}"))
        elif self._errors == limit + 1:
            err.print("more inputs failed; from here on they are only counted")

    def _request(self) -> str:
        """Return the name of these requests in a results file, which contains answers to one kind of requests only."""
        kind = "predictions" if self._explain_headers is None else "explanations"
        version = f"/{self._version}" if self._version else ""
        options = "&".join(f"{name}={value}" for name, value in sorted((self._explain_headers or {}).items()))
        return f"{kind}/{self._name}{version}" + (f"?{options}" if options else "")

    def _sum_up(self, sources: Iterable[str], file: ResultsFile, before: set[str]) -> None:
        results = [file.answered.get(source) for source in sources]
        summary = f"{results.count(True)} of {len(results)} answered"
        if answered_before := sum(file.answered[source] for source in before):
            summary += f" ({answered_before} of them before)"
        if permanent_errors := results.count(False):
            summary += f", {permanent_errors} refused"
        if missing := results.count(None):
            summary += f", {missing} without an answer; the same command sends them again"
        err.print(summary)


def _affects_all(error: TorchmarError) -> bool:
    """Return whether an error would be the same for every input."""
    if isinstance(error, ServerError):
        # A page or an unknown path comes from a server without an inference API.
        wrong_server = error.type in (PAGE, "ResourceNotFoundException") and error.status < 500
        of_one_request = error.status in (413, 429)
        # Any other 404 is from the handler.
        no_model = isinstance(error, NotFoundError) and error.type.startswith("Model")
        return (
            isinstance(error, UnauthorizedError)
            or error.status < 400
            or no_model
            or (wrong_server and not of_one_request)
        )
    # An input may be the reason why a connection breaks. If the server is down, the next request shows it.
    return not isinstance(error, _UnreadableError) and not (isinstance(error, ConnectError) and error.sent)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], Any]]:
    """Show a progress bar on a terminal; yield a function that advances it by one."""
    if not err.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("requests"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar: Progress
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("requests", total=total)
        yield lambda: bar.advance(task)
