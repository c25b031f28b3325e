"""Files that were made to harm who reads them: safetensors compared with the `safetensors` package, and pickles that would run code,
take forever or fill the memory. The readers work in a process with 3 GB of address space and a time limit."""
from __future__ import annotations

import io
import json
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from typing import Any, Iterator

import pytest
import torch

from common import built_program

safetensors = pytest.importorskip("safetensors")

ADDRESS_SPACE = 3 << 30
LONGEST_MESSAGE = 700


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


@pytest.fixture(scope="module")
def native() -> Iterator[Any]:
    """A function from a file's path to what our C++ reader says about it; one process for all, which every file must leave alive."""
    program = built_program("read_checkpoint_files")
    if program is None:
        pytest.skip("built without tests: no read_checkpoint_files")
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=_limit) as process:
        def ask(path: Any) -> dict:
            begin = time.monotonic()
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, f"the reader died (exit status {process.wait(10)}) on {path}"
            assert time.monotonic() - begin < 60, f"{path} took {time.monotonic() - begin:.0f} s"
            answer = json.loads(line)
            if "refused" in answer:
                assert 20 < len(answer["refused"]) < LONGEST_MESSAGE and str(path) in answer["refused"], answer["refused"]
            return answer
        yield ask
        process.stdin.close()
        assert process.wait(20) == 0


# --- safetensors

def _file(header: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    header = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def _entry(dtype: str = "U8", shape: Any = "[4]", offsets: Any = "[0,4]", more: str = "") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}{more}}}'


def _one(**fields: Any) -> bytes:
    return _file(f'{{"v":{_entry(**fields)}}}', b"1234")


def _many(count: int, name: str = "t{}") -> bytes:
    return _file(json.dumps({name.format(i): {"dtype": "U8", "shape": [1], "data_offsets": [i, i + 1]} for i in range(count)}), bytes(count))


_V = '"v":' + _entry()
_HUGE = 2**63 - 1

