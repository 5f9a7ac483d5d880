"""Fetching kernels: real TorchScript in, and no damaged byte ever as far as the loader."""

from __future__ import annotations

import io
import sqlite3
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch
from torch import nn
from urza_support import ENVELOPE, artefact, open_sealed

from esper.errors import CorruptKernel, KernelNotFound, LibraryError
from esper.messages import KernelMetadata
from esper.urza import KernelLibrary
from esper.urza.database import open_database
from esper.urza.encrypted import Encrypted
from esper.urza.memory import MemoryTier
from esper.urza.modules import LoadedModules
from esper.urza.records import KernelRecords
from esper.urza.sealing import Sealing
from esper.urza.seals import Seals
from esper.urza.sql import SqlTier
from esper.urza.tiers import MISSING, Missing, TieredStore, digest_of

BLUEPRINT = '{"name":"bottleneck"}'


def scripted(seed: int) -> bytes:
    torch.manual_seed(seed)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(8, 4), nn.GELU(), nn.Linear(4, 8))), buffer)
    return buffer.getvalue()


class Loader:
    """``torch.jit.load`` that counts its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __call__(self, metadata: KernelMetadata, program: bytes) -> nn.Module:
        self.calls.append(metadata.kernel_id)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            module: nn.Module = torch.jit.load(io.BytesIO(program))
        return module


def hits_and_misses(library: KernelLibrary) -> dict[str, tuple[int, int]]:
    return {name: (tier.hits, tier.misses) for name, tier in library.tier_counts().items()}


@pytest.fixture(scope="module")
def programs() -> dict[str, bytes]:
    torch.set_num_threads(1)
    return {"a": scripted(1), "b": scripted(2)}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "kernels.db"


@pytest.fixture
def loader() -> Loader:
    return Loader()


@pytest.fixture
def library(path: Path, loader: Loader, programs: dict[str, bytes]) -> Iterator[KernelLibrary]:
    with open_sealed(f"sqlite:///{path}", loader) as filled:
        for name, program in programs.items():
            filled.put(
                artefact(name, program=program, weights=b"weights " + name.encode(), blueprint=BLUEPRINT)
            )
    with open_sealed(f"sqlite:///{path}", loader) as opened:  # whose memory is empty
        yield opened


def execute(path: Path, statement: str, *values: object) -> None:
    """What a disk, or somebody else, does to the file behind the library's back."""
    with closing(sqlite3.connect(path)) as connection, connection:
        assert connection.execute(statement, values).rowcount == 1


def at_rest(path: Path, digest: str) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        data: bytes = connection.execute("SELECT data FROM blobs WHERE digest = ?", (digest,)).fetchone()[0]
    return data


def damage(path: Path, digest: str, data: bytes) -> None:
    execute(path, "UPDATE blobs SET data = ? WHERE digest = ?", data, digest)


