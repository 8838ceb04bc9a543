"""torchmar.checks.weights recognises weights by their content, and finds those that the handler cannot load."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import time
import warnings
import zipfile
from collections.abc import Callable, Mapping
from typing import IO

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.package import PackageExporter

from tests.support.paths import DIGITS
from torchmar.checks.finding import Code, Finding
from torchmar.checks.formats import Format, Weights, identify
from torchmar.checks.weights import check
from torchmar.errors import ArchiveError

Data = bytes | Callable[[], bytes]


class Members:
    """The members of an archive, in memory."""

    def __init__(self, members: Mapping[str, bytes]) -> None:
        self.members = members
        self.sizes = {name: len(data) for name, data in members.items()}

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self.members[name])


class Attack:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("id",)


def saved(value: object, **how: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **how)  # type: ignore[arg-type]
    return stream.getvalue()


def script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(model()), stream)
    return stream.getvalue()


def quantized_script() -> bytes:
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.ao.quantization.quantize_dynamic(model(), dtype=torch.qint8)), stream)
    return stream.getvalue()


@functools.cache
def exported() -> bytes:
    """Return an exported program; no constant, since torch.export takes seconds in each process that collects tests."""
    stream = io.BytesIO()
    torch.export.save(torch.export.export(model(), (torch.zeros(1, 2),)), stream)
    return stream.getvalue()


def content(data: Data) -> bytes:
    return data if isinstance(data, bytes) else data()


def torch_package() -> bytes:
    stream = io.BytesIO()
    with PackageExporter(stream) as exporter:
        exporter.extern("**")
        exporter.save_pickle("model", "weights.pkl", model().state_dict())
    return stream.getvalue()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def field(number: int, content: bytes | int) -> bytes:
    """Encode one field of a protobuf message."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def onnx(*tensors: bytes) -> bytes:
    graph = field(1, field(4, b"Relu")) + field(2, b"graph") + b"".join(field(5, tensor) for tensor in tensors)
    opset = field(2, 18)
    return field(1, 8) + field(2, b"pytorch") + field(3, b"2.13.0") + field(7, graph) + field(8, opset)


def elsewhere(location: str) -> bytes:
    entries = [(b"location", location.encode()), (b"offset", b"0")]
    data = b"".join(field(13, field(1, key) + field(2, value)) for key, value in entries)
    return field(1, 4) + field(2, 1) + field(8, b"w") + data + field(14, 1)


