"""Many inputs asked with: what comes is written at once, and what fails is told and counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from torchmar.cli import answers
from torchmar.cli.answers_file import AnswersFile
from torchmar.cli.terminal import complain, err
from torchmar.errors import NotFound, Refused, TimedOut, TorchmarError, Unauthorized
from torchmar.exchange import Answer

if TYPE_CHECKING:
    from rich.progress import Progress

    from torchmar.inference import InferenceClient
    from torchmar.rpc import GrpcInference

    Client = InferenceClient | GrpcInference

_COMPLAINTS = 10  # that are told one by one where answers go to a file; the rest is counted


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
            told: dict[str, bool] = {}
            self._ask(sources, jobs, told, None)
            return all(told.get(source) for source in sources)
        with AnswersFile(output, self._request()) as file:
            before = len(file.told.keys() & set(sources))
            todo = [source for source in sources if source not in file.told]
            try:
                self._ask(todo, jobs, file.told, file)
                if in_order:
                    file.sort(sources)
            finally:  # Ctrl-C included
                self._sum_up(sources, file, before)
            return all(file.told.get(source) for source in sources)

    def _ask(self, sources: list[str], jobs: int, told: dict[str, bool], file: AnswersFile | None) -> None:
        from torchmar.inference import each

        limit = _COMPLAINTS if file else len(sources)
        results = each(sources, self._one, self._client, jobs=min(jobs, len(sources)), ordered=file is None)
        with contextlib.closing(results), _progress(len(sources), file is not None) as advance:
            for source, result in results:
                if isinstance(result, Answer):
                    told[source] = True
                    if file:
                        file.answer(source, result)
                    else:
                        typer.echo(answers.line(Path(source), result.status, result.body))
                elif _befalls_all(source, result):
                    raise result
                else:
                    self._complain(source, result, limit)
                    if file and isinstance(result, Refused) and result.status < 500:
                        file.refuse(source, result.status, result.message)
                advance()

    def _one(self, client: Client, source: str) -> Answer:
        request = answers.request(Path(source), self._explained is not None, None, self._explained)
        return client.ask(self._name, request, self._version)

    def _complain(self, source: str, error: TorchmarError, limit: int) -> None:
        self._complaints += 1
        if self._complaints <= limit:
            complain(TorchmarError(f"{source}: {error.message}"))
        elif self._complaints == limit + 1:
            err.print("more failed; they are only counted from here on")

    def _request(self) -> str:
        """Return what tells answers to this from answers to something else."""
        kind = "predictions" if self._explained is None else "explanations"
        version = f"/{self._version}" if self._version else ""
        how = "&".join(f"{name}={value}" for name, value in sorted((self._explained or {}).items()))
        return f"{kind}/{self._name}{version}" + (f"?{how}" if how else "")

    def _sum_up(self, sources: Iterable[str], file: AnswersFile, before: int) -> None:
        told = [file.told.get(source) for source in sources]
        said = f"{told.count(True)} of {len(told)} answered"
        if before:
            said += f" ({before} were there before)"
        if refused := told.count(False):
            said += f", {refused} refused"
        if missing := told.count(None):
            said += f", {missing} without an answer; the same command asks for them again"
        err.print(said)


def _befalls_all(source: str, error: TorchmarError) -> bool:
    if isinstance(error, Unauthorized):
        return True
    if isinstance(error, NotFound):
        return error.type.startswith("Model")  # otherwise it is the handler's own word
    if isinstance(error, Refused | TimedOut):
        return False
    return Path(source).is_file()  # otherwise it is the file


@contextlib.contextmanager
def _progress(total: int, shown: bool) -> Iterator[Callable[[], Any]]:
    """Show a bar on a terminal; give what counts one more."""
    if not (shown and total and err.is_terminal):
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("asking"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar: Progress
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("asking", total=total)
        yield lambda: bar.advance(task)