# name: (content, why ours refuses what the package accepts or the other way; None: they agree)
SAFETENSORS: dict[str, tuple[bytes, str | None]] = {
    "plain": (_file(f"{{{_V}}}", b"1234"), None),
    "blanks around": (_file(f" {{{_V}}}\n\t ", b"1234"), None),
    "no tensors": (_file("{}"), None),
    "no header": (_file(""), None),
    "metadata": (_file(f'{{"__metadata__":{{"a":"b","c":"\\u0001"}},{_V}}}', b"1234"), None),
    "metadata null": (_file(f'{{"__metadata__":null,{_V}}}', b"1234"), None),
    "metadata number": (_file(f'{{"__metadata__":{{"a":1}},{_V}}}', b"1234"), None),
    "metadata list": (_file(f'{{"__metadata__":[],{_V}}}', b"1234"), None),
    "metadata twice": (_file(f'{{"__metadata__":{{}},"__metadata__":{{}},{_V}}}', b"1234"), None),
    "unknown field": (_one(more=',"x":[{"y":[1.5,null,true,"z"]}]'), None),
    "trailing bytes": (_file(f"{{{_V}}}", b"12345"), None),
    "missing bytes": (_file(f"{{{_V}}}", b"123"), None),
    "zero byte after header": (_file(f"{{{_V}}}\0more", b"1234"), None),
    "text after header": (_file(f"{{{_V}}}more", b"1234"), None),
    "huge header length": (_file(f"{{{_V}}}", b"1234", 2**64 - 1), None),
    "negative header length": (_file(f"{{{_V}}}", b"1234", 2**63), None),
    "header of 100 GB": (_file(f"{{{_V}}}", b"1234", 10**11), None),
    "header longer than file": (_file(f"{{{_V}}}", b"1234", 5000), None),
    "only a length": (struct.pack("<Q", 0), None),
    "cut length": (b"\1\0\0", None),
    "nothing": (b"", None),
    "list as header": (_file("[]"), None),
    "number as header": (_file("3"), None),
    "comment": (_file(f"{{/*x*/{_V}}}", b"1234"), None),
    "line comment": (_file(f"{{{_V}}} // x", b"1234"), None),
    "trailing comma": (_file(f"{{{_V},}}", b"1234"), None),
    "byte order mark": (_file(b"\xef\xbb\xbf{" + _V.encode() + b"}", b"1234"), None),
    "invalid UTF-8 name": (_file(b'{"\xff":' + _entry().encode() + b"}", b"1234"), None),
    "overlong UTF-8 name": (_file(b'{"\xc0\x80":' + _entry().encode() + b"}", b"1234"), None),
    "surrogate in UTF-8": (_file(b'{"\xed\xa0\x80":' + _entry().encode() + b"}", b"1234"), None),
    "lone surrogate": (_file(f'{{"\\ud800":{_entry()}}}', b"1234"), None),
    "control character": (_file(b'{"\x01":' + _entry().encode() + b"}", b"1234"), None),
    "escaped zero in name": (_file(f'{{"\\u0000":{_entry()}}}', b"1234"), None),
    "empty name": (_file(f'{{"":{_entry()}}}', b"1234"), None),
    "offsets reversed": (_one(offsets="[4,0]"), None),
    "offsets negative": (_one(offsets="[-4,0]"), None),
    "offsets minus zero": (_one(offsets="[-0,4]"), None),
    "offsets float": (_one(offsets="[0.0,4.0]"), None),
    "offsets text": (_one(offsets='["0","4"]'), None),
    "offsets three": (_one(offsets="[0,4,4]"), None),
    "offsets one": (_one(offsets="[0]"), None),
    "offsets null": (_one(offsets="null"), None),
    "offsets object": (_one(offsets="{}"), None),
    "offsets beyond": (_one(offsets="[4,8]"), None),
    "offsets beyond 64 bits": (_one(offsets="[0,36893488147419103232]"), None),
    "hole at the begin": (_one(shape="[2]", offsets="[2,4]"), None),
    "overlap": (_file(f'{{"a":{_entry(shape="[3]", offsets="[0,3]")},"b":{_entry(shape="[2]", offsets="[2,4]")}}}', b"1234"), None),
    "same bytes twice": (_file(f'{{"a":{_entry()},"b":{_entry()}}}', b"1234"), None),
    "hole": (_file(f'{{"a":{_entry(shape="[1]", offsets="[0,1]")},"b":{_entry(shape="[2]", offsets="[2,4]")}}}', b"1234"), None),
    "order of names is not of bytes": (_file(f'{{"a":{_entry(shape="[2]", offsets="[2,4]")},"b":{_entry(shape="[2]", offsets="[0,2]")}}}', b"1234"),
                                       None),
    "empty in front": (_file(f'{{"a":{_entry(shape="[0]", offsets="[0,0]")},{_V}}}', b"1234"), None),
    "empty behind": (_file(f'{{"a":{_entry(shape="[3,0]", offsets="[4,4]")},{_V}}}', b"1234"), None),
    "empty inside another": (_file(f'{{"a":{_entry(shape="[0]", offsets="[2,2]")},{_V}}}', b"1234"), None),
    "empty with large sizes": (_file(f'{{"a":{_entry(shape=[0, 2**40, 2**40], offsets="[0,0]")},{_V}}}', b"1234"), None),
    "empty with large sizes first": (_file(f'{{"a":{_entry(shape=[_HUGE, _HUGE, 0], offsets="[0,0]")},{_V}}}', b"1234"), None),
    "shape overflows": (_one(shape=[2**32, 2**32]), None),
    "shape overflows to 4": (_one(shape=[2**62 + 1, 4]), None),
    "bytes overflow": (_one(dtype="F64", shape=[2**61]), None),
    "shape negative": (_one(shape="[-4]"), None),
    "shape float": (_one(shape="[4.0]"), None),
    "shape exponent": (_one(shape="[4e0]"), None),
    "shape number": (_one(shape="4"), None),
    "shape nested": (_one(shape="[[4]]"), None),
    "shape of ones": (_one(shape=[1] * 1000 + [4]), None),
    "scalar": (_one(dtype="F32", shape="[]"), None),
    "unaligned size": (_file(f'{{"v":{_entry(dtype="F32", shape="[1]", offsets="[0,3]")}}}', b"123"), None),
    "unaligned begin": (_file(f'{{"a":{_entry(shape="[1]", offsets="[0,1]")},"v":{_entry(dtype="F32", shape="[1]", offsets="[1,5]")}}}', b"12345"),
                        None),
    "unknown dtype": (_one(dtype="Q4"), None),
    "lower-case dtype": (_one(dtype="u8"), None),
    "dtype number": (_file('{"v":{"dtype":3,"shape":[4],"data_offsets":[0,4]}}', b"1234"), None),
    "no dtype": (_file('{"v":{"shape":[4],"data_offsets":[0,4]}}', b"1234"), None),
    "no shape": (_file('{"v":{"dtype":"U8","data_offsets":[0,4]}}', b"1234"), None),
    "no offsets": (_file('{"v":{"dtype":"U8","shape":[4]}}', b"1234"), None),
    "field twice": (_file('{"v":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}', b"1234"), None),
    "entry null": (_file('{"v":null}', b"1234"), None),
    "number out of range": (_one(more=',"x":1e999'), None),
    "nested 100,000 lists": (_one(more=',"x":' + "[" * 100_000 + "]" * 100_000), None),
    "nested 100,000 objects": (_one(more=',"x":' + '{"x":' * 100_000 + "1" + "}" * 100_000), None),
    "100,000 open lists": (_file("[" * 100_000), None),
    "100,000 entries": (_many(100_000), None),
    "100,000 entries, the last beyond": (_many(100_000)[:-1], None),
    "100,000 long names": (_many(100_000, "x" * 100 + "{}"), None),
    # Where ours is narrower, and why.
    "name twice": (_file(f"{{{_V},{_V}}}", b"1234"), "which of two entries counts is decided nowhere, so two readers may see different tensors"),
    "metadata key twice": (_file(f'{{"__metadata__":{{"a":"1","a":"2"}},{_V}}}', b"1234"), "as for names"),
    "entry as a list": (_file('{"v":["U8",[4],[0,4]]}', b"1234"), "the format's description has objects only"),
    "dtype as an object": (_file('{"v":{"dtype":{"U8":null},"shape":[4],"data_offsets":[0,4]}}', b"1234"), "the format's description has texts only"),
    "empty with a size beyond 2^62": (_file(f'{{"a":{_entry(shape=[0, 2**64 - 1], offsets="[0,0]")},{_V}}}', b"1234"), "sizes are signed in torch"),
    "unsupported dtype": (_one(dtype="F8_E4M3"), "a type that DeepScale has no tensors of"),
    "unsupported complex": (_file(f'{{"v":{_entry(dtype="C64", shape="[1]", offsets="[0,8]")}}}', b"12345678"), "as above"),
    "nested 100 lists": (_one(more=',"x":' + "[" * 100 + "]" * 100), "nothing that we know needs more than 64 levels"),
}