def packed(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return stream.getvalue()


def rewritten(data: bytes, **records: bytes) -> bytes:
    """Return a torch zip in which some records have another content."""
    with zipfile.ZipFile(io.BytesIO(data)) as old:
        return packed({name: records.get(name.rpartition("/")[2], old.read(name)) for name in old.namelist()})


with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    SCRIPT, QUANTIZED_SCRIPT, PACKAGE = script(), quantized_script(), torch_package()
STATE = saved(model().state_dict())
LEGACY = saved(model().state_dict(), _use_new_zipfile_serialization=False)
WHOLE = saved(model())
TENSOR = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
SAFETENSORS = safetensors(TENSOR, bytes(8))
OPENVINO = (
    b'<?xml version="1.0"?>\n<net name="m" version="11"><layers><layer id="0" name="w" type="Const" version="opset1">'
    b'<data element_type="f32" shape="2" offset="0" size="8" /></layer></layers></net>\n'
)
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"
PICKLE = pickle.dumps({"a": [1, 2, 3]})
GARBAGE = bytes(range(255, -1, -1)) * 8
# Stands for what only a C++ compiler can make.
AOT = packed({"m/data/aotinductor/model/wrapper.so": b"\x7fELF", "m/archive_format": b"pt2", "m/.data/version": b"6\n"})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (SCRIPT, Weights(Format.TORCHSCRIPT)),
        (QUANTIZED_SCRIPT, Weights(Format.TORCHSCRIPT)),
        (STATE, Weights(Format.SAVED)),
        (WHOLE, Weights(Format.SAVED)),
        (LEGACY, Weights(Format.LEGACY)),
        (exported, Weights(Format.EXPORTED, torch_version=torch.__version__)),
        (PACKAGE, Weights(Format.PACKAGE)),
        (onnx(), Weights(Format.ONNX, torch_version="2.13.0")),
        (OPENVINO, Weights(Format.OPENVINO, external=("weights.bin",))),
        (OPENVINO.replace(b"offset", b"start"), Weights(Format.OPENVINO)),
        (OPENVINO[:-5], Weights(Format.OPENVINO, damage="it does not end with </net>", external=("weights.bin",))),
        (onnx(elsewhere("a.bin"), elsewhere("b.bin")), Weights(Format.ONNX, "", "2.13.0", external=("a.bin", "b.bin"))),
        (SAFETENSORS, Weights(Format.SAFETENSORS)),
        (safetensors({"__metadata__": {"format": "pt"}}), Weights(Format.SAFETENSORS)),
        (b"\x7fELF\x02\x01\x01" + bytes(100), Weights(Format.LIBRARY)),
        (b"\xcf\xfa\xed\xfe" + bytes(100), Weights(Format.LIBRARY)),
        (PICKLE, Weights(Format.PICKLE)),
        (pickle.dumps({"a": 1}, protocol=0), Weights(Format.PICKLE)),
        (GARBAGE, Weights(Format.OTHER)),
        (b"hello", Weights(Format.OTHER)),
        (b"\x08", Weights(Format.OTHER)),
    ],
)
def test_weights_are_recognised_by_their_content(data: Data, expected: Weights) -> None:
    assert identify(io.BytesIO(content(data)), "weights") == expected


@pytest.mark.parametrize(
    ("data", "description", "remedy"),
    [
        (LFS, "a git-lfs pointer file", "git lfs pull"),
        (PAGE, "a web page", "download it again"),
        (b"<?xml version='1.0'?><Error/>", "an XML document", "download it again"),
        (b"\x1f\x8b\x08\x00" + bytes(20), "a gzip file", "unpack it"),
        (b"BZh91AY", "a bzip2 file", "unpack it"),
        (b"\x28\xb5\x2f\xfd" + bytes(20), "a zstd file", "unpack it"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "an HDF5 file, as Keras saves models and weights", "convert it"),
        (b"GGUF\x03\0\0\0", "a GGUF file", ""),
    ],
)
def test_files_that_are_no_models_are_named_with_a_remedy(data: bytes, description: str, remedy: str) -> None:
    identified = identify(io.BytesIO(data), "model.pt")
    assert (identified.format, identified.description) == (Format.OTHER, description)
    assert remedy in identified.remedy


