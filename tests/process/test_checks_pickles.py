"""torchmar.checks.pickles lists the imports of a pickle, and allows the same ones as torch."""

from __future__ import annotations

import collections
import contextlib
import datetime
import functools
import io
import os
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import _weights_only_unpickler, nn

from torchmar.checks import pickles
from torchmar.checks.finding import Code, Finding
from torchmar.checks.pickled_files import Inspector
from torchmar.checks.pickles import Budget, scan


class Reduced:
    """A value whose pickle calls a function."""

    def __init__(self, function: Callable[..., object], *args: object) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def text(value: str) -> bytes:
    """Return the opcode that pushes a short string."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def saved(value: object, **how: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **how)  # type: ignore[arg-type]
    return stream.getvalue()


def packed(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def in_torch_zip(pickled: bytes) -> bytes:
    return packed({"archive/data.pkl": pickled, "archive/version": b"3\n"})


def found(data: bytes, place: str = "model.pt", torchscript: bool = False) -> list[Finding]:
    inspector = Inspector(Code.MAR601, Code.MAR602, "", Budget())
    return list(inspector.file(io.BytesIO(data), place, torchscript=torchscript))


def codes(data: bytes, place: str = "model.pt") -> set[str]:
    return {finding.code.name for finding in found(data, place)}


def imports(data: bytes) -> list[tuple[str, int]]:
    return [(item.name, item.offset) for item in scan(io.BytesIO(data)).imports]


def linear() -> nn.Module:
    return nn.Linear(2, 3)


SYSTEM = b"cposix\nsystem\n"
CALLED = b"X\x02\x00\x00\x00id\x85R."
HARMLESS = pickle.dumps({"a": 1}, protocol=2)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torch about quantized and sparse tensors
    STATE = collections.OrderedDict(weight=torch.ones(2, 3), bias=nn.Parameter(torch.zeros(2)))
    PER_TENSOR = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    PER_CHANNEL = torch.quantize_per_channel(torch.ones(2, 2), torch.ones(2), torch.zeros(2), 0, torch.quint8)

    SAMPLES = {
        "a state dict": saved(linear().state_dict()),
        "a legacy state dict": saved(linear().state_dict(), _use_new_zipfile_serialization=False),
        "an ordered dict with a parameter": saved(STATE),
        "a quantized tensor": saved(PER_TENSOR),
        "a tensor quantized by channel": saved(PER_CHANNEL),
        "a legacy quantized tensor": saved({"w": PER_TENSOR}, _use_new_zipfile_serialization=False),
        "a sparse tensor": saved(torch.eye(3).to_sparse()),
        "a compressed sparse tensor": saved(torch.eye(3).to_sparse_csr()),
        "a meta tensor": saved(torch.empty(2, device="meta")),
        "small floats": saved([torch.zeros(2, dtype=kind) for kind in (torch.float8_e5m2, torch.bfloat16, torch.half)]),
        "dtypes and devices": saved([torch.float32, torch.int4, torch.device("cpu"), torch.Size([1])]),
        "plain values": saved(
            {"set": {1}, "bytes": b"ab", "array": bytearray(b"a"), "complex": 1j, "none": None, "x": 1.5}
        ),
        "a counter": saved(collections.Counter("aab")),
        "an untyped storage": saved(torch.ones(2).untyped_storage()),
        "a tensor with attributes": saved(torch.ones(2).as_subclass(nn.Parameter)),
        "a module": saved(linear()),
        "a legacy module": saved(nn.Sequential(linear(), nn.ReLU()), _use_new_zipfile_serialization=False),
        "a call of os.system": saved(Reduced(os.system, "id")),
        "a legacy call of os.system": saved({"w": Reduced(os.system, "id")}, _use_new_zipfile_serialization=False),
        "a call of eval": saved(Reduced(eval, "1")),
        "a call of getattr": saved(Reduced(getattr, "a", "upper")),
        "a function of torch": saved(Reduced(torch.hub.list, "a/b")),
        "a partial": saved(functools.partial(int, "1")),
        "an array of NumPy": saved(numpy.ones(2)),
        "a date": saved(datetime.date(2026, 1, 1)),
        "python 2's set": in_torch_zip(b"\x80\x02c__builtin__\nset\n]\x85R."),
        "python 2's eval": in_torch_zip(b"\x80\x02c__builtin__\neval\n" + CALLED),
        "GLOBAL": in_torch_zip(b"\x80\x02" + SYSTEM + CALLED),
        "GLOBAL without a call": in_torch_zip(b"\x80\x02" + SYSTEM + b"."),
        "INST": in_torch_zip(b"(X\x02\x00\x00\x00idiposix\nsystem\n."),
        "OBJ": in_torch_zip(b"(" + SYSTEM + b"X\x02\x00\x00\x00ido."),
        "STACK_GLOBAL": in_torch_zip(b"\x80\x04" + text("posix") + text("system") + b"\x93."),
        "EXT1": in_torch_zip(b"\x80\x02\x82\x07."),
        "a name of an allowed module": in_torch_zip(b"\x80\x02ctorch._utils\n_import_dotted_name\n."),
        "an allowed name with a tail": in_torch_zip(b"\x80\x02ctorch\nTensor.__init__\n."),
        "an import that is thrown away": in_torch_zip(b"\x80\x02" + SYSTEM + b"0}."),
    }


def accepted_by_torch(data: bytes) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.load(io.BytesIO(data), weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("name", SAMPLES)
def test_findings_are_exactly_the_pickles_that_torch_rejects(name: str) -> None:
    assert codes(SAMPLES[name]) == (set() if accepted_by_torch(SAMPLES[name]) else {"MAR601"})


def test_the_list_is_that_of_torch() -> None:
    admitted = set(_weights_only_unpickler._get_allowed_globals())
    # The list is for every torch from 2.13 to 2.15: what one of them admits and another does not is on it.
    assert pickles.ALLOWED - admitted <= {"torch.bcomplex32", "torch._utils._rebuild_nested_tensor"}
    # A later torch may have more types of numbers; anything else that it admits should be looked at.
    assert {type(getattr(torch, name.removeprefix("torch."), 0)) for name in admitted - pickles.ALLOWED} <= {
        torch.dtype
    }


def test_the_opcodes_are_those_of_torch() -> None:
    known = {op.code.encode("latin-1"): op.name for op in pickles.pickletools.opcodes}
    read = {known[value] for value in vars(_weights_only_unpickler).values() if isinstance(value, bytes)}
    assert read == pickles.READ_BY_TORCH


def test_no_name_on_the_list_differs_in_python_2() -> None:
    import _compat_pickle

    renamed = {*_compat_pickle.IMPORT_MAPPING, *(module for module, _ in _compat_pickle.NAME_MAPPING)}
    assert not {name for name in pickles.ALLOWED if name.rpartition(".")[0] in renamed}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x80\x02" + SYSTEM + b".", [("posix.system", 2)]),
        (b"(iposix\nsystem\n.", [("posix.system", 1)]),
        # strings by way of the memo, in every spelling
        (b"\x80\x04" + text("posix") + b"\x940" + text("system") + b"\x940h\x00h\x01\x93.", [("posix.system", 25)]),
        (b"U\x05posixq\x070U\x06systemp9\n0g7\nj\x09\x00\x00\x00\x93.", [("posix.system", 30)]),
        (b"Vposix\nr\x00\x01\x00\x000j\x00\x01\x00\x00S'system'\n\x93.", [("posix.system", 28)]),
        # an innocent string in the memo that another one replaces
        (
            text("collections") + b"q\x000" + text("posix") + b"q\x000h\x00" + text("system") + b"\x93.",
            [("posix.system", 36)],
        ),
        # the counter of MEMOIZE counts the keys that PUT has made
        (text("x") + b"q\x050" + text("posix") + b"\x940h\x01" + text("system") + b"\x93.", [("posix.system", 25)]),
        # decoys that are popped, and a mark among them
        (text("posix") + text("system") + text("a") + b"0(" + text("b") + b"1(0\x93.", [("posix.system", 26)]),
        (text("posix") + b"(]0" + text("b") + b"t0" + text("system") + b"\x93.", [("posix.system", 23)]),
        (b"2" + SYSTEM + b".", []),
        (text("posix") + b"2\x93.", [("posix.posix", 8)]),
        # names that are no constant strings
        (text("posix") + text("sys") + b"\x85\x93.", [("a name that it computes", 13)]),
        (text("posix") + b"h\x09\x93.", [("a name that it computes", 9)]),
        (text("posix") + b"C\x06system\x93.", [("a name that it computes", 15)]),
        (b"\x84\x01\x02\x03\x04.", [("extension 67305985 of copyreg", 0)]),
        # an escape in GLOBAL is none to an unpickler
        (b"ccollection\\x73\nOrderedDict\n.", [("collection\\x73.OrderedDict", 0)]),
        (b"ctorch\nab\x1b[31m\n.", [(r"'torch.ab\x1b[31m'", 0)]),
        # every pickle of a row
        (HARMLESS + HARMLESS + SYSTEM + b".", [("posix.system", 2 * len(HARMLESS))]),
        (b"I1\n.(I1\nI2\nl." + SYSTEM + b".", [("posix.system", 13)]),
        # the first of its kind only
        (SYSTEM + SYSTEM + b"." + SYSTEM + b".", [("posix.system", 0)]),
    ],
)
def test_imports_are_found_with_their_place(data: bytes, expected: list[tuple[str, int]]) -> None:
    assert imports(data) == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "pickle exhausted before seeing STOP"),
        (pickle.dumps(["abc"], protocol=2)[:-3], "at byte"),
        (b"\x80\x02" + SYSTEM, "pickle exhausted before seeing STOP"),
        (b"\x80\x02\xff.", "unknown"),
        (b"0.", "takes more than there is"),
        (b"(q\x00.", "takes more than there is"),
        (b"t.", "takes more than there is"),
        (b"I1x\n.", "damaged"),
        (HARMLESS + b"\x80\x02N", "pickle exhausted before seeing STOP"),
        (b"B" + struct.pack("<I", 3 << 30) + b"x", "string of 3221225472 bytes is cut off"),
        (b"\x8e" + struct.pack("<Q", 1 << 62) + b"x", "string of 4611686018427387904 bytes is cut off"),
        (b"V" + b"x" * (2 << 20), "line without end"),
        (b"L" + b"9" * 100_000 + b"L\n.", "damaged"),
        (b"N0" * 3000 + b"N.", "too large to walk"),
    ],
)
def test_a_pickle_that_cannot_be_read_to_its_end_has_a_reason(data: bytes, message: str) -> None:
    result = scan(io.BytesIO(data), Budget(opcodes=5000))
    assert message in result.problem
    assert codes(data, "x.pkl") <= {"MAR601", "MAR602"}


def test_imports_before_the_damage_of_a_pickle_are_findings() -> None:
    assert imports(b"\x80\x02" + SYSTEM + b"\xff") == [("posix.system", 2)]
    # Protocol 0 has no header that distinguishes it from other files.
    assert codes(SYSTEM + b"(S'id'\ntR\xff") == {"MAR601", "MAR602"}


def test_bytes_after_a_pickle_that_begin_no_other_one_are_no_problem() -> None:
    assert scan(io.BytesIO(HARMLESS + b"\n\0\xff")).problem == ""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_legacy_file_ends_with_its_fifth_pickle(protocol: int) -> None:
    state = {"w": torch.ones(2)}
    legacy = saved(state, _use_new_zipfile_serialization=False, pickle_protocol=protocol)
    result = scan(io.BytesIO(legacy))
    assert (result.legacy, result.problem) == (True, "")
    assert {item.name for item in result.imports} <= pickles.ALLOWED
    assert bool(result.beyond) is not accepted_by_torch(legacy)


OPCODES = [
    *(text(name) for name in ("posix", "system", "collections", "OrderedDict")),
    *(b"S'posix'\n", b"U\x06system", b"Vposix\n", b"C\x05posix", b"X\x06\x00\x00\x00system"),
    *(b"cposix\nsystem\n", b"iposix\nsystem\n", b"ccollections\nOrderedDict\n", b"\x93", b"\x93", b"\x93"),
    *(b"(", b"0", b"1", b"2", b"\x94", b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"p0\n", b"p01\n", b"g0\n", b"g1\n"),
    *(b"N", b"]", b")", b"}", b"\x8f", b"t", b"l", b"d", b"\x85", b"\x86", b"\x87", b"\x91"),
    *(b"R", b"b", b"a", b"e", b"s", b"u", b"o", b"\x81", b"\x92", b"\x90", b"Q", b"."),
    *(b"\x80\x02", b"\x80\x04", b"\x95\x00\x00\x00\x00\x00\x00\x00\x00"),
]


class Recorder(pickle.Unpickler):
    """The real unpickler, which records imports and imports nothing."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.names: set[str] = set()

    def find_class(self, module: str, name: str) -> object:
        self.names.add(f"{module}.{name}")
        return type("Stub", (), {"__new__": lambda cls, *args, **named: object.__new__(cls)})

    def persistent_load(self, pid: object) -> object:
        return None


