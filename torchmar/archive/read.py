"""Open an archive: what is inside, its manifest and digest, and its extraction."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import stat
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

import yaml

from torchmar import manifest
from torchmar.archive import digests
from torchmar.archive.contents import SAMPLES_FILE
from torchmar.errors import ArchiveError
from torchmar.recipe import Sample

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Member:
    """A file in an archive: its path there and its size in bytes when extracted."""

    name: str
    size: int


class Archive:
    """An open ``.mar``, ours or torch-model-archiver's; a context manager.

    Raises:
        ArchiveError: the file is missing, is no zip, or has a member that would leave its folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except FileNotFoundError:
            raise ArchiveError(f"{path} does not exist") from None
        except IsADirectoryError:
            raise ArchiveError(f"{path} is a folder, not an archive") from None
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise ArchiveError(f"{path} is not an archive: {error}", hint="a .mar is a zip file") from None
        except OSError as error:
            raise ArchiveError(f"{path} cannot be read: {error.strerror}") from None
        try:
            self.members = tuple(self._members())
        except BaseException:
            self._zip.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._zip.close()

    def __contains__(self, name: str) -> bool:
        return any(member.name == name for member in self.members)

    @cached_property
    def manifest(self) -> manifest.Manifest:
        """The manifest. Raises ManifestError."""
        if manifest.PATH not in self:
            raise ArchiveError(f"{self.path} has no {manifest.PATH}", hint="it is a zip, but no model archive")
        return manifest.parse(self.read(manifest.PATH))

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the archive's ``SHA256SUMS``, computed where the archive has none."""
        return digests.archive_digest(
            self.read(digests.PATH) if digests.PATH in self else digests.show(self._actual_digests())
        )

    @property
    def config_text(self) -> str:
        """The text of the file that the manifest names as its configuration; empty without one."""
        name = self.manifest.model.config_file
        return self.read(name).decode("utf-8", "replace") if name else ""

    @property
    def config(self) -> dict[str, Any]:
        """The configuration's keys; TorchServe's own types are not checked here."""
        try:
            config = yaml.safe_load(self.config_text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise ArchiveError(f"{self.path}: the configuration is not YAML: {error}") from None
        return config if isinstance(config, dict) else {}

    @property
    def samples(self) -> list[Sample]:
        """The samples that the archive carries."""
        if SAMPLES_FILE not in self:
            return []
        try:
            return [Sample.model_validate(sample) for sample in json.loads(self.read(SAMPLES_FILE))]
        except (ValueError, TypeError) as error:
            raise ArchiveError(f"{self.path}: {SAMPLES_FILE}: {error}") from None

    def read(self, name: str) -> bytes:
        """Return the content of one member.

        Raises:
            ArchiveError: there is no such member, or its bytes are damaged.
        """
        try:
            return self._zip.read(name)
        except KeyError:
            raise ArchiveError(f"{self.path} has no {name}") from None
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise ArchiveError(f"{self.path}: {name} is damaged: {error}") from None

    def damaged(self) -> list[str]:
        """Return the members whose bytes are not those that ``SHA256SUMS`` lists, and those it does not list."""
        if digests.PATH not in self:
            return []
        listed, actual = digests.parse(self.read(digests.PATH)), self._actual_digests()
        return sorted(name for name in {*listed, *actual} if listed.get(name) != actual.get(name))

    def extract(self, folder: Path) -> None:
        """Write every member below ``folder``, which must be new or empty; all of them or nothing.

        Raises:
            ArchiveError: the folder has content, a member is damaged, or the disk refuses.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ArchiveError(f"{folder} exists already", hint="extract into a new or an empty folder")
        part = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.part")
        try:
            for member in self.members:
                target = part / member.name
                target.parent.mkdir(parents=True, exist_ok=True)
                with self._zip.open(member.name) as content, target.open("xb") as stream:
                    shutil.copyfileobj(content, stream, _CHUNK)
            part.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                folder.rmdir()
            part.rename(folder)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise ArchiveError(f"{self.path} cannot be extracted to {folder}: {error}") from None
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _actual_digests(self) -> dict[str, str]:
        actual = {}
        for member in self.members:
            if member.name != digests.PATH:
                digest = hashlib.sha256()
                try:
                    with self._zip.open(member.name) as content:
                        while chunk := content.read(_CHUNK):
                            digest.update(chunk)
                except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
                    raise ArchiveError(f"{self.path}: {member.name} is damaged: {error}") from None
                actual[member.name] = digest.hexdigest()
        return actual

    def _members(self) -> list[Member]:
        members: dict[str, Member] = {}
        for info in self._zip.infolist():
            name = info.filename
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name or not path.parts:
                raise ArchiveError(f"{self.path}: the member {name!r} would be written outside of its folder")
            if stat.S_ISLNK(info.external_attr >> 16):
                raise ArchiveError(f"{self.path}: the member {name!r} is a symbolic link")
            if info.is_dir():
                continue
            if name in members:
                raise ArchiveError(f"{self.path}: the member {name!r} is there twice")
            members[name] = Member(name, info.file_size)
        return list(members.values())