@pytest.mark.parametrize(
    ("name", "data", "damage"),
    [
        ("model.pt", b"", "it is empty"),
        ("model.pt", SCRIPT[:-1], "directory is not at its end"),
        ("model.pt", STATE[: len(STATE) // 2], "directory is not at its end"),
        ("model.pt", STATE[:100] + STATE[200:], "directory is inconsistent"),
        ("model.safetensors", SAFETENSORS[:-1], "tensors end at byte 77, and the file at 76"),
        ("model.safetensors", SAFETENSORS + b"\0", "tensors end at byte 77, and the file at 78"),
        ("model.safetensors", SAFETENSORS[:30], "header has 61 bytes, and the file 30"),
        ("model.safetensors", (9).to_bytes(8, "little") + b'{"a": [1]', "header is not that"),
        ("model.safetensors", safetensors({"a": 1}), "header is not that"),
        ("model.safetensors", safetensors({"a": {"data_offsets": [8, 0]}}), "ends before it starts"),
        ("model.safetensors", (200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995, "header is not that"),
        ("model.onnx", onnx()[:-1], "a part of it ends at byte 40, and the file at 39"),
        ("model.onnx", onnx()[:30], "a part of it ends at byte 36, and the file at 30"),
        ("model.onnx", onnx()[:8], "a part of it ends at byte 11, and the file at 8"),
        ("model", onnx()[:30], "a part of it ends at byte 36"),
        ("model.onnx", onnx(b"\xff" * 20), "a number in it does not end"),
    ],
)
def test_incomplete_weights_are_reported_with_the_reason(name: str, data: bytes, damage: str) -> None:
    assert damage in identify(io.BytesIO(data), name).damage
    assert [finding.code.name for finding in check(Members({name: data}), name, None, "handler")][:1] == ["MAR406"]


NET = b"class Net: pass\n"
TWO = b"import torch\nclass Row: pass\nclass Net(torch.nn.Module):\n    class Inner: pass\n"
NONE = b"from nets import Net\n"
BRANCHES = b"try:\n    class Net: pass\nexcept ImportError:\n    class Net: pass\nif True:\n    x = 1\n"
STOCK = "image_classifier"


def codes(findings: list[Finding]) -> str:
    return " ".join(finding.code.name for finding in findings)


@pytest.mark.parametrize(
    ("name", "data", "model_file", "expected"),
    [
        # what TorchServe's base handler loads
        ("model.pt", SCRIPT, None, ""),
        ("model.pt", QUANTIZED_SCRIPT, None, ""),
        ("model.pt", STATE, NET, ""),
        ("model.pth", LEGACY, NET, ""),
        ("pytorch_model.bin", STATE, BRANCHES, ""),
        ("model.so", b"\x7fELF" + bytes(60), None, ""),
        # suffix and content
        ("model.pt", SAFETENSORS, NET, "MAR401"),
        ("model.pth", onnx(), None, "MAR401"),
        ("model.onnx", SCRIPT, None, "MAR401"),
        ("model.safetensors", STATE, NET, "MAR401"),
        ("model.pt2", SCRIPT, None, "MAR401"),
        ("model.bin", onnx(), None, "MAR401"),
        ("model.pt", exported, None, "MAR401"),
        ("model.pt", LFS, None, "MAR401"),
        ("model.bin", LFS, None, "MAR401"),
        ("model", PAGE, None, "MAR401"),
        ("model.pt", b"hello", None, "MAR401"),
        ("model.pt", PICKLE, NET, "MAR401"),
        # state dicts, their classes, TorchScript
        ("model.pt", STATE, None, "MAR402"),
        ("model.pt", LEGACY, None, "MAR402"),
        ("model.pt", SCRIPT, NET, "MAR402"),
        ("model.pt", STATE, TWO, "MAR402"),
        ("model.pt", STATE, NONE, "MAR402"),
        ("model.pt", STATE, b"class Net(:", "MAR402"),
        ("model.pt", STATE, b"\0", "MAR402"),
        ("model.pt", STATE, b"(" * 100_000, "MAR402"),
        # formats
        ("model.pth", SCRIPT, None, "MAR403"),
        ("model.ts", SCRIPT, None, "MAR403"),
        ("model.pt2", exported, None, "MAR403"),
        ("model.pt2", AOT, None, "MAR403"),
        ("model.onnx", onnx(), None, "MAR403"),
        ("model.xml", OPENVINO, None, "MAR403 MAR406"),
        ("model.safetensors", SAFETENSORS, None, "MAR403"),
        ("model.safetensors", SAFETENSORS, NET, "MAR403"),
        ("model.pt", PACKAGE, None, "MAR403"),
        ("model.pkl", PICKLE, NET, "MAR403"),
        ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(20), None, "MAR403"),
        ("model.pt", saved(model().state_dict(), pickle_protocol=4), NET, "MAR403"),
        # versions
        ("model.pt", rewritten(SCRIPT, version=b"11\n"), None, "MAR405"),
        ("model.pt", rewritten(STATE, version=b"10\n"), NET, ""),
        ("model.pt", rewritten(STATE, version=b"x" * 10_000), NET, ""),
        (
            "model.pt2",
            lambda: rewritten(exported(), **{"model.json": b'{"schema_version": {"major": 9}}'}),
            None,
            "MAR403 MAR405",
        ),
        ("model.pt2", lambda: exported().replace(b'"major": 8,', b'"major": 9,'), None, "MAR406"),
        # damage
        ("model.pt", b"", None, "MAR406"),
        ("model.onnx", onnx(elsewhere("model.data")), None, "MAR403 MAR406"),
        # pickles
        ("model.pt", WHOLE, None, "MAR402 MAR601 MAR601 MAR601"),
        ("model.pt", WHOLE, NET, "MAR601 MAR601 MAR601"),
        ("model.pt", saved(Attack()), NET, "MAR601"),
        ("model.pt", saved(Attack(), _use_new_zipfile_serialization=False), NET, "MAR601"),
        ("model.pt", rewritten(SCRIPT, **{"constants.pkl": b"cposix\nsystem\n."}), None, "MAR601"),
        ("model.pt", rewritten(STATE, **{"data.pkl": b"\x80\x02}"}), NET, "MAR602"),
        ("model.pt", b"cposix\nsystem\n(S'id'\ntR\xff", None, "MAR401 MAR601 MAR602"),
        ("model.pt", STATE[: len(STATE) // 2], NET, "MAR406"),
    ],
)
def test_stock_handlers_load_some_weights_and_not_others(
    name: str, data: Data, model_file: bytes | None, expected: str
) -> None:
    members = {name: content(data), "samples/one.png": b"\x89PNG"}
    if model_file is not None:
        members["net.py"] = model_file
    assert codes(check(Members(members), name, "net.py" if model_file else None, STOCK)) == expected


@pytest.mark.parametrize(
    ("name", "data", "model_file", "expected"),
    [
        ("model.pt", SCRIPT, None, ""),
        ("model.pth", SCRIPT, None, ""),
        ("model.ts", SCRIPT, None, ""),
        ("model.pt2", exported, None, ""),
        ("model.pt2", AOT, None, ""),
        ("model.onnx", onnx(), None, ""),
        ("model.xml", OPENVINO, None, "MAR406"),  # without model.bin
        ("model.xml", OPENVINO, NET, "MAR402 MAR406"),
        ("model.xml", OPENVINO[:-3], None, "MAR406 MAR406"),
        ("model.xml", b"<?xml version='1.0'?><error/>", None, "MAR401"),
        ("model.pt", OPENVINO, None, "MAR401 MAR406"),
        ("model.pt", STATE, NET, ""),
        ("model.pth", LEGACY, NET, ""),
        ("model.safetensors", SAFETENSORS, NET, ""),
        ("model.safetensors", SAFETENSORS, None, "MAR402"),
        ("model.pt", STATE, None, "MAR402"),
        ("model.pt", SCRIPT, NET, "MAR402"),
        ("model.onnx", onnx(), NET, "MAR402"),
        ("model.pt", STATE, TWO, "MAR402"),
        ("model.pt", saved(model().state_dict(), pickle_protocol=4), NET, "MAR403"),
        ("model.pt", PACKAGE, None, "MAR403"),
        ("model.h5", b"\x89HDF\r\n\x1a\n" + bytes(20), None, "MAR403"),
        ("model.so", b"\x7fELF" + bytes(60), None, "MAR403"),
        ("model.onnx", onnx(elsewhere("model.data")), None, "MAR406"),
        ("model.pt", WHOLE, NET, "MAR601 MAR601 MAR601"),
    ],
)
def test_handlers_of_ours_load_more(name: str, data: Data, model_file: bytes | None, expected: str) -> None:
    members = {name: content(data), **({"net.py": model_file} if model_file is not None else {})}
    handler = "torchmar_handlers.image_classifier"
    assert codes(check(Members(members), name, "net.py" if model_file else None, handler)) == expected


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("model.pt", STATE, ""),
        ("model.pth", SCRIPT, ""),
        ("model.pt2", exported, ""),
        ("model.onnx", onnx(), ""),
        ("model.safetensors", SAFETENSORS, ""),
        ("model.h5", GARBAGE, ""),
        ("model.bin", GARBAGE, ""),
        ("model.pkl", PICKLE, ""),
        ("model.pt", WHOLE, "MAR601 MAR601 MAR601"),
        ("model.pt", SAFETENSORS, "MAR401"),
        ("model.h5", LFS, "MAR401"),
        ("model.h5", b"", "MAR406"),
    ],
)
def test_a_users_own_handler_may_load_any_file(name: str, data: Data, expected: str) -> None:
    for handler in ("handler.py:fn", "image_classifier"):
        members = {name: content(data), "net.py": TWO, "handler.py": b"", "image_classifier.py": b""}
        assert codes(check(Members(members), name, None, handler)) == expected


@pytest.mark.parametrize(
    ("handler", "model_file", "expected"),
    [
        (STOCK, None, "MAR404"),
        ("base_handler", "net.py", "MAR407"),
        ("torchmar_handlers.image_classifier", None, "MAR404"),
        ("handler.py", None, ""),
        ("handler:fn", "net.py", ""),
    ],
)
def test_weights_may_be_missing_only_where_the_handler_is_the_users_own(
    handler: str, model_file: str | None, expected: str
) -> None:
    assert codes(check(Members({"net.py": NET}), None, model_file, handler)) == expected
    # A name without a file is a matter of the manifest.
    assert codes(check(Members({"net.py": NET}), "gone.pt", model_file, handler)) == ""


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("vocab.pkl", pickle.dumps({"a": 1}), ""),
        ("vocab.pkl", pickle.dumps(Attack()), "MAR603"),
        ("sub/vocab.pickle", pickle.dumps(Attack(), protocol=0), "MAR603"),
        ("scaler.joblib", b"\x78\x9c" + bytes(20), "MAR603"),
        ("extra.pt", WHOLE, "MAR603 MAR603 MAR603"),
        ("extra.pt", STATE, ""),
        ("extra.pth", LEGACY, ""),
        ("extra.bin", saved(Attack(), _use_new_zipfile_serialization=False), "MAR603"),
        ("extra.bin", GARBAGE, ""),
        ("extra.ckpt", PICKLE[:-1], "MAR603"),
        ("extra.ckpt", STATE[:-1], "MAR603"),
        ("notes.txt", pickle.dumps(Attack()), ""),
    ],
)
def test_other_files_that_may_be_pickles_are_warned_of(name: str, data: bytes, expected: str) -> None:
    assert codes(check(Members({"model.pt": SCRIPT, name: data}), "model.pt", None, STOCK)) == expected