def flipped(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def test_a_fetched_kernel_computes_what_was_put(
    library: KernelLibrary, loader: Loader, programs: dict[str, bytes]
) -> None:
    kernel = library.fetch("kernel_a")
    x = torch.randn(5, 8)
    assert torch.equal(kernel.module(x), loader(kernel.metadata, programs["a"])(x))
    assert kernel.metadata == library.get("kernel_a")
    assert kernel.blueprint == BLUEPRINT


def test_each_fetch_is_a_module_of_its_own(library: KernelLibrary) -> None:
    first, second = library.fetch("kernel_a").module, library.fetch("kernel_a").module
    x = torch.randn(2, 8)
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert not torch.equal(first(x), second(x))
    assert torch.equal(second(x), library.fetch("kernel_a").module(x))


def test_the_second_fetch_loads_nothing(library: KernelLibrary, loader: Loader) -> None:
    library.fetch("kernel_a")
    assert hits_and_misses(library) == {"loaded": (0, 1), "memory": (0, 2), "sql": (2, 0)}
    library.fetch("kernel_a")
    assert hits_and_misses(library) == {"loaded": (1, 1), "memory": (0, 2), "sql": (2, 0)}
    library.fetch("kernel_b")  # shares the blueprint
    assert hits_and_misses(library) == {"loaded": (1, 2), "memory": (1, 3), "sql": (3, 0)}
    assert loader.calls == ["kernel_a", "kernel_b"]


def test_what_another_library_changes_on_record_is_seen_at_once(
    library: KernelLibrary, loader: Loader, path: Path
) -> None:
    assert library.fetch("kernel_a").metadata.tags == ("linear",)
    with open_sealed(f"sqlite:///{path}", loader) as other:
        other.set_tags("kernel_a", ["better"])
        assert library.fetch("kernel_a").metadata.tags == ("better",)
        other.remove("kernel_a")
    with pytest.raises(KernelNotFound):
        library.fetch("kernel_a")


DAMAGES = {
    "first bit": lambda good, other: flipped(good, 0),
    "a bit in the middle": lambda good, other: flipped(good, len(good) // 2),
    "last bit": lambda good, other: flipped(good, len(good) - 1),
    "truncated": lambda good, other: good[:-1],
    "empty": lambda good, other: b"",
    "longer": lambda good, other: good + b"\0",
    "another kernel's": lambda good, other: other,
}


@pytest.mark.parametrize("change", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_program_never_reaches_the_loader(
    library: KernelLibrary, loader: Loader, path: Path, change: Callable[[bytes, bytes], bytes]
) -> None:
    digest, other = (library.get(f"kernel_{name}").program_digest for name in "ab")
    damage(path, digest, change(at_rest(path, digest), at_rest(path, other)))
    for call in (library.fetch, library.fetch, library.verify):
        with pytest.raises(CorruptKernel, match="'kernel_a' is corrupt: its program is not what was sealed"):
            call("kernel_a")
    assert loader.calls == []
    library.fetch("kernel_b")
    assert loader.calls == ["kernel_b"]


def test_two_programs_that_changed_places_are_both_refused(
    library: KernelLibrary, loader: Loader, path: Path
) -> None:
    a, b = (library.get(f"kernel_{name}").program_digest for name in "ab")
    kept = at_rest(path, a)
    damage(path, a, at_rest(path, b))
    damage(path, b, kept)
    for kernel_id in ("kernel_a", "kernel_b"):
        with pytest.raises(CorruptKernel, match=kernel_id):
            library.fetch(kernel_id)
    assert loader.calls == []


def test_a_damaged_blueprint_is_refused_too(library: KernelLibrary, loader: Loader, path: Path) -> None:
    damage(path, digest_of(BLUEPRINT.encode()), b'{"name":"BOTTLENECK"}')
    for call in (library.fetch, library.blueprint, library.verify):
        with pytest.raises(CorruptKernel, match="its blueprint is not what was sealed"):
            call("kernel_a")
    assert loader.calls == []


def test_a_part_that_is_gone_is_corruption_and_not_an_unknown_kernel(
    library: KernelLibrary, loader: Loader, path: Path
) -> None:
    execute(path, "DELETE FROM blobs WHERE digest = ?", library.get("kernel_a").program_digest)
    for call in (library.fetch, library.verify):
        with pytest.raises(CorruptKernel, match="its program is missing"):
            call("kernel_a")
    assert loader.calls == []


def test_a_kernel_put_elsewhere_after_its_program_was_asked_for_in_vain_is_fetched(
    path: Path, loader: Loader, programs: dict[str, bytes]
) -> None:
    kernel = artefact("a", program=programs["a"])
    digest = kernel.metadata.program_digest
    with open_sealed(f"sqlite:///{path}", loader) as library:
        library._store._absent_seconds = 60.0
        assert library._store.get(digest) is MISSING  # as a prefetch would ask for what is being put
        with open_sealed(f"sqlite:///{path}", loader) as other:
            other.put(kernel)
        library.fetch("kernel_a")
        assert library._store.get(digest) == programs["a"]  # and the store has learned of it


class Told:
    """Word of changes that the test gives."""

    listening = True

    def listen(self, on_change: Callable[[str | None], None]) -> None:
        self.tell = on_change

    def publish(self, kernel_id: str) -> None:
        raise AssertionError(f"this library told of {kernel_id}")

    def close(self) -> None:
        pass


def test_word_that_anything_may_have_changed_makes_absent_bytes_be_asked_for_again(
    path: Path, loader: Loader, programs: dict[str, bytes]
) -> None:
    kernel = artefact("a", program=programs["a"])
    digest = kernel.metadata.program_digest
    told = Told()
    with open_sealed(f"sqlite:///{path}", loader, changes=told) as library:
        library._store._absent_seconds = 60.0
        assert library._store.get(digest) is MISSING
        with open_sealed(f"sqlite:///{path}", loader) as other:
            other.put(kernel)
        told.tell("kernel_b")
        assert library._store.get(digest) is MISSING
        told.tell(None)
        assert library._store.get(digest) == programs["a"]


def test_verify_reads_the_record_past_a_good_copy_in_memory(library: KernelLibrary, path: Path) -> None:
    library.fetch("kernel_a")
    library.verify("kernel_a")
    damage(path, library.get("kernel_a").program_digest, b"damaged")
    library.fetch("kernel_a")  # memory still has it, checked
    with pytest.raises(CorruptKernel):
        library.verify("kernel_a")


def test_verify_reads_the_weights_which_a_fetch_does_not_need(library: KernelLibrary, path: Path) -> None:
    damage(path, library.get("kernel_a").weights_digest, b"damaged")
    library.fetch("kernel_a")
    with pytest.raises(CorruptKernel, match="its weights are not what was sealed"):
        library.verify("kernel_a")


def test_what_the_error_advises_mends_the_kernel(
    library: KernelLibrary, path: Path, programs: dict[str, bytes]
) -> None:
    # The blueprint is shared, so its damaged copy stays when kernel_a goes; putting it again replaces it.
    damage(path, digest_of(BLUEPRINT.encode()), b"damaged")
    with pytest.raises(CorruptKernel) as caught:
        library.fetch("kernel_a")
    assert "esper kernels rm kernel_a" in str(caught.value)
    library.remove("kernel_a")
    library.put(artefact("a", program=programs["a"], weights=b"weights a", blueprint=BLUEPRINT))
    library.verify("kernel_a")
    library.verify("kernel_b")


def test_putting_the_same_kernel_again_mends_its_damaged_parts(
    library: KernelLibrary, path: Path, programs: dict[str, bytes]
) -> None:
    before = library.get("kernel_a")
    damage(path, before.program_digest, b"damaged")
    library.put(artefact("a", program=programs["a"], weights=b"weights a", blueprint=BLUEPRINT))
    library.verify("kernel_a")
    assert library.get("kernel_a") == before


def test_a_kernel_removed_by_another_process_is_not_found_though_memory_has_its_bytes(
    library: KernelLibrary, loader: Loader, path: Path
) -> None:
    library.fetch("kernel_a")
    with open_sealed(f"sqlite:///{path}", loader) as other:
        other.remove("kernel_a")
    with pytest.raises(KernelNotFound, match="kernel_a"):
        library.fetch("kernel_a")


class RemovingTier(MemoryTier):
    """Memory that, when it is asked, has another process remove the kernel just then."""

    def __init__(self, path: Path) -> None:
        super().__init__(0)
        self.path = path

    def get(self, key: str) -> bytes | Missing:
        with open_sealed(f"sqlite:///{self.path}", Loader()) as other:
            if other.contains("kernel_a"):
                other.remove("kernel_a")
        return super().get(key)


def test_a_kernel_removed_in_the_middle_of_a_fetch_is_not_found_rather_than_corrupt(
    library: KernelLibrary, loader: Loader, path: Path
) -> None:
    database = open_database(f"sqlite:///{path}")
    store = TieredStore([RemovingTier(path), Encrypted(SqlTier(database), ENVELOPE, record=True)])
    seals = Seals(ENVELOPE)
    records, sealing = KernelRecords(database, seals), Sealing(database, seals)
    fetching = KernelLibrary(records, store, loader, sealing, modules=LoadedModules(0))
    with fetching, pytest.raises(KernelNotFound, match="kernel_a"):
        fetching.fetch("kernel_a")
    assert loader.calls == []


def test_good_bytes_that_pytorch_cannot_load_are_an_error_of_the_library(
    library: KernelLibrary,
) -> None:
    library.put(artefact("c", program=b"of a format yet to come"))
    with pytest.raises(LibraryError, match="'kernel_c' cannot be loaded") as caught:
        library.fetch("kernel_c")
    assert not isinstance(caught.value, CorruptKernel)
    assert "\n" not in str(caught.value)


def test_threads_fetch_from_one_library(library: KernelLibrary, loader: Loader) -> None:
    start = threading.Barrier(4)
    x = torch.randn(3, 8)
    expected = {name: library.fetch(name).module(x) for name in ("kernel_a", "kernel_b")}

    def fetch(number: int) -> bool:
        start.wait()
        name = ("kernel_a", "kernel_b")[number % 2]
        return all(torch.equal(library.fetch(name).module(x), expected[name]) for _ in range(5))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fetch, range(4)))
    assert len(loader.calls) == 2
