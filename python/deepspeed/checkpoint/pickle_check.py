"""Looks at the instructions of a torch file's pickle before torch follows them.

torch.load(weights_only=True) decides which classes a file may name, and we rely on it for that. It does not look at how much work
and memory the allowed ones cost: `bytearray(10**12)`, a set of a range, 60 nested tuples that each hold the one below twice (hashing
the last takes 2^60 steps), the same long list copied by every two bytes of the file. So the instructions are walked here first with
sizes instead of values. What a program wrote costs about as much as the file is long; what costs far more is refused.
"""
from __future__ import annotations

import io
import pickletools
import zipfile
from typing import BinaryIO

import torch

DEEPEST = 500  # containers in containers: hashing, comparing and printing them recurse
LEAST_BUDGET = 10_000_000  # elements that calls and keys may touch, whatever the size of the file
LARGEST_EXTENT = 1 << 24  # elements that a call may make from a number alone
_LIMIT = 1 << 80
_LEGACY_PICKLES = 5  # of torch.save before zip files: magic number, protocol, system, the object, the storages' keys

_MAKES_FROM_NUMBERS = ("builtins.bytearray", "__builtin__.bytearray", "builtins.bytes", "__builtin__.bytes")
_CONSTANTS = {"NONE", "NEWTRUE", "NEWFALSE", "BINFLOAT", "EMPTY_SET"}
_NUMBERS = {"BININT", "BININT1", "BININT2", "LONG1"}
_TEXTS = {"BINUNICODE", "SHORT_BINSTRING"}
_CONTAINERS = {"EMPTY_LIST", "EMPTY_DICT", "EMPTY_TUPLE"}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Refused(Exception):
    """Why a pickle is not given to torch."""


class _Item:
    """What stands for a value: elements in it written out, the product of its numbers, containers in containers, and its text or name."""

    __slots__ = ("weight", "extent", "depth", "text", "parts")

    def __init__(self, weight: int = 1, extent: int = 1, text: str | None = None, parts: tuple[_Item, ...] = ()) -> None:
        self.weight, self.extent, self.depth, self.text, self.parts = weight, extent, 0, text, parts
        for part in parts:
            self.hold(part)

    def hold(self, part: _Item) -> None:
        self.weight = min(self.weight + part.weight, _LIMIT)
        self.extent = min(self.extent * max(part.extent, 1), _LIMIT)
        self.depth = max(self.depth, part.depth + 1)
        if self.depth > DEEPEST:
            raise Refused(f"it has more than {DEEPEST} containers inside each other")


_ONE = _Item()