def test_external_tensors_of_an_onnx_model_are_beside_it() -> None:
    data = onnx(elsewhere("w.data"))
    assert codes(check(Members({"m/model.onnx": data, "m/w.data": b""}), "m/model.onnx", None, "h.py")) == ""
    findings = check(Members({"m/model.onnx": data, "w.data": b""}), "m/model.onnx", None, "h.py")
    assert codes(findings) == "MAR406"
    assert "w.data" in findings[0].cause


def test_findings_have_a_cause_a_place_and_a_remedy() -> None:
    (finding,) = check(Members({"model.pt": saved(Attack()), "net.py": NET}), "model.pt", "net.py", STOCK)
    assert finding == Finding(
        Code.MAR601,
        "model.pt!archive/data.pkl",
        "the pickle imports posix.system (byte 2), which torch.load(weights_only=True) refuses",
        "save the state dict alone, torch.save(model.state_dict(), ...), or the model with torch.jit.save "
        "or as safetensors",
    )
    (finding,) = check(Members({"model.onnx": SCRIPT}), "model.onnx", None, STOCK)
    assert finding.cause == "model.onnx is a TorchScript archive"
    assert finding.remedy == "name it model.pt, or save it anew as what its suffix says"


@pytest.mark.parametrize("kind", [torch.float8_e5m2, torch.float8_e4m3fn, torch.complex32, torch.uint16, torch.bits8])
@pytest.mark.filterwarnings("ignore")
def test_every_kind_of_number_that_torchscript_stores_is_known(kind: torch.dtype) -> None:
    module = nn.Identity()
    module.register_buffer("numbers", torch.empty(2, dtype=kind))
    stream = io.BytesIO()
    torch.jit.save(torch.jit.script(module), stream)
    assert check(Members({"model.pt": stream.getvalue()}), "model.pt", None, STOCK) == []


