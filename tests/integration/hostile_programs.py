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

import torch
from torch import Tensor, nn

ROOT = "archive/"
MAIN = "archive/code/__torch__.py"
LINEAR = "archive/code/__torch__/torch/nn/modules/linear.py"
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
    """What must stay as it is: a file that none may read, one that none may make, a port for none."""

    secret: Path
    made: Path
    port: int


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
        method = f"  def __setstate__(self: __torch__.Plain,\n    state: Tensor) -> NoneType:\n{body}"
        head = b"  def forward(self: __torch__.Plain"
        return changed(MAIN, head, f"{method}    return None\n".encode() + head)

    return make


def _told(lines: tuple[str, ...], world: World) -> list[str]:
    known = {"SECRET": f'"{world.secret}"', "MADE": f'"{world.made}"', "PORT": str(world.port)}
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
    """Three thousand modules where two are needed."""

    def __init__(self) -> None:
        super().__init__()
        self.rest = nn.Sequential(*(nn.Identity() for _ in range(3000)))


class Attributes(Plain):
    """A list of 200,000 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = list(range(200_000))


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
    """A gigabyte and a half of zeros for one weight, in two megabytes."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries().items():
            if name != f"{ROOT}data/0":
                archive.writestr(name, data)
        with archive.open(f"{ROOT}data/0", "w", force_zip64=True) as out:
            for _ in range(96):
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


def deep(opening: str, closing: str, levels: int) -> str:
    """An expression of ``levels`` levels."""
    return f"x0 = {opening * levels}x{closing * levels}"