@settings(max_examples=500, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(OPCODES), min_size=3, max_size=25))
def test_nothing_is_imported_that_a_clean_walk_has_not_seen(opcodes: list[bytes]) -> None:
    data = b"".join(opcodes) + b"."
    real = Recorder(io.BytesIO(data))
    with contextlib.suppress(Exception):
        real.load()
    result = scan(io.BytesIO(data))
    seen = {item.name for item in result.imports}
    assert real.names <= seen or result.problem or "a name that it computes" in seen


def test_a_number_in_passing_makes_no_legacy_file() -> None:
    magic = pickle.dumps(pickles.MAGIC, protocol=2)
    assert scan(io.BytesIO(magic + b"N." * 4 + SYSTEM + b".")).legacy
    passing = magic[:-1] + b"0N."
    assert imports(passing + b"N." * 4 + SYSTEM + b".") == [("posix.system", len(passing) + 8)]


def test_memory_stays_bounded_whatever_a_pickle_claims() -> None:
    remembering = b"\x80\x04" + b"N\x940" * 50_000 + b"N."
    nested = b"(" * 200_000
    zeros = in_torch_zip(b"\x80\x02") + b""
    bomb = packed({"a/data.pkl": b"\x80\x02B" + struct.pack("<I", 65 << 20) + bytes(65 << 20)}, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    for data in (remembering, nested, zeros, bomb):
        codes(data)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 << 20


@pytest.mark.parametrize(
    ("members", "places"),
    [
        ({"a/data.pkl": HARMLESS, "a/other.PKL": SYSTEM + b"."}, ["m!a/other.PKL"]),
        ({"a/code/x.py.debug_pkl": SYSTEM + b"."}, ["m!a/code/x.py.debug_pkl"]),
        ({"a/x.pickle": SYSTEM + b".", "a/data/0": SYSTEM + b"."}, ["m!a/x.pickle"]),
        ({"a/extra/w.pt": SAMPLES["a module"]}, ["m!a/extra/w.pt!archive/data.pkl"]),
        ({"a/extra/w.bin": SAMPLES["a legacy call of os.system"]}, ["m!a/extra/w.bin"]),
        ({"a/opaque_obj_0": SYSTEM + b"."}, ["m!a/opaque_obj_0"]),
        ({"a/custom_obj_0": in_torch_zip(SYSTEM + b".")}, ["m!a/custom_obj_0!archive/data.pkl"]),
        (
            {
                "a/data/weights/model_weights_config.json": (
                    b'{"config": {"w": {"path_name": "weight_0", "use_pickle": true},'
                    b' "v": {"path_name": "weight_1", "use_pickle": false}}}'
                ),
                "a/data/weights/weight_0": SAMPLES["a module"],
                "a/data/weights/weight_1": SAMPLES["a module"],
            },
            ["m!a/data/weights/weight_0!archive/data.pkl"],
        ),
    ],
)
def test_every_pickle_in_a_zip_is_walked(members: dict[str, bytes], places: list[str]) -> None:
    result = found(packed(members), "m")
    assert [(item.code, item.place) for item in result] == [(Code.MAR601, place) for place in places]


def test_types_of_torchscript_are_imports_elsewhere() -> None:
    data = in_torch_zip(b"\x80\x02c__torch__.net\nNet\n0ctorch.jit._pickle\nbuild_intlist\n.")
    assert not found(data, torchscript=True)
    assert len(found(data)) == 2


def test_two_entries_of_one_name_are_both_walked() -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("a/data.pkl", SYSTEM + b".")
            archive.writestr("a/data.pkl", HARMLESS)
    assert codes(stream.getvalue()) == {"MAR601"}


def test_a_second_name_does_not_hide_an_entry() -> None:
    entry = zipfile.ZipInfo("a/data.pkl")
    name = b"a/data.txt"
    entry.extra = struct.pack("<HHBL", 0x7075, 5 + len(name), 1, zipfile.crc32(b"a/data.pkl")) + name  # type: ignore[attr-defined]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(entry, SYSTEM + b".")
    assert codes(stream.getvalue()) == {"MAR601"}


def two_directories() -> bytes:
    """Return a zip with two directories: Python finds a harmless one, a reader that trusts the end record another."""
    evil, good = in_torch_zip(SYSTEM + b"."), in_torch_zip(HARMLESS)
    end = evil[-22:]
    return evil[:-22] + good[:-22] + end


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (two_directories(), "not at the place that its end record declares"),
        (in_torch_zip(HARMLESS) + b"x", "not at its end"),
        (SAMPLES["a module"][:-1], "not at its end"),
        (SAMPLES["a module"][: len(SAMPLES["a module"]) // 2], "not at its end"),
        (SAMPLES["a module"][:90], "not at its end"),
        (
            SAMPLES["a state dict"][:-42] + SAMPLES["a state dict"][-22:],
            "not at the place that its end record declares",
        ),
        (SAMPLES["a state dict"].replace(b"collections\nO", b"collectionz\nO"), "Bad CRC"),
        (packed({"a/data.pkl": HARMLESS}, zipfile.ZIP_LZMA), "compressed in a way that torch does not read"),
        (
            packed({"a/data.pkl": HARMLESS}).replace(
                b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
            ),
            "encrypted",
        ),
        (packed({"a/w.pt": packed({"a.pt": packed({"a.pt": packed({"a.pt": b"x"})})})}), "zips in zips in zips"),
        (packed({"a/model_weights_config.json": b"[" * 100_000}), "is not JSON"),
    ],
)
def test_a_zip_that_readers_read_differently_or_not_at_all_is_a_finding(data: bytes, message: str) -> None:
    assert [message in finding.cause for finding in found(data) if finding.code is Code.MAR602] == [True]


def test_a_tar_is_no_way_around() -> None:
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in ("storages", "tensors", "pickle"):
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    assert codes(stream.getvalue()) == {"MAR602"}


@pytest.mark.parametrize(
    ("array", "expected"),
    [(numpy.ones(3), set()), (numpy.array([{}, None]), {"MAR601"}), (numpy.zeros(2, dtype=[("n", "O")]), {"MAR601"})],
)
def test_arrays_of_objects_are_pickles(array: numpy.ndarray, expected: set[str]) -> None:
    for version in ((1, 0), (2, 0)):
        stream = io.BytesIO()
        numpy.lib.format.write_array(stream, array, version=version)
        assert codes(stream.getvalue(), "x.npy") == expected
        assert codes(packed({"x.npy": stream.getvalue()}), "x.npz") == expected


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"label one\nlabel two\n", b"\x80", b"\x80\xc3data", bytes(range(256))]
)
def test_a_file_that_is_no_pickle_is_left_alone(data: bytes) -> None:
    assert codes(data, "labels.bin") == set()


