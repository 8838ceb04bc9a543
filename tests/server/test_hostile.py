"""Hostile and broken archives get findings or a clear error, and write only into their folder."""

from __future__ import annotations

import gzip
import io
import json
import os
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.command import torchmar
from torchmar.archive import digests, pack

MANIFEST = json.dumps({"model": {"modelName": "m", "handler": "h.py", "modelVersion": "1.0"}}).encode()
HANDLER = b"def handle(rows, context):\n    return rows\n"
GOOD = {"MAR-INF/MANIFEST.json": MANIFEST, "h.py": HANDLER}


def zipped(members: dict[str, bytes] | list[tuple[zipfile.ZipInfo | str, bytes]], method: int = 0) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return stream.getvalue()


def with_member(name: str | zipfile.ZipInfo, content: bytes = b"x") -> bytes:
    return zipped([*GOOD.items(), (name, content)])


def folder_mode() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("file")
    info.create_system, info.external_attr = 3, (stat.S_IFDIR | 0o755) << 16
    return info


def special(mode: int) -> bytes:
    info = zipfile.ZipInfo("special")
    info.create_system, info.external_attr = 3, (mode | 0o777) << 16
    return with_member(info, b"/etc/passwd")


def patched(at: Callable[[bytes], int], new: bytes, data: bytes | None = None) -> bytes:
    """Return a good archive with bytes changed at a place."""
    data = zipped(GOOD) if data is None else data
    place = at(data)
    return data[:place] + new + data[place + len(new) :]


def directory(data: bytes) -> int:
    return data.index(b"PK\x01\x02")


def end(data: bytes) -> int:
    return data.rindex(b"PK\x05\x06")


def tarred(*members: tuple[str, bytes | None, bytes]) -> bytes:
    """Return a .tar.gz of (name, type or None for a file, content or link target)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, kind, content in [*((f"m/{name}", None, text) for name, text in GOOD.items()), *members]:
            info = tarfile.TarInfo(name)
            if kind is None:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                info.type, info.linkname = kind, content.decode()
                archive.addfile(info)
    return stream.getvalue()


def deflated_bomb() -> bytes:
    """Return an archive with a member of 2 GB zeros, deflated to 2 MB."""
    body, crc = deflated(b"", 2048)
    return raw_zip("zeros.bin", body, method=8, size=2048 << 20, crc=crc)


def deflated(head: bytes, megabytes: int) -> tuple[bytes, int]:
    """Return some bytes and many zeros after them, deflated, and their CRC-32."""
    zeros = bytes(16 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    # What follows a full flush is independent of what was before it: the same for all of these zeros.
    part = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = zlib.crc32(head)
    for _ in range(megabytes // 16):
        crc = zlib.crc32(zeros, crc)
    return first + part * (megabytes // 16) + packer.flush(), crc


def raw_zip(name: str, body: bytes, *, method: int = 0, size: int | None = None, crc: int | None = None) -> bytes:
    """Return a zip with one member whose headers have the given values."""
    size = len(body) if size is None else size
    crc = zlib.crc32(body) if crc is None else crc
    raw = name.encode()
    local = (
        struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, method, 0, 33, crc, len(body), size, len(raw), 0) + raw + body
    )
    entry = struct.pack(
        "<IHHHHHHIIIHHHHHII", 0x02014B50, 788, 20, 0, method, 0, 33, crc, len(body), size, len(raw), 0, 0, 0, 0, 0, 0
    )
    entry += raw
    return local + entry + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(entry), len(local), 0)


def overlapping() -> bytes:
    """Return an archive in which two directory entries point at one member's bytes."""
    data = zipped(GOOD)
    start, stop = directory(data), end(data)
    entries = data[start:stop]
    first = entries[: entries.index(b"PK\x01\x02", 4)]
    again = first.replace(b"MAR-INF/MANIFEST.json", b"MAR-INF/MANIFEST.copy")
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 3, 3, len(entries) + len(again), start, 0)
    return data[:start] + entries + again + tail


