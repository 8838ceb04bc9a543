"""The imports of the pickles in a file, found without loading any of them.

``pickletools`` of the standard library reads the opcodes: fickling and picklescan would be a dependency
of the base install for rules of their own, while the rule here is torch's list of permitted imports.
"""

from __future__ import annotations

import io
import lzma
import pickletools
import struct
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from typing import IO, Any, cast

from torchmar.errors import ArchiveError

MAGIC = 0x1950A86A20F9469CFC6C
"""The number in the first pickle of a legacy torch.save file."""


BROKEN = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(OSError, EOFError, ValueError, RuntimeError, OverflowError, MemoryError, ArchiveError),
)
"""The exceptions of reading a damaged file, a member of an archive or not."""

_DTYPES = """
    bcomplex32 bfloat16 bool bits16 bits1x8 bits2x4 bits4x2 bits8 complex128 complex32 complex64 float16 float32 float64
    float4_e2m1fn_x2 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu
    int1 int16 int2 int3 int32 int4 int5 int6 int64 int7 int8
    uint1 uint16 uint2 uint3 uint32 uint4 uint5 uint6 uint64 uint7 uint8
    qint32 qint8 quint2x4 quint4x2 quint8
    per_channel_affine per_channel_affine_float_qparams per_channel_symmetric per_tensor_affine per_tensor_symmetric
"""
_REBUILDS = """
    device_tensor_from_cpu_tensor device_tensor_from_numpy meta_tensor_no_storage nested_tensor parameter
    parameter_with_state qtensor sparse_tensor tensor tensor_v2 tensor_v3 wrapper_subclass
"""
_NUMBERS = ["BFloat16", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short"]

ALLOWED = frozenset(
    [
        *("_codecs.encode", "builtins.bytearray", "builtins.complex", "builtins.set"),
        *("collections.Counter", "collections.OrderedDict"),
        *("torch.Size", "torch.Tensor", "torch.device", "torch.nn.parameter.Parameter"),
        *("torch._tensor._rebuild_from_type_v2", "torch.serialization._get_layout"),
        *("torch.storage.TypedStorage", "torch.storage.UntypedStorage"),
        *(f"torch.{name}" for name in _DTYPES.split()),
        *(f"torch._utils._rebuild_{name}" for name in _REBUILDS.split()),
        *(f"{module}.{name}Tensor" for module in ("torch", "torch.cuda") for name in [*_NUMBERS, "Bool"]),
        *(f"{module}.{name}Tensor" for module in ("torch.sparse", "torch.cuda.sparse") for name in _NUMBERS),
        *(
            f"{module}.{name}Storage"
            for module in ("torch", "torch.cuda")
            for name in [*_NUMBERS, "Bool", "ComplexDouble", "ComplexFloat"]
        ),
        *(f"torch.{name}Storage" for name in ("QInt32", "QInt8", "QUInt2x4", "QUInt4x2", "QUInt8")),
    ]
)
"""The globals that ``torch.load(weights_only=True)`` permits in torch 2.13 to 2.15; a test compares the two lists."""

_SCRIPT_STORAGES = """
    Bits16 Bits1x8 Bits2x4 Bits4x2 Bits8 ComplexHalf Float4_e2m1fn_x2 Float8_e4m3fn Float8_e4m3fnuz Float8_e5m2
    Float8_e5m2fnuz Float8_e8m0fnu Int1 Int2 Int3 Int4 Int5 Int6 Int7
    UInt1 UInt16 UInt2 UInt3 UInt32 UInt4 UInt5 UInt6 UInt64 UInt7
"""
_SCRIPT_BUILDERS = """
    build_boollist build_doublelist build_intlist build_tensor_from_id build_tensorlist restore_type_tag
"""

ALLOWED_IN_TORCHSCRIPT = ALLOWED | {
    *(f"torch.{name}Storage" for name in _SCRIPT_STORAGES.split()),
    *(f"torch.jit._pickle.{name}" for name in _SCRIPT_BUILDERS.split()),
}
"""Further names that TorchScript's own unpickler permits; it is C++ and imports no Python at all."""

_PROTOCOL_2 = """
    APPEND APPENDS BINFLOAT BINGET BININT BININT1 BININT2 BINPERSID BINPUT BINUNICODE BUILD EMPTY_DICT EMPTY_LIST
    EMPTY_SET EMPTY_TUPLE GLOBAL LONG1 LONG_BINGET LONG_BINPUT MARK NEWFALSE NEWOBJ NEWTRUE NONE PROTO REDUCE
    SETITEM SETITEMS SHORT_BINSTRING STOP TUPLE TUPLE1 TUPLE2 TUPLE3
"""

READ_BY_TORCH = frozenset(_PROTOCOL_2.split())
"""The opcodes that ``torch.load(weights_only=True)`` reads: those of protocol 2, which torch.save writes."""


_OPCODES = frozenset(op.code.encode("latin-1") for op in pickletools.opcodes)
_STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_PUTS, _GETS = {"PUT", "BINPUT", "LONG_BINPUT"}, {"GET", "BINGET", "LONG_BINGET"}
_MARK = object()
COMPUTED = "a name that it computes"

# Limits far above the needs of real files; a file that exceeds one is reported as too large.
_MAX_ARGUMENT = 64 << 20  # bytes of a string in a pickle
_MAX_LINE = 1 << 20
_MAX_MEMO = 1_000_000
_MAX_IMPORTS = 10_000
_MAX_NAME = 200  # characters


class TooLarge(Exception):
    """A file would cost more effort than a check may spend."""


@dataclass
class Budget:
    """The effort that one check may still spend on pickles, regardless of their number."""

    opcodes: int = 5_000_000  # about six seconds
    bytes: int = 2 << 30
    findings: int = 500

    def spend(self, *, opcodes: int = 0, bytes: int = 0) -> None:
        """Subtract from the budget. Raises TooLarge."""
        self.opcodes -= opcodes
        self.bytes -= bytes
        if self.opcodes < 0 or self.bytes < 0:
            raise TooLarge("it is too large to walk")


@dataclass(frozen=True)
class Import:
    """A global that a pickle would import, as ``module.name``, and the byte of the opcode that imports it."""

    name: str
    offset: int


@dataclass(frozen=True)
class Scan:
    """The content of a sequence of pickles.

    Args:
        imports: every global, once, in the order of the file.
        problem: the reason why the pickles could not be read to their end; empty: they could.
        too_large: whether the problem is the effort, and not damage.
        beyond: the first opcode that torch.load(weights_only=True) does not read; empty: it reads all opcodes.
        legacy: whether the pickles are the five of a legacy torch.save file, before its storages.
    """

    imports: tuple[Import, ...]
    problem: str
    too_large: bool
    beyond: str
    legacy: bool


def scan(stream: IO[bytes], budget: Budget | None = None) -> Scan:
    """Read consecutive pickles from the position of ``stream``.

    Other bytes after a pickle are no problem: no unpickler continues there.
    """
    reader = _Reader(stream, budget or Budget())
    walk = _Walk(reader)
    problem, too_large = "", False
    try:
        # pickletools warns of an escape in a name, which does not concern the user of the check.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            walk.one_pickle()
            while reader.peek() in _OPCODES and not (walk.legacy and walk.pickles == 5):
                walk.one_pickle()
    except TooLarge as error:
        problem, too_large = str(error), True
    except BROKEN as error:
        problem = f"it is damaged at byte {reader.tell()} ({shown(str(error))})"
    finally:
        reader.detach()
    return Scan(tuple(walk.imports.values()), problem, too_large, walk.beyond, walk.legacy)


def allowed(name: str, torchscript: bool = False) -> bool:
    """Return whether a pickle of weights may import ``name``."""
    if torchscript:
        # The code/ folder of the archive defines these types.
        return name in ALLOWED_IN_TORCHSCRIPT or name.startswith("__torch__.")
    return name in ALLOWED


def shown(text: str) -> str:
    """Return ``text`` in a form that can be printed: a name in a file may contain any character."""
    text = text if len(text) <= _MAX_NAME else f"{text[:_MAX_NAME]}..."
    return text if text.isprintable() else ascii(text)


class _Reader:
    """Limit the reads of pickletools, and keep the lines that it read last."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream = io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16)
        self._position = 0
        self.budget = budget
        self.lines = (b"", b"")

    def read(self, size: int) -> bytes:
        if size <= _MAX_ARGUMENT:
            return self._took(self._stream.read(size))
        start, remaining = self._position, size
        while remaining:
            # A size in random bytes may be any number; the data are read only as far as they exist.
            if not (skipped := self._took(self._stream.read(min(remaining, 1 << 20)))):
                raise EOFError(f"a string of {size} bytes is cut off")
            remaining -= len(skipped)
        raise TooLarge(f"it has a string of {size} bytes at byte {start}, too large to walk")

    def readline(self) -> bytes:
        line = self._took(self._stream.readline(_MAX_LINE))
        if len(line) == _MAX_LINE:
            raise TooLarge(f"it has a line without end at byte {self._position}, too large to walk")
        self.lines = (self.lines[1], line)
        return line

    def tell(self) -> int:
        return self._position

    def peek(self) -> bytes:
        return self._stream.peek(1)[:1]

    def detach(self) -> None:
        # The buffer would close the stream, which belongs to the caller.
        self._stream.detach()

    def _took(self, data: bytes) -> bytes:
        self._position += len(data)
        self.budget.spend(bytes=len(data))
        return data


class _Walk:
    """Follow the stack and the memo of an unpickler for strings only, and record the imports."""

    def __init__(self, reader: _Reader) -> None:
        self._reader = reader
        self._stack: list[object] = []  # strings; None for any other value; marks
        self._memo: dict[int, object] = {}
        self.imports: dict[str, Import] = {}
        self.beyond = ""
        self.legacy = False
        self.pickles = 0

    def one_pickle(self) -> None:
        """Read to the next STOP. Raises one of BROKEN, or TooLarge."""
        self._stack, self._memo = [], {}
        first: list[Any] = []
        for op, arg, offset in pickletools.genops(cast(Any, self._reader)):
            self._reader.budget.spend(opcodes=1)
            if op.name not in READ_BY_TORCH and not self.beyond:
                self.beyond = f"{op.name} at byte {offset}"
            if len(first) < 3 and op.name not in ("PROTO", "FRAME"):
                first.append(arg if op.name in ("LONG", "LONG1") else op.name)
            self._step(op, arg, cast(int, offset))
        if self.pickles == 0:
            self.legacy = first == [MAGIC, "STOP"]
        self.pickles += 1

    def _step(self, op: pickletools.OpcodeInfo, arg: Any, offset: int) -> None:
        name, stack = op.name, self._stack
        if name in _STRINGS:
            # A longer string is no name and would only take memory.
            stack.append(arg if len(arg) <= _MAX_NAME else None)
        elif name in _PUTS:
            self._remember(int(arg))
        elif name == "MEMOIZE":
            self._remember(len(self._memo))
        elif name in _GETS:
            stack.append(self._memo.get(int(arg)))
        elif name == "DUP":
            stack.append(self._top())
        elif name == "POP":
            # The only opcode that may take a mark as a value.
            self._top(mark=True)
            stack.pop()
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            constant = isinstance(module, str) and isinstance(attribute, str)
            self._import(f"{module}.{attribute}" if constant else COMPUTED, offset)
            stack.append(None)
        else:
            if name in ("GLOBAL", "INST"):
                # Not arg: in it, pickletools has resolved escapes that an unpickler does not resolve.
                module, attribute = (line.rstrip(b"\n").decode("utf-8", "replace") for line in self._reader.lines)
                # Python 2's name of the module, which any unpickler of protocol 2 knows.
                self._import(f"{'builtins' if module == '__builtin__' else module}.{attribute}", offset)
            elif name.startswith("EXT"):
                self._import(f"extension {arg} of copyreg", offset)
            self._replace(op)

    def _replace(self, op: pickletools.OpcodeInfo) -> None:
        """Apply an opcode without strings to the stack: remove its operands and push its results."""
        before = list(op.stack_before)
        if pickletools.markobject in before:
            while self._top(mark=True) is not _MARK:
                self._stack.pop()
            self._stack.pop()
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            self._pop()
        self._stack += [_MARK if kind is pickletools.markobject else None for kind in op.stack_after]

    def _top(self, mark: bool = False) -> object:
        if not self._stack or (self._stack[-1] is _MARK and not mark):
            raise ValueError("an opcode takes more than there is")
        return self._stack[-1]

    def _pop(self) -> object:
        self._top()
        return self._stack.pop()

    def _remember(self, index: int) -> None:
        self._memo[index] = self._top()
        if len(self._memo) > _MAX_MEMO:
            raise TooLarge("it remembers more than a million values, too many to walk")

    def _import(self, name: str, offset: int) -> None:
        name = shown(name)
        self.imports.setdefault(name, Import(name, offset))
        if len(self.imports) > _MAX_IMPORTS:
            raise TooLarge(f"it imports more than {_MAX_IMPORTS} names, too many to walk")
