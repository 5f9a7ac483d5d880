"""What kernels may be made of: all that ships, and nothing that reads, writes, prints or calls out."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from esper.errors import RefusedProgram
from esper.karn.catalogue import fitting, load_catalogue
from esper.messages import Slot
from esper.tezzeret.allowed import ALLOWED, foreign_parts
from esper.tezzeret.builder import build
from esper.tezzeret.checking import check_program
from esper.tezzeret.limits import Limits
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.torchscript import TorchScriptTarget

CATALOGUE = load_catalogue([Path(__file__).parents[2] / "blueprints"]).blueprints
SLOTS = [Slot("features", 16, 32), Slot("tokens", 64, 64), Slot("channels", 16, 32, 2)]
TARGET = TorchScriptTarget()


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1, Limits(wall_seconds=20, cpu_seconds=2, memory_mb=256)) as pool:
        yield pool


def archive(module: nn.Module) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Spy)
        torch.jit.save(torch.jit.script(module), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("slot", SLOTS, ids=str)
def test_all_that_ships_is_allowed(slot: Slot) -> None:
    for blueprint in fitting(CATALOGUE, slot):
        program = TARGET.load(TARGET.save(TARGET.compile(build(blueprint, slot))))
        assert foreign_parts(program) == []


def test_what_touches_the_world_is_not_on_the_list() -> None:
    for name in ("save", "from_file", "warn", "wait", "__delitem__", "set_", "rand", "empty", "open"):
        assert f"aten::{name}" not in ALLOWED
    for name in ("Print", "PythonOp", "fork", "CallMethod", "CallFunction", "CreateObject", "SetAttr"):
        assert f"prim::{name}" not in ALLOWED


class Saves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        torch.save(x, "/tmp/written_by_a_kernel")
        return x


class ReadsFile(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_file("/etc/hostname", False, 1, dtype=torch.float32)


class Prints(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        print(x)
        return x


def _wander(x: Tensor) -> Tensor:
    return x + 1


class Forks(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.jit.wait(torch.jit.fork(_wander, x))


class Profiles(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        handle = torch.ops.profiler._record_function_enter("x", None)
        torch.ops.profiler._record_function_exit(handle)
        return x


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


class HiddenBelow(nn.Module):
    """The op is in another method, of a module below, in a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.below = Unused()

    def forward(self, x: Tensor) -> Tensor:
        return x


class Unused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def other(self, x: Tensor) -> Tensor:
        if x.dim() > 7:
            torch.save(x, "/tmp/written_by_a_kernel")
        return x


class Spy:
    def __init__(self) -> None:
        self.x = torch.ones(1)

    def __getstate__(self) -> Tensor:
        return self.x

    def __setstate__(self, state: Tensor) -> None:
        torch.save(state, "/tmp/written_by_a_kernel")
        self.x = state


class HoldsObject(nn.Module):
    """Its attribute would write a file while it is loaded; PyTorch overlooks that it cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.spy = Spy()

    def forward(self, x: Tensor) -> Tensor:
        return x


class LoopsWhenLoaded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return torch.ones(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        x = state[0]
        while bool(x.sum() > 0):
            x = x + 1
        self.training = state[1]


class GrowsWhenLoaded(LoopsWhenLoaded):
    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        self.training = bool(torch.ones([1 << 40]).sum() > 0)


class HugeConstant(nn.Module):
    """400 MB, more than a worker may have, in an archive that compresses to little."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("large", torch.zeros(100 * 2**20))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.large[0]


def compressed(program: bytes) -> bytes:
    """The same archive, deflated, as PyTorch reads it, too."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out:
        for name in (source := zipfile.ZipFile(io.BytesIO(program))).namelist():
            out.writestr(name, source.read(name))
    return made.getvalue()


HOSTILE: list[tuple[Callable[[], bytes], str]] = [
    (lambda: archive(Saves()), "check: .*aten::save"),
    (lambda: archive(ReadsFile()), "check: .*aten::from_file"),
    (lambda: archive(Prints()), "check: .*prim::Print"),
    (lambda: archive(Forks()), "check: .*prim::fork"),
    (lambda: archive(Profiles()), "check: .*profiler::_record_function_enter"),
    (lambda: archive(Remembers()), "check: .*prim::SetAttr"),
    (lambda: archive(HiddenBelow()), "check: .*aten::save"),
    (lambda: archive(HoldsObject()), "check: .*Spy"),
    (lambda: archive(LoopsWhenLoaded()), "load: over its limit of 2 s of CPU time"),
    (lambda: archive(GrowsWhenLoaded()), "load: over its limit of 256 MiB of memory"),
    (lambda: compressed(archive(HugeConstant())), "load: over its limit of 256 MiB of memory"),
    (lambda: b"", "load: "),
    (lambda: b"PK\x03\x04 no archive", "load: "),
    (lambda: archive(nn.Linear(2, 2))[:-500], "load: "),
]


@pytest.mark.parametrize(
    ("make", "reason"), HOSTILE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_hostile_archives_are_refused_and_do_nothing(
    pool: WorkerPool, make: Callable[[], bytes], reason: str
) -> None:
    written = Path("/tmp/written_by_a_kernel")
    with pytest.raises(RefusedProgram, match=f"^the program is refused: {reason}"):
        check_program(make(), pool)
    assert not written.exists()


def test_a_plain_program_passes(pool: WorkerPool) -> None:
    check_program(archive(nn.Sequential(nn.Linear(2, 2), nn.ReLU())), pool)
    check_program(archive(nn.BatchNorm2d(3)))  # in a pool of its own


def test_an_object_is_found_that_does_nothing_when_loaded() -> None:
    class Eager(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert foreign_parts(Eager()) == ["a Eager, which is no script module"]