def _package(content: bytes) -> dict | None:
    try:
        return dict(safetensors.deserialize(content))
    except safetensors.SafetensorError:
        return None


def _compare(native: Any, path: Any, content: bytes, reason: str | None, name: str) -> bool:
    """Whether ours accepts it."""
    path.write_bytes(content)
    theirs, ours = _package(content), native(path)
    if reason is not None:
        assert theirs is not None and "refused" in ours, f"{name}: no difference (any more): {ours}"
        return False
    assert (theirs is None) == ("refused" in ours), f"{name}: the package {'refuses' if theirs is None else 'accepts'} it, ours: {str(ours)[:500]}"
    if theirs is None:
        return False
    assert sorted(theirs) == sorted(ours["tensors"]), name
    for key, tensor in ours["tensors"].items():
        assert (tensor["dtype"], tensor["shape"]) == (theirs[key]["dtype"], theirs[key]["shape"]), (name, key)
        assert bytes.fromhex(tensor["data"]) == bytes(theirs[key]["data"]), (name, key)
    return True


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_made_by_hand(native: Any, tmp_path: Any, name: str) -> None:
    _compare(native, tmp_path / "f.safetensors", *SAFETENSORS[name], name)


def _mutated(random_: random.Random, content: bytes) -> bytes:
    """Bytes flipped, cut, repeated; or a word of the header exchanged, its length corrected: that comes further."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8:8 + length], content[8 + length:]
    for _ in range(random_.randint(1, 2)):
        at = random_.randrange(len(header))
        kind = random_.randrange(6)
        if kind == 0:
            header = header[:at] + bytes([random_.randrange(256)]) + header[at + 1:]
        elif kind == 1:
            header = header[:at] + header[at + random_.randint(1, 8):]
        elif kind == 2:
            old, new = random_.choice([("0", "1"), ("2", "3"), ("[", "[0,"), ("]", ",1]"), ("F32", "I32"), ("F32", "F64"), ("a", "b"), ("BF16", "F16"),
                                       ("}", "},"), (",", ",,"), ("0", "-0"), ("4", "4.0"), ('"', "'"), ("8", "18446744073709551624"), ("shape", "sh")])
            places = [i for i in range(len(header)) if header.startswith(old.encode(), i)]
            if places:
                place = random_.choice(places)
                header = header[:place] + new.encode() + header[place + len(old):]
        elif kind == 3:
            data = data[:random_.randrange(len(data) + 1)] if random_.random() < 0.5 else data + b"x"
        elif kind == 4 and len(data) > 0:
            place = random_.randrange(len(data))
            data = data[:place] + bytes([random_.randrange(256)]) + data[place + 1:]
        else:
            header += random_.choice([b" ", b"\n", b"\t ", b"}", b"\0"])
        if not header:
            header = b"{}"
    return _file(header, data, None if random_.random() < 0.95 else length)


def test_mutated_safetensors(native: Any, tmp_path: Any) -> None:
    from safetensors.torch import save
    torch.manual_seed(0)
    whole = [save({"a": torch.randn(2, 3), "b": torch.randn(4).bfloat16()}, {"format": "pt"}),
             save({"weight": torch.arange(4), "empty": torch.zeros(0, 2), "step": torch.tensor(3.0), "mask": torch.tensor([True, False])}),
             save({f"layers.{i}": torch.full((i,), float(i)) for i in range(5)})]
    random_ = random.Random(6)
    accepted = 0
    for i in range(600):
        content = _mutated(random_, whole[i % len(whole)])
        theirs = _package(content)
        # A name twice is what mutation finds of the differences above; so is a type we have not.
        reason = None
        if theirs is not None:
            header = json.loads(content[8:8 + struct.unpack("<Q", content[:8])[0]], object_pairs_hook=list)
            names = [key for key, _ in header]
            if len(set(names)) < len(names):
                reason = "name twice"
        accepted += _compare(native, tmp_path / "f.safetensors", content, reason, f"mutation {i}: {content[:300]!r}")
    assert 60 < accepted < 540, accepted  # both sides were tried


# --- pickles

class _Calls:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple:
        return self.function, self.arguments


def _torch_file(pickled: bytes, data: bytes = bytes(16), more: dict[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in {"data.pkl": pickled, "byteorder": b"little", "data/0": data, "version": b"3\n", **(more or {})}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


_GET0 = b"h\0"
_PROTO = b"\x80\x02"
_DICT = _PROTO + b"}X\x01\0\0\0a"  # and a value, and "s."


def _value(instructions: bytes) -> bytes:
    return _DICT + instructions + b"s."


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def _tensor(numel: int, size: int, stride: int) -> bytes:
    return (b"ctorch._utils\n_rebuild_tensor_v2\n((" + _text("storage") + b"ctorch\nFloatStorage\n" + _text("0") + _text("cpu") + _number(numel) +
            b"tQK\0(" + _number(size) + b"t(" + _number(stride) + b"t\x89ccollections\nOrderedDict\n)RtR")


def _nested_tuples(count: int) -> bytes:
    """A tuple of tuples t = (t, t), `count` times: 2^count elements when it is hashed."""
    return b"()" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(count)) + b"t"


_LONG_LIST = b"](" + b"K\x01" * 100_000 + b"eq\0"

# name: (pickle, what Python's message says, what the C++ reader says: "" where it only has data, which runs nothing)
PICKLES: dict[str, tuple[bytes, str, str]] = {
    "system": (_value(b"cposix\nsystem\n" + _text("touch RAN") + b"\x85R"), "posix.system", ""),
    "os.system": (_value(b"cos\nsystem\n" + _text("touch RAN") + b"\x85R"), "os.system", ""),
    "eval": (_value(b"cbuiltins\neval\n" + _text("open('RAN','w')") + b"\x85R"), "eval", ""),
    "Python 2's eval": (_value(b"c__builtin__\neval\n" + _text("open('RAN','w')") + b"\x85R"), "eval", ""),
    "getattr": (_value(b"cbuiltins\ngetattr\n(cos\nsystem\n" + _text("__call__") + b"tR"), "getattr", ""),
    "dotted name": (_value(b"ctorch\nserialization.os.system\n" + _text("touch RAN") + b"\x85R"), "torch.serialization.os.system", ""),
    "import through numpy": (_value(b"cnumpy.testing._private.utils\nrunstring\n(" + _text("open('RAN','w')") + b"}tR"), "runstring", ""),
    "Popen": (_value(b"csubprocess\nPopen\n" + _text("touch RAN") + b"\x85\x81"), "subprocess.Popen", ""),
    "state of a class": (_value(b"ccollections\nOrderedDict\n}" + _text("x") + b"K\x01sb"), "Can only build Tensor", ""),
    "call of a result": (_value(b"ccollections\nOrderedDict\n)R)R"), "", "no class is called"),
    "stack global": (_PROTO + _text("os") + _text("system") + b"\x93" + _text("touch RAN") + b"\x85R.", "STACK_GLOBAL", ""),
    "instance": (_PROTO + b"(" + _text("touch RAN") + b"ios\nsystem\n.", "INST", "0x69"),
    "object": (_PROTO + b"(cos\nsystem\n" + _text("touch RAN") + b"o.", "OBJ", "0x6f"),
    "extension": (_PROTO + b"\x82\x01.", "", "0x82"),
    "persistent id of another kind": (_value(_text("module") + b"\x85Q"), "storage", "no tensor's storage|storage"),
    "lists in lists": (_value(b"](]q\0" + b"".join(b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(100)) + b"e"), "", ""),
    "tuples in tuples": (_value(_nested_tuples(200)), "", ""),
    "hashed tuples in tuples": (_PROTO + b"}" + _nested_tuples(60) + b"K\x01s.", "keys of its dictionaries", ""),
    "set of tuples in tuples": (_value(b"cbuiltins\nset\n]" + _nested_tuples(60) + b"a\x85R"), "arguments of builtins.set", ""),
    "100,000 lists deep": (_value(b"]" * 100_000 + b"a" * 99_999), "inside each other", ""),
    "100,000 tuples deep": (_value(b")" + b"\x85" * 100_000), "inside each other", ""),
    "hashed deep tuple": (_PROTO + b"})" + b"\x85" * 100_000 + b"K\x01s.", "inside each other", ""),
    "bytearray of a terabyte": (_value(b"cbuiltins\nbytearray\n" + _number(10**12) + b"\x85R"), "builtins.bytearray", ""),
    "set of a range": (_value(b"cbuiltins\nset\ncbuiltins\nrange\n" + _number(10**12) + b"\x85R\x85R"), "builtins.set", ""),
    "numpy array of a terabyte": (_value(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _number(10**12) + b"\x85" + _text("b") + b"tR"),
                                  "_reconstruct", ""),
    "tensor class": (_value(b"ctorch\nFloatTensor\n" + _number(10**12) + b"\x85R"), "torch.FloatTensor", ""),
    "the same list again and again": (_PROTO + b"](" + _LONG_LIST + (b"cbuiltins\nset\n" + _GET0 + b"\x85R") * 10_000 + b"e.", "arguments of builtins.set", ""),
    "the same text again and again": (_PROTO + b"}" + _text("a") + b"](" + _text("x" * 1_000_000) + b"q\0" + _GET0 * 200_000 + b"es.", "", ""),
    "the same attributes again and again": (_PROTO + b"](}(" + b"".join(_text(f"k{i}") + b"K\x01" for i in range(20_000)) + b"uq\0" +
                                            (b"ccollections\nOrderedDict\n)R" + _GET0 + b"b") * 10_000 + b"e.", "attributes", ""),
    "long beyond the data": (_PROTO + b"\x8b\xff\xff\xff\x7f.", "damaged", "ends too early"),
    "text beyond the data": (_PROTO + b"X\xff\xff\xff\xffzz.", "damaged", "ends too early"),
    "text of 2^63 bytes": (_PROTO + b"\x8d\xff\xff\xff\xff\xff\xff\xff\x7fzz.", "damaged|BINUNICODE8", "ends too early"),
    "bytes of 2^63": (_PROTO + b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fzz.", "damaged|BINBYTES8", "ends too early"),
    "frame of 2^63 bytes": (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.", "damaged|FRAME", ""),
    "memo of four billion": (_value(b"Nr\xff\xff\xff\xff"), "", ""),
    "unknown memo": (_value(b"h\x09"), "damaged", "unknown object"),
    "no stop": (_DICT, "damaged", "ends too early"),
    "empty stack": (_PROTO + b"R.", "damaged", "lacks its operand"),
    "number too long for its size": (_value(b"\x8a\xff" + b"\x7f" * 255), "", ""),
    "10 GB of storage": (_value(_tensor(2_500_000_000, 2_500_000_000, 1)), "storage", "are needed"),
    "storage beyond 64 bits": (_value(_tensor(2**62, 4, 1)), "storage", "impossible"),
    "tensor beyond its storage": (_value(_tensor(4, 5, 1)), "", "beyond its storage"),
    "tensor that repeats one element": (_value(_tensor(4, 2**50, 0)), "", "repeats"),
    "negative stride": (_value(_tensor(4, 2, -1)), "", "negative"),
}
# What Python may load: it is small, or a view of what is there.
HARMLESS_IN_PYTHON = {"lists in lists", "tuples in tuples", "the same text again and again", "memo of four billion", "number too long for its size",
                      "tensor that repeats one element"}

_LOADER = """
import json, resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (24 << 30, 24 << 30))
import torch
from deepspeed._C import CheckpointError
from deepspeed.checkpoint.safe_load import load_file
torch.load  # with what it imports when it is first used
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for line in sys.stdin:
    begin = time.monotonic()
    try:
        load_file(line.rstrip("\\n"))
        answer = {}
    except CheckpointError as error:
        answer = {"refused": str(error)}
    answer["seconds"] = time.monotonic() - begin
    answer["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: Any) -> Iterator[Any]:
    """A function from a file's path to what safe_load says about it, in a process whose folder shows what was run."""
    folder = tmp_path_factory.mktemp("loader")
    with subprocess.Popen([sys.executable, "-c", _LOADER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        def ask(path: Any) -> dict:
            process.stdin.write(f"{path}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, f"the process died (exit status {process.wait(10)})"
            answer = json.loads(line)
            assert not list(folder.iterdir()), "the file has run code"
            assert answer["grown_mb"] < 1500 and answer["seconds"] < 60, answer
            if "refused" in answer:
                assert str(path) in answer["refused"] and len(answer["refused"]) < LONGEST_MESSAGE, answer["refused"]
            return answer
        yield ask
        process.stdin.close()
        assert process.wait(60) == 0


def _says(answer: dict, expected: str) -> None:
    assert "refused" in answer, "it was loaded"
    assert any(part in answer["refused"] for part in expected.split("|")), answer["refused"]


@pytest.mark.parametrize("name", PICKLES)
def test_pickles(native: Any, python: Any, tmp_path: Any, name: str) -> None:
    pickled, in_python, in_native = PICKLES[name]
    path = tmp_path / "f.pt"
    path.write_bytes(_torch_file(pickled))
    answer = native(path)
    if in_native:
        _says(answer, in_native)
    answer = python(path)
    if name in HARMLESS_IN_PYTHON:
        assert "refused" not in answer or in_python, answer
    else:
        _says(answer, in_python)


def _legacy(pickled: bytes) -> bytes:
    """Before torch 1.6: five pickles, then the storages."""
    return b"".join(pickle.dumps(part, protocol=2) for part in (0x1950a86a20f9469cfc6c, 1001, {"protocol_version": 1001, "little_endian": True,
                    "type_sizes": {"short": 2, "int": 4, "long": 4}})) + pickled + pickle.dumps([], protocol=2)


@pytest.mark.parametrize("name", ["os.system", "hashed tuples in tuples", "bytearray of a terabyte", "10 GB of storage"])
def test_pickles_in_files_of_old_torch(python: Any, tmp_path: Any, name: str) -> None:
    path = tmp_path / "f.pt"
    path.write_bytes(_legacy(PICKLES[name][0]))
    _says(python(path), PICKLES[name][1])


def test_chains_of_reduce(native: Any, python: Any, tmp_path: Any) -> None:
    """As pickle itself writes them, with the functions that exploits use."""
    import builtins
    import importlib
    import os
    for function, arguments in ((os.system, ("touch RAN",)), (os.popen, ("touch RAN",)), (builtins.exec, ("open('RAN','w')",)),
                                (importlib.import_module, ("antigravity",)), (getattr, (_Calls(importlib.import_module, "os"), "system"))):
        for protocol in (2, 4):
            path = tmp_path / "f.pt"
            path.write_bytes(_torch_file(pickle.dumps({"y": [_Calls(_Calls, _Calls(function, *arguments))]}, protocol=protocol)))
            assert "refused" in python(path)
            native(path)


def test_archives(native: Any, python: Any, tmp_path: Any) -> None:
    good = _value(_tensor(4, 4, 1))
    path = tmp_path / "f.pt"

    def both(content: bytes, in_python: str, in_native: str) -> None:
        path.write_bytes(content)
        _says(native(path), in_native)
        _says(python(path), in_python)

    path.write_bytes(_torch_file(good))
    assert native(path) == {"elements": 4} and "refused" not in python(path)
    both(_torch_file(good, compression=zipfile.ZIP_DEFLATED), "compressed", "compressed")
    # A bomb: 200 MB of zeros in 200 KB, which are the pickle.
    both(_torch_file(_value(_text("\0" * 200_000_000)), compression=zipfile.ZIP_DEFLATED), "compressed", "compressed")
    path.write_bytes(_torch_file(good, more={"../../../../tmp/escaped": b"x"}))
    _says(python(path), "leave the archive")
    native(path)  # names are keys there, and nothing is ever written
    shared = bytearray(_torch_file(good, more={"data/1": bytes(16)}))
    first = shared.find(b"PK\1\2", shared.find(b"PK\1\2") + 1)  # two directory entries, one local header
    second = shared.find(b"PK\1\2", first + 1)
    shared[second + 42:second + 46] = shared[first + 42:first + 46]
    both(bytes(shared), "overlap|damaged", "overlap|cut off")
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as archive, pytest.warns(UserWarning):
        for content in (good, _value(b"cos\nsystem\n" + _text("touch RAN") + b"\x85R")):
            archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(16))
    both(twice.getvalue(), "two parts", "two parts")
    declared = bytearray(_torch_file(good))  # 1 GB in the directory, 16 bytes in the file
    entry = declared.find(b"archive/data/0", declared.find(b"PK\1\2")) - 46
    declared[entry + 20:entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    both(bytes(declared), "", "cut off")


def test_what_programs_save_is_loaded(native: Any, python: Any, tmp_path: Any) -> None:
    """The limits are far from real files: many parameters, shared tensors, long histories."""
    weight = torch.randn(64)
    state = {"module": OrderedDict((f"layers.{i}.weight", weight[:8] if i % 2 else torch.randn(8)) for i in range(5_000)),
             "param_shapes": [OrderedDict((f"layers.{i}.weight", torch.Size([8])) for i in range(5_000))],
             "history": list(range(100_000)), "pairs": [(i, str(i)) for i in range(20_000)], "names": {"a", "b"}, "long": "x" * 5_000_000,
             "buffer": bytearray(b"12"), "same": [weight] * 1000}
    for name, legacy in (("new.pt", False), ("old.pt", True)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        assert "refused" not in python(tmp_path / name)
    assert "refused" not in native(tmp_path / "new.pt")
