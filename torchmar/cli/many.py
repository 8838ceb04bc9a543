"""Predictions for many inputs: results are written at once, failures reported and counted."""

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

_COMPLAINTS = 10  # that are printed one by one where results go to a file; the rest is counted
_ABOUT_THE_INPUT = (400, 413, 415, 422)  # it would be refused again; what else is wrong may be over by then


@dataclass
class _Question:
    """One input.

    Attributes:
        told: whether the file has a line about it.
        asked_with: the digest of the content that the line is about; None if it does not say.
        digest: of the content now, once it was read.
    """

    source: str
    told: bool = False
    asked_with: str | None = None
    digest: str = ""


class _Unreadable(TorchmarError):
    """Say why an input cannot be read."""


_Result = tuple[_Question, "Response | TorchmarError | None"]


class Asking:
    """What is asked about every input.

    Args:
        client: makes a client for one thread.
        name: which model.
        version: default: the default one.
        explained: how; None: a prediction is wanted.
    """

    def __init__(
        self, client: Callable[[], Client], name: str, version: str | None, explained: Mapping[str, str] | None
    ) -> None:
        self._client = client
        self._name = name
        self._version = version
        self._explained = explained
        self._complaints = 0

    def run(self, inputs: list[Path], jobs: int, output: Path | None, in_order: bool) -> bool:
        """Ask and return whether there is an answer to every input by now.

        Args:
            inputs: files; one that stands there twice is asked with once.
            jobs: requests at a time.
            output: a file of lines, where inputs that have an answer there are not asked with; default: stdout.
            in_order: sort the file at the end.

        Raises:
            TorchmarError: what would befall every input: no server, no such model, no token, no place to write.
        """
        sources = list(dict.fromkeys(map(str, inputs)))
        if output is None:
            return self._print(sources, jobs)
        with ResultsFile(output, self._request()) as file:
            before = file.told.keys() & set(sources)
            try:
                self._write(sources, jobs, file, before)
                if in_order or file.superseded:
                    file.sort(sources if in_order else ())
            finally:  # Ctrl-C included
                self._sum_up(sources, file, before)
            return all(file.told.get(source) for source in sources)

    def _print(self, sources: list[str], jobs: int) -> bool:
        results = self._results([_Question(source) for source in sources], jobs, ordered=True)
        with contextlib.closing(results):
            for question, result in results:
                if isinstance(result, Response):
                    typer.echo(responses.line(question.source, responses.content(result)), nl=False)
                elif result:
                    self._complain(question, result, len(sources))
        return not self._complaints

    def _write(self, sources: list[str], jobs: int, file: ResultsFile, before: set[str]) -> None:
        """Write what is missing to ``file``; what turns out to have been edited leaves ``before``."""
        questions = [_Question(source, source in before, file.digests.get(source)) for source in sources]
        results = self._results(questions, jobs, ordered=False)
        with contextlib.closing(results), _progress(len(sources)) as advance:
            for question, result in results:
                if result:
                    before.discard(question.source)
                    file.told.pop(question.source, None)
                if isinstance(result, Response):
                    file.answer(question.source, question.digest, result)
                elif result:
                    self._complain(question, result, _COMPLAINTS)
                    if isinstance(result, ServerError) and result.status in _ABOUT_THE_INPUT:
                        file.refuse(question.source, question.digest, result.status, result.message)
                advance()

    def _results(self, questions: list[_Question], jobs: int, ordered: bool) -> Generator[_Result, None, None]:
        """Yield every question with its answer, with why there is none, or with None if it need not be asked."""
        from torchmar.inference import each

        jobs = min(jobs, len(questions))
        with contextlib.closing(each(questions, self._one, self._client, jobs=jobs, ordered=ordered)) as results:
            for question, result in results:
                if isinstance(result, TorchmarError) and _befalls_all(result):
                    raise result
                yield question, result

    def _one(self, client: Client, question: _Question) -> Response | None:
        try:
            request = responses.request(Path(question.source), self._explained is not None, None, self._explained)
        except TorchmarError as error:
            if question.told:
                return None
            raise _Unreadable(error.message) from None
        question.digest = f"sha256:{hashlib.sha256(request.body).hexdigest()[:16]}"
        if question.told and question.asked_with in (None, question.digest):
            return None
        return client.request(self._name, request, self._version)

    def _complain(self, question: _Question, error: TorchmarError, limit: int) -> None:
        self._complaints += 1
        if self._complaints <= limit:
            named = isinstance(error, _Unreadable)  # the message has the file
            complain(TorchmarError(error.message if named else f"{question.source}: {error.message}"))
        elif self._complaints == limit + 1:
            err.print("more failed; they are only counted from here on")

    def _request(self) -> str:
        """Return what tells answers to this from answers to something else."""
        kind = "predictions" if self._explained is None else "explanations"
        version = f"/{self._version}" if self._version else ""
        how = "&".join(f"{name}={value}" for name, value in sorted((self._explained or {}).items()))
        return f"{kind}/{self._name}{version}" + (f"?{how}" if how else "")

    def _sum_up(self, sources: Iterable[str], file: ResultsFile, before: set[str]) -> None:
        message = [file.told.get(source) for source in sources]
        document = f"{message.count(True)} of {len(message)} answered"
        if there := sum(file.told[source] for source in before):
            document += f" ({there} were there before)"
        if refused := message.count(False):
            document += f", {refused} refused"
        if missing := message.count(None):
            document += f", {missing} without an answer; the same command asks for them again"
        err.print(document)


def _befalls_all(error: TorchmarError) -> bool:
    if isinstance(error, ServerError):
        elsewhere = error.type in (PAGE, "ResourceNotFoundException") and error.status < 500
        one_by_one = error.status in (413, 429)
        no_model = isinstance(error, NotFoundError) and error.type.startswith(
            "Model"
        )  # else it is the handler's own word
        return isinstance(error, UnauthorizedError) or error.status < 400 or no_model or (elsewhere and not one_by_one)
    # A connection that breaks may be the fault of one input; if the server is gone, the next one tells.
    return not isinstance(error, _Unreadable) and not (isinstance(error, ConnectError) and error.sent)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[], Any]]:
    """Show a bar on a terminal; give what counts one more."""
    if not err.is_terminal:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar: Progress
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("asking", total=total)
        yield lambda: bar.advance(task)
