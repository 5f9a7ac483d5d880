"""TorchScript archives that mean harm: each would pass for the kernel of ``BLUEPRINT`` but for one deed.

They are made of a good archive by changing the text of its code, its pickles or its zip file, as whoever
wants to do harm would; so nothing of them is stopped by PyTorch's compiler, which only writes good ones.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from esper.tezzeret.importing import WeightsJob
from esper.tezzeret.jobs import Tell

ROOT = "archive/"
MAIN = "archive/code/__torch__/hostile_programs.py"
DATA = "archive/data.pkl"

BLUEPRINT = """
version: 1
name: offered
layouts: [features]
nodes:
  - {id: down, op: linear, inputs: [x], params: {out: "2"}}
  - {id: bend, op: gelu, inputs: [down]}
  - {id: up, op: linear, inputs: [bend], params: {out: out}}
output: up
"""
SHAPE = "features:8:6"


@dataclass(frozen=True)
class World:
    """What must stay as it is: a file that none may read, and one that none may make."""

    secret: Path
    made: Path


Entries = dict[str, bytes]
Case = Callable[[World], bytes]


class Plain(nn.Module):
    """What ``BLUEPRINT`` says."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(8, 2)
        self.up = nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(nn.functional.gelu(self.down(x)))  # type: ignore[no-any-return]


def scripted(module: nn.Module) -> bytes:
    """``module`` as PyTorch saves it."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


@cache
def good() -> bytes:
    """An archive with nothing wrong."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return scripted(Plain())


def entries() -> Entries:
    """What is in the good archive."""
    with zipfile.ZipFile(io.BytesIO(good())) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(".debug_pkl")}