@pytest.mark.parametrize("handler", [STOCK, "torchmar_handlers.image_classifier"])
def test_the_digits_model_has_no_finding(handler: str) -> None:
    assert check(Members({"digits.pt": (DIGITS / "digits.pt").read_bytes()}), "digits.pt", None, handler) == []


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_members_may_be_read_from_an_open_zip(method: int) -> None:
    class Zipped(Members):
        def open(self, name: str) -> IO[bytes]:
            return archive.open(name)

    members = {"model.pt": SCRIPT, "extra.pt": WHOLE, "vocab.pkl": PICKLE, "net.py": NET}
    with zipfile.ZipFile(io.BytesIO(packed(members, method))) as archive:
        assert codes(check(Zipped(members), "model.pt", None, STOCK)) == "MAR603 MAR603 MAR603"


def test_weights_that_cannot_be_opened_are_damaged() -> None:
    class Torn(Members):
        def open(self, name: str) -> IO[bytes]:
            raise ArchiveError("a.mar: model.pt is damaged")

    members = {"model.pt": SCRIPT, "vocab.pkl": PICKLE, "net.py": NET}
    assert codes(check(Torn(members), "model.pt", "net.py", STOCK)) == "MAR406 MAR402 MAR603"


def test_names_do_nothing_to_a_terminal() -> None:
    name = "\x1b[31m.pkl"
    (finding,) = check(Members({name: pickle.dumps(Attack())}), "\x1b.pt", None, "handler.py")
    assert finding.place == ascii(name)
    (finding,) = check(Members({name: b""}), name, None, "handler.py")
    assert finding.cause.isprintable()