def unlisted() -> bytes:
    """Return an archive whose directory, consistent in itself, leaves out the handler that is in the file."""
    data = zipped(GOOD)
    start, stop = directory(data), end(data)
    kept = data[start : data.index(b"PK\x01\x02", start + 4)]
    assert stop - start > len(kept)
    return data[:start] + kept + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, len(kept), start, 0)


def manifested(old: bytes, new: bytes) -> bytes:
    return zipped({**GOOD, "MAR-INF/MANIFEST.json": MANIFEST.replace(old, new)})


def sums(content: bytes) -> bytes:
    return zipped({**GOOD, digests.PATH: content})


def many_members() -> bytes:
    """Return what zipfile would write for 100,001 empty members, in a tenth of the time."""
    names = [b"%06d" % number for number in range(100_001)]
    local = [struct.pack("<IHHHHHIIIHH", 0x04034B50, 20, 0, 0, 0, 33, 0, 0, 0, 6, 0) + name for name in names]
    size = len(local[0])
    head = struct.pack("<IHHHHHHIIIHHHHH", 0x02014B50, 788, 20, 0, 0, 0, 33, 0, 0, 0, 6, 0, 0, 0, 0)
    entries = [head + struct.pack("<II", 0, number * size) + name for number, name in enumerate(names)]
    start, length, count = len(names) * size, len(names) * len(entries[0]), len(names)
    end64 = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, count, count, length, start)
    locator = struct.pack("<IIQI", 0x07064B50, 0, start + length, 1)
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, length, start, 0)
    return b"".join((*local, *entries, end64, locator, end))


def endless_directory() -> bytes:
    data = zipped(GOOD)
    return patched(lambda data: end(data) + 12, struct.pack("<I", 0xFFFFFFF0), data)


def tar_bomb() -> bytes:
    info = tarfile.TarInfo("m/zeros")
    info.size = 2047 << 20
    # Zeros are also the end of a tar.
    body, crc = deflated(info.tobuf(), 2048)
    size = (2048 << 20) + tarfile.BLOCKSIZE
    return b"\x1f\x8b\x08" + bytes(6) + b"\xff" + body + struct.pack("<II", crc, size)