def packed(held: Entries, method: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of entries."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as archive:
        for name, data in held.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return made.getvalue()


def changed(name: str, old: bytes, new: bytes) -> bytes:
    """The good archive with another text in one entry."""
    held = entries()
    assert old in held[name], f"{name} has no {old!r}"
    return packed(held | {name: held[name].replace(old, new, 1)})


def running(*lines: str) -> Case:
    """Does ``lines`` whenever it runs; they may name what is in the world."""

    def make(world: World) -> bytes:
        text = "".join(f"    {line}\n" for line in _told(lines, world))
        head = b"    x: Tensor) -> Tensor:\n"
        return changed(MAIN, head, head + text.encode())

    return make


def loading(*lines: str) -> Case:
    """Does ``lines`` while it is loaded, in the method that PyTorch calls then."""

    def make(world: World) -> bytes:
        body = "".join(f"    {line}\n" for line in _told(lines, world))
        head = "  def forward(self: __torch__.hostile_programs.Plain"
        methods = head.replace("forward", "__getstate__") + ") -> int:\n    return 1\n"
        methods += head.replace("forward", "__setstate__") + f",\n    state: int) -> NoneType:\n{body}"
        code = entries()[MAIN].replace(head.encode(), f"{methods}    return None\n{head}".encode())
        root = b"\x80\x02c__torch__.hostile_programs\nPlain\n)\x81K\x01b."
        return packed(entries() | {MAIN: code, DATA: root})

    return make


def _told(lines: tuple[str, ...], world: World) -> list[str]:
    known = {"SECRET": f'"{world.secret}"', "MADE": f'"{world.made}"'}
    return [re.sub("|".join(known), lambda word: known[word[0]], line) for line in lines]


def with_entries(**changes: bytes | None) -> Case:
    """The good archive with other entries; names are those below its folder, None leaves one out."""

    def make(_: World) -> bytes:
        held: dict[str, bytes | None] = {**entries(), **{ROOT + name: data for name, data in changes.items()}}
        return packed({name: data for name, data in held.items() if data is not None})

    return make


def also(name: str, data: bytes = b"x", mode: int = 0) -> Case:
    """The good archive and one entry more, of a name as it stands there."""

    def make(_: World) -> bytes:
        made = io.BytesIO()
        with zipfile.ZipFile(made, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is such a name already
            for known, held in entries().items():
                archive.writestr(known, held)
            entry = zipfile.ZipInfo("x")
            entry.filename = name
            entry.external_attr = mode << 16
            archive.writestr(entry, data)
        return made.getvalue()

    return make


def patched(old: bytes, new: bytes) -> Case:
    """The good archive with other bytes in the pickle of its weights."""
    return lambda _: changed(DATA, old, new)


def header(offset: int, value: bytes) -> Case:
    """The good archive with other bytes in the first entry of its directory."""

    def make(_: World) -> bytes:
        data = bytearray(packed(entries()))
        start = data.index(b"PK\x01\x02") + offset
        data[start : start + len(value)] = value
        return bytes(data)

    return make


def payload(world: World) -> bytes:
    """A pickle that writes a file when Python loads it."""

    class Writes:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.write_text, (world.made, "written")

    return pickle.dumps(Writes(), protocol=2)


def weights(change: Callable[[Tensor], object]) -> Case:
    """The good program with other weights."""

    def make(_: World) -> bytes:
        module = Plain()
        with torch.no_grad():
            change(module.up.weight)
        return scripted(module)

    return make


class Many(Plain):
    """Two hundred modules where two are needed."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Sequential(*(nn.Linear(1, 1) for _ in range(200)))


class Overtaken(WeightsJob):
    """A worker that the program has taken over: it tells what the program wants."""

    def run(self, tell: Tell) -> bytes:
        tell("load\x1b[2J")
        if self.program.endswith(b"junk"):
            return b"junk"
        if self.program.endswith(b"raise"):
            raise RuntimeError("\x1b[2Jline\nline")
        return safetensors.torch.save({"up.weight": torch.full((6, 2), float("nan"))})


def _wander(x: Tensor) -> Tensor:
    return x + 1


class Forking(Plain):
    """Starts a thread."""

    def forward(self, x: Tensor) -> Tensor:
        torch.jit.wait(torch.jit.fork(_wander, x))
        return self.up(nn.functional.gelu(self.down(x)))  # type: ignore[no-any-return]


class Counting(Plain):
    """Does harm only when it has run a hundred times."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        runs: Tensor = self.runs
        runs.add_(1.0)
        while bool(runs > 100.0):
            x = x * 1.0
        return self.up(nn.functional.gelu(self.down(x)))  # type: ignore[no-any-return]


def _archive_of_python(world: World) -> bytes:
    made = io.BytesIO()
    torch.save({"weights": torch.ones(2)}, made)
    with zipfile.ZipFile(io.BytesIO(made.getvalue())) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    return packed(held | {DATA: payload(world)})


def _bomb(_: World) -> bytes:
    """Three hundred megabytes of zeros for one weight, in two."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in entries().items():
            if name != f"{ROOT}data/0":
                archive.writestr(name, data)
        with archive.open(f"{ROOT}data/0", "w", force_zip64=True) as out:
            for _ in range(18):
                out.write(bytes(1 << 24))
    return made.getvalue()


def _overlapping(_: World) -> bytes:
    """Nine hundred entries of the directory that all are one of 4 MiB: what is small unpacks to much."""
    data = packed(entries() | {f"{ROOT}data/9": bytes(1 << 22)}, zipfile.ZIP_DEFLATED)
    start, end = data.index(b"PK\x01\x02"), data.rindex(b"PK\x05\x06")
    last = data[data.rindex(b"PK\x01\x02") : end]
    copies = [_named(last, b"archive/data/%d" % number) for number in range(100, 1000)]
    directory = data[start:end] + b"".join(copies)
    number = directory.count(b"PK\x01\x02")
    closing = bytearray(data[end:])
    struct.pack_into("<HHI", closing, 8, number, number, len(directory))
    return data[:start] + directory + bytes(closing)


def _named(entry: bytes, name: bytes) -> bytes:
    """An entry of a directory under another name."""
    made = bytearray(entry[:46]) + name
    struct.pack_into("<HHH", made, 28, len(name), 0, 0)
    return bytes(made)


def _debugged(world: World) -> bytes:
    """Raises an error, for whose message PyTorch reads the pickle beside the code."""
    held = {f"{MAIN}.debug_pkl": payload(world)}
    with zipfile.ZipFile(io.BytesIO(running("x = torch.view(x, [3])")(world))) as archive:
        return packed({name: archive.read(name) for name in archive.namelist()} | held)


def deep(opening: str, closing: str, levels: int) -> str:
    """An expression of ``levels`` levels."""
    return f"x0 = {opening * levels}x{closing * levels}"


_FOR_EVER = ("while True:", "  x = torch.mul(x, 1.)")
_HUGE = "[1099511627776]"

AT_RUN: dict[str, tuple[Case, str]] = {
    "writes a file": (running("torch.save(x, MADE)"), "check: .*aten::save"),
    "writes to the connection": (running('torch.save(x, "/proc/self/fd/3")'), "check: .*aten::save"),
    "reads a file": (
        running("x = torch.add(x, torch.from_file(SECRET, False, 1))"),
        "check: .*aten::from_file",
    ),
    "maps a file to write": (
        running("x = torch.add(x, torch.sum(torch.from_file(MADE, True, 64)))"),
        "check: .*aten::from_file",
    ),
    "floods the terminal": (running("while True:", '  print("flood")'), "check: .*prim::Print"),
    "floods warnings": (running("while True:", '  torch.warn("flood", 2)'), "check: .*aten::warn"),
    "reads beside a tensor": (
        running("x = torch.add(x, torch.sum(torch.as_strided(x, [64], [1], 4096)))"),
        "check: .*aten::as_strided",
    ),
    "reads old memory": (running("x = torch.empty([8])"), "check: .*aten::empty"),
    "takes another's storage": (running("y = torch.set_(x, x)"), "check: .*aten::set_"),
    "grows a tensor": (running(f"y = torch.resize_(x, {_HUGE})"), "check: .*aten::resize_"),
    "reseeds": (running("torch.manual_seed(1)"), "check: .*aten::manual_seed"),
    "draws numbers": (running("x = torch.rand([2, 8, 8])"), "check: .*aten::rand"),
    "calls the profiler": (
        running('h = ops.profiler._record_function_enter("x", None)'),
        "check: .*profiler::_record_function_enter",
    ),
    "runs gradients": (running("torch.backward(torch.sum(x))"), "check: .*aten::backward"),
    "sends to others": (
        running("x = ops._c10d_functional.all_reduce(x, 'sum', '0')"),
        "check: .*_c10d_functional::all_reduce",
    ),
    "calls a backend": (
        running("x = ops.mkldnn._linear_pointwise(x, x, None, '', [], '')"),
        "check: .*mkldnn::",
    ),
    "scatters out of bounds": (
        running("y = torch.index_put_(x, [torch.tensor([99999])], torch.tensor(1.))"),
        "check: .*aten::",
    ),
    "starts threads": (lambda _: scripted(Forking()), "check: .*prim::fork"),
    "counts its runs": (lambda _: scripted(Counting()), "weights: its weights are"),
}
"""What a program says that it does when it runs, and the part that is named in the refusal."""

WHILE_LOADED: dict[str, tuple[Case, str]] = {
    "writes a file while loaded": (loading("torch.save(torch.ones([1]), MADE)"), "load: "),
    "reads a file while loaded": (
        loading("y = torch.from_file(SECRET, False, 1)", "print(y)"),
        "load: a worker may open nothing",
    ),
    "opens the connection while loaded": (
        loading('torch.save(torch.ones([1]), "/proc/self/fd/3")'),
        "load: ",
    ),
    "fills memory while loaded": (
        loading(f"y = torch.ones({_HUGE})", "print(y)"),
        "load: over its limit of .* of memory",
    ),
    "fills memory by and by": (
        loading("y = torch.ones([1048576])", "while True:", "  y = torch.cat([y, y])"),
        "load: over its limit of .* of memory",
    ),
    "loops while loaded": (loading("x = torch.ones([1])", *_FOR_EVER), "load: over its limit of .* of CPU"),
    "floods the terminal while loaded": (
        loading("while True:", '  print("flood")'),
        "load: over its limit of .* of CPU",
    ),
    "raises while loaded": (loading('ops.prim.RaiseException("\x1b[2J\x07 boo")'), "load"),
    "has a method for loading": (loading("x = torch.ones([1])"), "load"),
}
"""What PyTorch runs as it opens the file, and where it ends."""

WITHIN_THE_LIST: dict[str, tuple[Case, str]] = {
    "loops": (running(*_FOR_EVER), "validate: over its limit"),
    "fills memory": (
        running("while True:", "  x = torch.cat([x, x], 0)"),
        "validate: over its limit of .* of memory",
    ),
    "asks for too much": (
        running("x = torch.slice(torch.repeat(x, [1048576, 1024, 1]), 0, 0, 2)"),
        "validate: over its limit",
    ),
    "gives nothing": (running("x = torch.mul(x, 0.)"), "validate"),
    "gives what is not finite": (running("x = torch.div(x, 0.)"), "validate: .*not finite"),
    "gives something else": (running("x = torch.mul(x, 1.1)"), "validate: .*differs from eager"),
    "gives another shape": (running("x = torch.cat([x, x], 0)"), "validate: .*gave"),
    "changes its input": (running("x = torch.add_(x, 1.)"), "validate|check"),
    "changes its weights": (
        running("y = torch.mul_(self.up.weight, 1.5)"),
        "validate|check",
    ),
    "raises": (running('ops.prim.RaiseException("\x1b[2J\x07 boo")'), "validate|load"),
}
"""What is made of allowed ops alone, and does not do what it should."""

CODE: dict[str, tuple[Case, str]] = {
    "calls Python": (running('os.system("touch /tmp/x")'), "load"),
    "is no code": (with_entries(**{"code/__torch__/hostile_programs.py": b"\x00\xff\xfe" * 100}), "load"),
    "calls itself": (
        lambda _: changed(MAIN, b"_0 = (up)", b"_1 = (self).forward(x, )\n    _0 = (up)"),
        "load|check",
    ),
    "nests parentheses": (running(deep("(", ")", 100_000)), "load"),
    "nests calls": (running(deep("torch.neg(", ")", 50_000)), "load|validate|check"),
    "nests lists": (running(deep("[", "]", 50_000)), "load"),
    "has a class of C++": (
        lambda _: changed(
            MAIN, b"  training : bool", b"  o : __torch__.torch.classes.c10d.Work\n  training : bool"
        ),
        "load|check",
    ),
    "has names of elsewhere": (
        lambda _: changed(MAIN, b"up = self.up", "up = self.\u0443\u0440".encode()),
        "load",
    ),
}

PICKLES: dict[str, tuple[Case, str]] = {
    "a pickle that runs, as weights": (lambda w: with_entries(**{"data.pkl": payload(w)})(w), "load"),
    "a pickle that runs, as constants": (lambda w: with_entries(**{"constants.pkl": payload(w)})(w), "load"),
    "a pickle that runs, as debug information": (_debugged, "validate|load"),
    "an archive of torch.save with one": (_archive_of_python, "load|read"),
    "a pickle of 100,000 levels": (
        with_entries(**{"data.pkl": b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."}),
        "load",
    ),
    "a pickle of itself": (with_entries(**{"data.pkl": b"\x80\x02]q\x00h\x00a."}), "load"),
    "a pickle that does not end": (with_entries(**{"data.pkl": b"\x80\x02" + b"K\x01" * 100_000}), "load"),
    "an empty pickle": (with_entries(**{"data.pkl": b""}), "load"),
    "names a class that is not there": (patched(b"Plain", b"Plane"), "load"),
    "names another storage": (patched(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x009"), "load"),
    "a storage of another type": (patched(b"FloatStorage", b"ShortStorage"), "load|weights"),
    "strides beyond the storage": (patched(b"(K\x08K\x01t", b"(K\x7fK\x7ft"), "load|weights"),
    "strides below zero": (patched(b"(K\x08K\x01t", b"(J\xff\xff\xff\xffK\x01t"), "load|weights"),
    "an offset beyond the storage": (patched(b"Qq\x0bK\x00", b"Qq\x0bK\x7f"), "load|weights"),
    "an offset below zero": (patched(b"Qq\x0bK\x00", b"Qq\x0bJ\xff\xff\xff\xff"), "load|weights"),
    "a size of 2**62": (
        patched(b"(K\x02K\x08t", b"(\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x40K\x08t"),
        "load|weights",
    ),
    "a million weights of one": (
        patched(b"(K\x02K\x08t(K\x08K\x01t", b"(J\x00\x00\x10\x00K\x08t(K\x00K\x00t"),
        "load|weights",
    ),
}

ARCHIVES: dict[str, tuple[Case, str]] = {
    "nothing": (lambda _: b"", "it is no kernel file"),
    "the start of an archive": (lambda _: b"PK\x03\x04 no archive", "read"),
    "half an archive": (lambda _: good()[: len(good()) // 2], "read"),
    "an archive without its end": (lambda _: good()[:-20], "read"),
    "an archive after a script": (lambda _: b"PK\x03\x04#!/bin/sh\n" + good(), "read: something precedes it"),
    "an archive after another": (lambda _: good() + packed(entries()), "read: something precedes it"),
    "a version to come": (with_entries(**{".data/version": b"999999\n"}), "load"),
    "a version that is none": (with_entries(**{".data/version": b"-1e9\n"}), "load"),
    "a version of 16 MiB": (with_entries(**{".data/version": b"1" * (1 << 24)}), "load"),
    "no version": (with_entries(**{".data/version": None}), "load"),
    "no weights": (with_entries(**{"data.pkl": None}), "load"),
    "no constants": (with_entries(**{"constants.pkl": None}), "load"),
    "no code": (with_entries(**{"code/__torch__/hostile_programs.py": None}), "load"),
    "a weight cut short": (with_entries(**{"data/0": b"1234"}), "weights: its weights take"),
    "a weight left out": (with_entries(**{"data/0": None}), "load"),
    "a way out of the folder": (also("archive/../../../../tmp/made"), "read: its entry .* is none"),
    "a way from the root": (also("/tmp/made"), "read: its entry .* is none"),
    "a way of another system": (also("archive\\..\\made"), "read: its entry .* is none"),
    "a name with a zero": (also("archive/data/0\x00.txt"), "read: its entry .* is none"),
    "a name of 60,000 signs": (also("archive/code/" + "a" * 60_000 + ".py"), "read: its entry .* is none"),
    "a name that looks like another": (also("archive/d\u0430ta.pkl"), "read: its entry .* is none"),
    "a name written from the right": (also("archive/\u202edata"), "read: its entry .* is none"),
    "a name for the terminal": (also("archive/\x1b[2J\x1b]0;x\x07"), "read: its entry .* is none"),
    "a link": (also("archive/data/9", b"/etc/passwd", 0o120777), "read: .* is no plain file"),
    "a device": (also("archive/data/9", b"", 0o020666), "read: .* is no plain file"),
    "an entry twice": (also("archive/data.pkl", b"\x80\x02N."), "read: it has an entry twice"),
    "a second root": (also("other/data.pkl"), "read: .* more than one folder"),
    "5,000 entries": (
        lambda _: packed(entries() | {f"{ROOT}data/{n}": b"" for n in range(9, 5009)}),
        "read: it has",
    ),
    "a bomb": (_bomb, "load: over its limit of .* of memory"),
    "entries that overlap": (_overlapping, "read: "),
    "a lie about sizes": (header(20, b"\xff\xff\xff\x7f" * 2), "read"),
    "a sum that is wrong": (
        header(16, b"\x00\x00\x00\x00"),
        "read: its entry .* is damaged|read: it is no whole",
    ),
    "a secret entry": (header(8, b"\x01\x00"), "read: .* is encrypted"),
    "an unknown method": (header(10, b"\x63\x00"), "read: it is no whole"),
    "an entry elsewhere": (header(42, b"\xff\xff\xff\x7f"), "read"),
}
"""What is wrong with the zip file, or with what is in it and what is not."""

WEIGHTS: dict[str, tuple[Case, str]] = {
    "weights that are no numbers": (weights(lambda w: w.fill_(float("nan"))), "validate|not finite"),
    "weights without end": (weights(lambda w: w.fill_(float("inf"))), "validate|not finite"),
    "weights that vanish": (weights(lambda w: w.zero_()), "validate"),
    "weights of another precision": (lambda _: scripted(Plain().double()), "weights: .*float64"),
    "200 modules": (lambda _: scripted(Many()), "weights: .* and 396 more"),
    "another network": (lambda _: scripted(nn.Linear(8, 6)), "weights: its weights are"),
}

CASES = {
    name: case
    for family in (AT_RUN, WHILE_LOADED, WITHIN_THE_LIST, CODE, PICKLES, ARCHIVES, WEIGHTS)
    for name, case in family.items()
}
"""All of them: how each is made, and what its refusal says."""