class _Walk:
    """One pickle. storages: elements of each storage by its key, which the file has to have room for."""

    def __init__(self, budget: int, file_bytes: int, storages: dict[str, int]) -> None:
        self.budget, self.file_bytes, self.storages = budget, file_bytes, storages
        self.stack: list[_Item] = []
        self.marks: list[int] = []
        self.memo: dict[int, _Item] = {}

    def run(self, file: BinaryIO) -> None:
        for opcode, argument, _ in pickletools.genops(file):
            self.step(opcode.name, argument)

    def step(self, name: str, argument: object) -> None:
        stack = self.stack
        if name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in _TEXTS:
            stack.append(_Item(1 + len(argument) // 32, text=argument if len(argument) < 200 else None))
        elif name in _NUMBERS:
            stack.append(_Item(extent=abs(argument)))
        elif name in _CONSTANTS:
            stack.append(_ONE)
        elif name in _CONTAINERS:
            stack.append(_Item())
        elif name in _TUPLES:
            self.make_tuple(_TUPLES[name])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "GLOBAL":
            stack.append(_Item(text=argument.replace(" ", ".")))
        elif not self.step_structure(name) and name not in ("PROTO", "STOP"):
            raise Refused(f"it has the instruction {name}, which torch.save does not write")

    def step_structure(self, name: str) -> bool:
        stack = self.stack
        if name == "TUPLE":
            self.make_tuple(len(stack) - self.marks.pop())
        elif name in ("APPEND", "APPENDS"):
            for item in self.take(1 if name == "APPEND" else len(stack) - self.marks.pop()):
                stack[-1].hold(item)
        elif name in ("SETITEM", "SETITEMS"):
            for position, item in enumerate(self.take(2 if name == "SETITEM" else len(stack) - self.marks.pop())):
                if position % 2 == 0:
                    self.spend(item.weight, "the keys of its dictionaries")
                stack[-1].hold(item)
        elif name in ("REDUCE", "NEWOBJ"):
            self.call(stack.pop())
        elif name == "BUILD":
            state = stack.pop()
            self.spend(state.weight, "the attributes of its objects")
            stack[-1].weight = min(stack[-1].weight + state.weight, _LIMIT)
        elif name == "BINPERSID":
            self.storage(stack.pop())
        else:
            return False
        return True

    def take(self, count: int) -> list[_Item]:
        if count < 0 or count > len(self.stack) - (self.marks[-1] if self.marks else 0):
            raise Refused("an instruction lacks its operands")
        items = self.stack[len(self.stack) - count:]
        del self.stack[len(self.stack) - count:]
        return items

    def make_tuple(self, count: int) -> None:
        self.stack.append(_Item(parts=tuple(self.take(count))))

    def spend(self, elements: int, what: str) -> None:
        self.budget -= elements
        if self.budget < 0:
            raise Refused(f"{what} have far more elements than a file of {self.file_bytes} bytes can hold: the same ones again and again")

    def call(self, arguments: _Item) -> None:
        name = self.stack.pop().text or "an object"
        cost = 1 + sum(part.weight for part in arguments.parts)
        self.spend(cost, f"the arguments of {name}")
        makes = name in _MAKES_FROM_NUMBERS or name.startswith("numpy") or (name.startswith("torch.") and name.endswith(("Tensor", "Storage")))
        if makes and arguments.extent > LARGEST_EXTENT:
            raise Refused(f"it calls {name} for {arguments.extent} elements that are not in the file")
        result = _Item(cost, text=name)
        if name.rpartition(".")[2] in ("range", "xrange"):
            result.weight = min(arguments.extent + max((part.extent for part in arguments.parts), default=0), _LIMIT)
        result.depth = arguments.depth
        self.stack.append(result)

    def storage(self, reference: _Item) -> None:
        """("storage", class, key, device, count of elements)"""
        if len(reference.parts) >= 5 and reference.parts[2].text is not None:
            self.storages[reference.parts[2].text] = reference.parts[4].extent
            if reference.parts[4].extent > self.file_bytes:
                raise Refused(f"it declares a storage of {reference.parts[4].extent} elements, and has {self.file_bytes} bytes")
        self.stack.append(_ONE)


def _walk(file: BinaryIO, file_bytes: int, count: int) -> None:
    storages: dict[str, int] = {}
    for _ in range(count):
        _Walk(max(LEAST_BUDGET, 4 * file_bytes), file_bytes, storages).run(file)
    if sum(storages.values()) > file_bytes:
        raise Refused(f"it declares storages of {sum(storages.values())} elements, and has {file_bytes} bytes")


def _check_parts(path: str) -> None:
    """The parts of a zip file: apart from each other, each name once, no way out of the archive, nothing compressed."""
    with zipfile.ZipFile(path) as archive:
        parts = sorted(archive.infolist(), key=lambda part: part.header_offset)
    names: set[str] = set()
    end = 0
    for part in parts:
        if ".." in part.filename.replace("\\", "/").split("/") or part.filename.startswith("/"):
            raise Refused(f"its part {part.filename[:100]!r} would leave the archive")
        if part.compress_type != zipfile.ZIP_STORED:
            raise Refused(f"its part {part.filename[:100]!r} is compressed, which torch.save does not do")
        if part.filename in names:
            raise Refused(f"it has two parts {part.filename[:100]!r}")
        if part.header_offset < end:
            raise Refused(f"its part {part.filename[:100]!r} overlaps another one")
        names.add(part.filename)
        end = part.header_offset + 30 + len(part.orig_filename.encode()) + part.file_size


def check_torch_file(path: str, is_zip: bool) -> None:
    """Raises Refused, or what reading a damaged file raises."""
    with open(path, "rb") as file:
        file_bytes = file.seek(0, io.SEEK_END)
        file.seek(0)
        if not is_zip:
            _walk(file, file_bytes, _LEGACY_PICKLES)
            return
    _check_parts(path)
    # The reader that torch.load uses: another one might see another pickle.
    _walk(io.BytesIO(torch._C.PyTorchFileReader(path).get_record("data.pkl")), file_bytes, 1)