LISTED = digests.show(dict.fromkeys(GOOD, "0" * 64))
KINDS: dict[str, tuple[Callable[[], bytes], str]] = {
    "an empty file": (lambda: b"", "MAR101"),
    "text": (lambda: b"hello, I am an archive", "MAR101"),
    "noise": (lambda: os.urandom(5000), "MAR101"),
    "half an archive": (lambda: zipped(GOOD)[: len(zipped(GOOD)) // 2], "MAR101"),
    "an archive without its last byte": (lambda: zipped(GOOD)[:-1], "MAR101"),
    "a directory of four gigabytes": (endless_directory, "MAR101"),
    "a directory that starts elsewhere": (lambda: patched(lambda d: end(d) + 16, b"\xff\xff\x00\x00"), "MAR101"),
    "an entry without a signature": (lambda: patched(directory, b"XXXX"), "MAR101"),
    "half a gzip": (lambda: tarred()[:60], "MAR101"),
    "a gzip of noise": (lambda: gzip.compress(os.urandom(3000)), "MAR101"),
    "a path upward": (lambda: with_member("../../evil.txt"), "MAR102"),
    "an absolute path": (lambda: with_member("/tmp/evil.txt"), "MAR102"),
    "a path upward from inside": (lambda: with_member("a/b/../../../evil.txt"), "MAR102"),
    "a Windows path": (lambda: with_member("..\\evil.txt"), "MAR102"),
    "a drive letter": (lambda: with_member("C:evil.txt"), "MAR102"),
    "a name with a NUL": (lambda: raw_zip("evil.py\0.txt", b"x"), "MAR102"),
    "a name with a line break": (lambda: with_member("a\nb"), "MAR102"),
    "a name of 5000 letters": (lambda: with_member("x" * 5000), "MAR102"),
    "an empty name": (lambda: raw_zip("", b"x"), "MAR102"),
    "a member that is there twice": (lambda: zipped([*GOOD.items(), ("h.py", b"other")]), "MAR103"),
    "two manifests": (lambda: zipped([*GOOD.items(), ("MAR-INF/MANIFEST.json", b"{}")]), "MAR103"),
    "a symbolic link": (lambda: special(stat.S_IFLNK), "MAR104"),
    "a character device": (lambda: special(stat.S_IFCHR), "MAR104"),
    "a pipe": (lambda: special(stat.S_IFIFO), "MAR104"),
    "a socket": (lambda: special(stat.S_IFSOCK), "MAR104"),
    "a bomb of zeros": (deflated_bomb, "MAR106"),
    "100,001 members": (many_members, "MAR106"),
    "a local header with another name": (lambda: patched(lambda d: d.index(b"h.py", 200), b"evil"), "MAR107"),
    "a local header with another size": (lambda: patched(lambda d: 22, struct.pack("<I", 7)), "MAR107"),
    "a manifest with another byte": (lambda: patched(lambda d: d.index(b"h.py"), b"evil"), "MAR107"),
    "no local header": (lambda: patched(lambda d: 0, b"XXXX"), "MAR107"),
    "members that share bytes": (overlapping, "MAR107"),
    "a directory entry that swallows the next": (lambda: patched(lambda d: directory(d) + 33, b"\x01"), "MAR107"),
    "a directory that leaves out a member": (unlisted, "MAR107"),
    "a file with a folder's mode": (lambda: with_member(folder_mode(), b"x"), "MAR107"),
    "an encrypted member": (lambda: patched(lambda d: 6, b"\x01"), "MAR107"),
    "an unknown compression": (lambda: raw_zip("x", b"x", method=99), "MAR107"),
    "a bzip2 member": (lambda: zipped(GOOD, zipfile.ZIP_BZIP2), "MAR107"),
    "more bytes than declared": (lambda: raw_zip("x", zlib.compress(b"x" * 9000)[2:-4], method=8, size=5), "MAR107"),
    "fewer bytes than declared": (lambda: raw_zip("x", zlib.compress(b"x" * 5)[2:-4], method=8, size=9000), "MAR107"),
    "a wrong checksum": (lambda: raw_zip("x", b"x", crc=7), "MAR107"),
    "a broken deflate stream": (lambda: raw_zip("x", b"\xff" * 50, method=8, size=500), "MAR107"),
    "another digest than listed": (lambda: sums(LISTED), "MAR108"),
    "a digest list that is none": (lambda: sums(b"what?\n"), "MAR109"),
    "a listed member that is missing": (lambda: sums(LISTED + digests.show({"gone": "0" * 64})), "MAR109"),
    "a file where a folder is": (lambda: zipped([*GOOD.items(), ("h.py/x", b"x")]), "MAR110"),
    "no manifest": (lambda: zipped({"h.py": HANDLER}), "MAR201"),
    "a manifest that is no JSON": (lambda: zipped({**GOOD, "MAR-INF/MANIFEST.json": b"{"}), "MAR202"),
    "a manifest without end": (lambda: zipped({**GOOD, "MAR-INF/MANIFEST.json": b"[" * 200_000}), "MAR202"),
    "a manifest of 2 MB": (lambda: zipped({**GOOD, "MAR-INF/MANIFEST.json": b" " * (2 << 20)}), "MAR202"),
    "a model name with a path": (lambda: manifested(b'"m"', b'"../m"'), "MAR203"),
    "a version with a path": (lambda: manifested(b"1.0", b"../1"), "MAR203"),
    "a tar with a path upward": (lambda: tarred(("../evil.txt", None, b"x")), "MAR102"),
    "a tar with an absolute path": (lambda: tarred(("/tmp/evil.txt", None, b"x")), "MAR102"),
    "a tar with a symbolic link": (lambda: tarred(("m/link", tarfile.SYMTYPE, b"/etc/passwd")), "MAR104"),
    "a tar with a hard link": (lambda: tarred(("m/link", tarfile.LNKTYPE, b"m/h.py")), "MAR104"),
    "a tar with a device": (lambda: tarred(("m/device", tarfile.CHRTYPE, b"")), "MAR104"),
    "a tar with a member twice": (lambda: tarred(("m/h.py", None, b"other")), "MAR103"),
    "a tar bomb": (tar_bomb, "MAR106"),
}  # fmt: skip

# All four commands in one process for each archive, with bounds on its memory and on what it writes. These processes
# are forked by one that has loaded the command line, for each line of its input: a folder, and a file for the output.
DRIVER = """
import gc, os, resource, signal, sys
import torchmar.archive.importing, torchmar.checks, torchmar.cli.findings
from torchmar.cli import app, main

def run():
    signal.alarm(600)
    resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    resource.setrlimit(resource.RLIMIT_FSIZE, (300 << 20, 300 << 20))
    for arguments in ("inspect x.mar", "check x.mar", "extract x.mar out", "import x.mar --to in"):
        arguments = arguments.split()
        sys.argv = ["torchmar", *arguments]
        print(">>>", arguments[0], flush=True)
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        print("<<<", arguments[0], code, flush=True)

gc.collect()
gc.freeze()
for line in sys.stdin:
    folder, output = line.split()
    if not (child := os.fork()):
        os.chdir(folder)
        os.environ["TMPDIR"] = folder + "/tmp"
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdin = open(os.devnull)
        try:
            run()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)  # without the destruction of all that was loaded before the fork
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
Drive = Callable[[Path], str]


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    """Return a function that runs the commands in a folder and returns their output."""
    outputs = tmp_path_factory.mktemp("outputs")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", DRIVER], text=True, **pipes) as process:  # type: ignore[call-overload]

        def drive(folder: Path) -> str:
            output = outputs / str(len(list(outputs.iterdir())))
            process.stdin.write(f"{folder} {output}\n")
            process.stdin.flush()
            code, text = process.stdout.readline(), output.read_text()
            assert code == "0\n", text[-3000:]
            return text

        yield drive
        process.stdin.close()


@pytest.mark.parametrize(("make_bytes", "code"), KINDS.values(), ids=KINDS)
def test_it_is_rejected_with_its_code_and_leaves_no_files(
    tmp_path: Path, drive: Drive, make_bytes: Callable[[], bytes], code: str
) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    (inside / "x.mar").write_bytes(make_bytes())
    (inside / "tmp").mkdir()
    output = drive(inside)
    assert "Traceback" not in output, output[-3000:]
    assert code in output.partition(">>> check")[2].partition("<<< check")[0], output[-3000:]
    assert "<<< check 1" in output
    # A good layout with a bad manifest may be looked at and extracted; what is hostile may not.
    rejected = code < "MAR2" and code not in ("MAR108", "MAR109")
    assert ("<<< extract 1" in output) is rejected, output[-3000:]
    assert "<<< import 1" in output or code in ("MAR108", "MAR109"), output[-3000:]
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    kept = {"a", "a/b", "a/b/x.mar", "a/b/tmp"}
    assert {path for path in left if not path.startswith(("a/b/out", "a/b/in"))} <= kept
    assert not (left & {"a/b/out"}) or not rejected
    assert not Path("/tmp/evil.txt").exists()


@pytest.mark.parametrize(("link", "code"), [("nowhere", 1), ("link", 1), ("/etc/hosts", 0), ("h.py", 0), ("..", 0)])
def test_a_folder_with_a_broken_link_is_rejected(tmp_path: Path, link: str, code: int) -> None:
    folder = tmp_path / "m"
    for name, content in GOOD.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "link").symlink_to(link)
    ran = torchmar("check", folder, cwd=tmp_path, code=code)
    assert ("MAR104" in ran.stdout) is (code == 1)


def test_a_good_archive_passes_through_all_of_it(tmp_path: Path, drive: Drive) -> None:
    pack(GOOD, tmp_path / "x.mar")
    (tmp_path / "tmp").mkdir()
    output = drive(tmp_path)
    assert [line.split()[-1] for line in output.splitlines() if line.startswith("<<<")] == ["0"] * 4, output