SEEDS: list[Data] = [
    SCRIPT,
    STATE,
    LEGACY,
    exported,
    SAFETENSORS,
    onnx(elsewhere("a")),
    OPENVINO,
    PICKLE,
    WHOLE,
    AOT,
    LFS,
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(content(draw(st.sampled_from(SEEDS))))
    for _ in range(draw(st.integers(1, 5))):
        # Most of what can go wrong is at either end.
        ends = st.one_of(
            st.integers(0, 200), st.integers(max(0, len(data) - 400), len(data)), st.integers(0, len(data))
        )
        at = min(draw(ends), len(data))
        match draw(st.sampled_from(["replace", "cut", "insert", "drop"])):
            case "replace":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case "cut":
                del data[at:]
            case "insert":
                data[at:at] = draw(st.binary(max_size=20))
            case "drop":
                del data[at : at + draw(st.integers(1, 50))]
    return bytes(data)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.one_of(st.binary(max_size=400), mutated()),
    st.sampled_from(["model.pt", "model.onnx", "model.safetensors", "x.pkl", "x.npy", "net.py"]),
)
def test_any_bytes_are_answered_quickly_and_without_an_exception(data: bytes, name: str) -> None:
    started = time.process_time()
    members = Members({"model.pt": SCRIPT, name: data})
    for handler in (STOCK, "handler.py"):
        for finding in check(members, name, "net.py", handler):
            assert finding.cause.isprintable()
            assert finding.place.isprintable()
    assert time.process_time() - started < 2
