"""Opening an archive: its members, manifest, digest, and extraction."""

from __future__ import annotations

import contextlib
import io
import json
import secrets
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, Any, BinaryIO, cast

import yaml

from torchmar import manifest
from torchmar.archive import digests, layout, runtime
from torchmar.archive.collecting import SAMPLES_FILE
from torchmar.archive.copying import ArchiveSlice, MemberContent
from torchmar.archive.forms import open_form
from torchmar.archive.member_streams import READ_ERRORS, Window
from torchmar.atomic import temporary_path
from torchmar.errors import ArchiveError
from torchmar.recipe import Runtime, Sample

_CHUNK = 1 << 20
_SMALL = 16 << 20  # limit for members that are read into memory: manifests, configurations, handlers


@dataclass(frozen=True)
class Member:
    """A file in an archive.

    Attributes:
        name: path in the archive.
        size: size in bytes when extracted.
    """

    name: str
    size: int


class Archive:
    """An open archive: a ``.mar`` of torchmar or torch-model-archiver, a ``.tar.gz`` or a folder; a context manager.

    No code of the archive is run.

    Args:
        path: the file or folder.
        allow_flaws: whether to open an archive with serious flaws. They are in ``flaws``, and members with flaws
            are not in ``members``.

    Raises:
        ArchiveError: the file does not exist, is no archive, or has flaws and ``allow_flaws`` is not set.

    Examples:
        >>> from pathlib import Path
        >>> import torchmar
        >>> built = torchmar.build(Path("archives/lengths"), Path("model_store"))
        >>> with torchmar.Archive(built.path) as archive:
        ...     archive.manifest.name, archive.config["batchSize"], archive.read("handler.py")[:13]
        ('lengths', 8, b'class Lengths')
    """

    def __init__(self, path: Path, *, allow_flaws: bool = False) -> None:
        self.path = path
        self._form = open_form(path)
        self.flaws = [*self._form.flaws, *layout.flaws(self._form.entries)]
        # Members that differ only in case are separate files, unless the file system of the extraction ignores case.
        serious = [flaw for flaw in self.flaws if flaw.kind is not layout.Kind.CASE]
        if serious and not allow_flaws:
            self.close()
            more = f" (and {len(serious) - 1} more)" if len(serious) > 1 else ""
            raise ArchiveError(f"{path}: {serious[0].what}{more}", hint=f"torchmar check {path} lists all")
        flawed = {flaw.member for flaw in self.flaws if flaw.kind is not layout.Kind.CASE}
        self._entries = {
            entry.name: entry for entry in self._form.entries if entry.kind == "file" and entry.name not in flawed
        }
        if self.form == "folder":
            self._leave_out_bytecode()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._form.close()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def _leave_out_bytecode(self) -> None:
        """Leave out bytecode that a Python has written beside imported modules of the archive, unless it is listed."""
        bytecode = [name for name in self._entries if PurePosixPath(name).parent.name == "__pycache__"]
        try:
            listed = self.listed if bytecode else {}
        except ArchiveError:  # a caller that needs the digests gets the error
            listed = {}
        for name in bytecode:
            if name not in listed:
                del self._entries[name]

    @cached_property
    def members(self) -> tuple[Member, ...]:
        """The files, in the order of the archive."""
        return tuple(Member(entry.name, entry.size) for entry in self._entries.values())

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Size in bytes of every member when extracted."""
        return {name: entry.size for name, entry in self._entries.items()}

    @property
    def frontend_flaws(self) -> list[layout.Flaw]:
        """Flaws for which TorchServe's frontend rejects the archive, although other readers accept it."""
        return self._form.frontend_flaws

    @property
    def form(self) -> str:
        """``zip``, ``tar.gz``, ``tar.gz without one folder around it`` or ``folder``."""
        return self._form.name

    @property
    def deflated(self) -> bool:
        """Whether members are compressed, so that they cannot be mapped or copied unchanged."""
        return any(entry.packed is not None for entry in self._entries.values())

    @cached_property
    def manifest(self) -> manifest.Manifest:
        """The manifest. Raises ManifestError."""
        if manifest.PATH not in self:
            raise ArchiveError(f"{self.path} has no {manifest.PATH}", hint="it is no model archive")
        return manifest.parse(self.read(manifest.PATH))

    @cached_property
    def listed(self) -> dict[str, str]:
        """The digests in ``SHA256SUMS``, by member; empty if there are none."""
        return digests.parse(self.read(digests.PATH)) if digests.PATH in self else {}

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the archive's ``SHA256SUMS``, which is computed if the archive has none."""
        return digests.archive_digest(
            self.read(digests.PATH) if digests.PATH in self else digests.show(self._actual_digests())
        )

    @property
    def config_text(self) -> str:
        """The text of the manifest's configuration file; empty if there is none."""
        name = self.manifest.model.config_file
        return self.read(name).decode("utf-8", "replace") if name else ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The keys of the configuration; the types that TorchServe expects are not checked."""
        try:
            config = yaml.safe_load(self.config_text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ArchiveError(f"{self.path}: the configuration is not YAML: {error}") from None
        return config if isinstance(config, dict) else {}

    def number(self, key: str, default: float) -> float:
        """Return the value of a key if it is a positive number, otherwise the default.

        Args:
            key: a key of ``model-config.yaml``, such as ``batchSize``.
            default: the result if the key is missing, or its value is not a positive number.

        Returns:
            The value of the key, or the default.
        """
        value = self.config.get(key)
        return value if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else default

    @property
    def samples(self) -> list[Sample]:
        """The samples inside the archive."""
        if SAMPLES_FILE not in self:
            return []
        try:
            return [Sample.model_validate(sample) for sample in json.loads(self.read(SAMPLES_FILE))]
        except (ValueError, TypeError, RecursionError) as error:
            raise ArchiveError(f"{self.path}: {SAMPLES_FILE}: {error}") from None

    @property
    def runtime(self) -> Runtime | None:
        """The environment that the archive requires; None: it requires none of its own."""
        try:
            return runtime.parse(self.read(runtime.FILE), self.sizes) if runtime.FILE in self else None
        except ArchiveError as error:
            raise ArchiveError(f"{self.path}: {error.message}") from None

    def open(self, name: str) -> BinaryIO:
        """Open a member as a seekable stream; a compressed member is copied first.

        Args:
            name: the path of the member in the archive.

        Returns:
            The stream, open for reading; the caller closes it.

        Raises:
            ArchiveError: the archive has no such member, or it cannot be opened.
        """
        entry = self._entries.get(name)
        if entry and entry.offset is not None:
            return cast(BinaryIO, io.BufferedReader(Window(self.path, entry.offset, entry.size)))
        with self.stream(name) as content:
            # Seeking backwards in a deflated stream would inflate it again from its start.
            size = self._entries[name].size
            if size > shutil.disk_usage(tempfile.gettempdir()).free:
                raise ArchiveError(f"{self.path}: {name} needs {size} bytes; {tempfile.gettempdir()} has less left")
            copy = cast(BinaryIO, io.BytesIO() if size <= _SMALL else tempfile.TemporaryFile())
            shutil.copyfileobj(content, copy, _CHUNK)
        copy.seek(0)
        return copy

    def stream(self, name: str) -> BinaryIO:
        """Open a member as a stream that is read once, from start to end; its checksum is verified at the end.

        Args:
            name: the path of the member in the archive.

        Returns:
            The stream, open for reading; the caller closes it.

        Raises:
            ArchiveError: the archive has no such member, or it cannot be opened.
        """
        if name not in self:
            raise ArchiveError(f"{self.path} has no {name}")
        try:
            return cast(
                BinaryIO, _MemberStream(self._form.open(self._entries[name]), lambda error: self._damaged(name, error))
            )
        except READ_ERRORS as error:
            raise self._damaged(name, error) from None

    def read(self, name: str) -> bytes:
        """Return the content of one small member.

        Args:
            name: the path of the member in the archive.

        Returns:
            All bytes of the member.

        Raises:
            ArchiveError: the archive has no such member, it is larger than 16 MiB, or its bytes are damaged.
        """
        with self.stream(name) as content:
            if self._entries[name].size > _SMALL:
                raise ArchiveError(f"{self.path}: {name} is too large ({self._entries[name].size} bytes)")
            return content.read(_SMALL)

    def source(self, name: str, scratch: Path) -> MemberContent:
        """Return a member as content to pack: a slice of the archive if stored and listed, otherwise a copy in
        ``scratch``.

        Args:
            name: the path of the member in the archive.
            scratch: an existing folder for the copy; the caller removes it.

        Returns:
            The slice, or the path of the copy.

        Raises:
            ArchiveError: the bytes of the member are damaged.
        """
        entry = self._entries[name]
        if entry.offset is not None and name in self.listed:
            return ArchiveSlice(self.path, entry.offset, entry.size, self.listed[name], entry.crc)
        file = scratch / secrets.token_hex(8)
        self._extract(name, file)
        return file

    def mismatched(self) -> list[str]:
        """Return the members whose bytes differ from ``SHA256SUMS``, and those that are not listed in it."""
        if digests.PATH not in self:
            return []
        actual = self._actual_digests()
        return sorted(name for name in {*self.listed, *actual} if self.listed.get(name) != actual.get(name))

    def extract(self, folder: Path) -> None:
        """Write every member below ``folder``, which must be new or empty; all of them, or none after an error.

        Args:
            folder: the target; it is created if it does not exist.

        Raises:
            ArchiveError: the folder is not empty, a member is damaged, or the disk is too small.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ArchiveError(f"{folder} exists already", hint="extract into a new or an empty folder")
        part = temporary_path(folder)
        try:
            part.mkdir(parents=True)
            total, free = sum(self.sizes.values()), shutil.disk_usage(part).free
            if total > free:
                raise ArchiveError(f"{self.path} needs {total} bytes; {folder.parent} has {free} left")
            for name in self._entries:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                self._extract(name, part / name)
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
            part.rename(folder)
        except OSError as error:
            raise ArchiveError(f"{self.path} cannot be extracted to {folder}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _extract(self, name: str, file: Path) -> None:
        entry = self._entries[name]
        with self.stream(name) as content, file.open("xb") as stream:
            written = 0
            while chunk := content.read(_CHUNK):
                written += len(chunk)
                if written > entry.size:
                    break
                stream.write(chunk)
        if written != entry.size:
            raise self._damaged(name, f"it has not the {entry.size} bytes that it declares")

    def sha256(self, name: str) -> str:
        """Return the SHA-256 of a member's bytes, in hexadecimal; this reads them all, and so checks them.

        Args:
            name: the path of the member in the archive.

        Returns:
            64 hexadecimal digits.

        Raises:
            ArchiveError: the bytes are damaged, or their number is not the declared one.
        """
        digest, size = digests.new(), 0
        with self.stream(name) as content:
            while chunk := content.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        if size != self._entries[name].size:
            raise self._damaged(name, f"it has {size} bytes, not the {self._entries[name].size} that it declares")
        return digest.hexdigest()

    def _actual_digests(self) -> dict[str, str]:
        return {name: self.sha256(name) for name in self._entries if name != digests.PATH}

    def _damaged(self, name: str, error: Exception | str) -> ArchiveError:
        return ArchiveError(f"{self.path}: {name} is damaged: {error or 'it is truncated'}")


class _MemberStream(io.BufferedIOBase):
    """The content of a member; reading damaged content raises ArchiveError."""

    def __init__(self, stream: IO[bytes], damaged: Callable[[Exception], ArchiveError]) -> None:
        self._stream, self._damaged = stream, damaged

    def read(self, size: int | None = -1) -> bytes:
        try:
            return self._stream.read(-1 if size is None else size)
        except READ_ERRORS as error:
            raise self._damaged(error) from None

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._stream.close()
        super().close()