def test_a_pickle_without_a_header_does_not_hide_behind_its_size() -> None:
    large = b"T" + struct.pack("<I", 65 << 20) + bytes(65 << 20) + b"0" + SYSTEM + b"(S'id'\ntR."
    (finding,) = found(large, "model.bin")
    assert "a string of 68157440 bytes at byte 5, too large to walk" in finding.cause
    many = Inspector(Code.MAR601, Code.MAR602, "", Budget(opcodes=1000))
    (finding,) = many.file(io.BytesIO(b"N0" * 1000 + SYSTEM + b"."), "model.bin")
    assert finding.code is Code.MAR602


def test_a_file_with_the_suffix_of_a_pickle_must_be_one() -> None:
    assert codes(b"hello", "x.pkl") == {"MAR602"}


def test_the_number_of_findings_is_bounded() -> None:
    many = b"".join(b"cm%d\nn\n" % number for number in range(3000)) + b"."
    result = found(many, "x.pkl")
    assert len(result) == 51
    assert "2950 more names" in result[-1].cause
    assert len(found(packed({f"a/{number}.pkl": SYSTEM + b"." for number in range(1000)}))) == 500


def test_every_scan_leaves_the_stream_open() -> None:
    stream = io.BytesIO(HARMLESS)
    scan(stream)
    stream.seek(0)
    assert stream.read() == HARMLESS
