"""What is at rest is sealed and signed: nothing that was exchanged, renamed or replayed reaches a loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text
from urza_support import ENVELOPE, KEY, artefact, never_load, open_sealed, report

from esper.errors import ConfigError, CorruptKernel, EsperError, LibraryError, UnknownKey
from esper.security import Envelope, Key, KeyRing
from esper.urza import KernelLibrary, open_library
from esper.urza.database import open_database
from esper.urza.tiers import digest_of

OTHER = Key(bytes(range(1, 33)))


@pytest.fixture
def url(stored_url: str) -> str:
    return stored_url


@pytest.fixture
def library(url: str) -> Iterator[KernelLibrary]:
    with open_sealed(url, never_load) as filled:
        filled.put(artefact("old", program=b"the older program", weights=b"older", blueprint="{}"))
        filled.put(artefact("new", program=b"the newer program", weights=b"newer", blueprint='{"n":1}'))
    with open_sealed(url, never_load) as opened:  # whose memory is empty
        yield opened


def execute(url: str, statement: str, **values: Any) -> None:
    """What somebody who can write to the database does without the key."""
    with closing(open_database(url)) as database, database.writing() as connection:
        assert connection.execute(text(statement), values).rowcount > 0


def everything(url: str) -> bytes:
    with closing(open_database(url)) as database, database.reading() as connection:
        return b"".join(connection.execute(text("SELECT data FROM blobs")).scalars())


def refused(library: KernelLibrary, kernel_id: str, error: type[EsperError] = CorruptKernel) -> str:
    """What fetching says, the same as any other use; ``never_load`` would have failed."""
    messages = set()
    for call in (library.fetch, library.verify, library.artefact):
        with pytest.raises(error) as caught:
            call(kernel_id)
        messages.add(caught.value.message)
    (message,) = messages
    return message


def test_no_byte_of_a_kernel_is_at_rest_in_the_clear(library: KernelLibrary, url: str) -> None:
    at_rest = everything(url)
    for word in (b"older", b"newer", b"program"):
        assert word not in at_rest


@pytest.mark.parametrize(
    "change",
    [
        "name = 'another'",
        "performance_score = 0.9",
        "out_features = 9",
        "device = 'cuda'",
        "latency_ms = 1.5",
        "blueprint_id = 'other'",
        "author = 'somebody'",
        "run_id = 'run'",
        "parent_kernel = 'kernel_x'",
        "created_at = '2020-01-01'",
        "program_bytes = 1",
        "signature = ''",
        "signature = 'nonsense'",
    ],
)
def test_a_record_that_was_edited_is_refused(library: KernelLibrary, url: str, change: str) -> None:
    execute(url, f"UPDATE kernels SET {change} WHERE kernel_id = 'kernel_new'")
    assert "'kernel_new' is corrupt: its record was" in refused(library, "kernel_new")
    library.verify("kernel_old")


@pytest.mark.parametrize("part", ["program", "weights", "blueprint"])
def test_an_older_kernels_bytes_under_a_newer_name_are_refused(
    library: KernelLibrary, url: str, part: str
) -> None:
    old = f"(SELECT {part}_digest FROM kernels WHERE kernel_id = 'kernel_old')"
    execute(url, f"UPDATE kernels SET {part}_digest = {old} WHERE kernel_id = 'kernel_new'")
    assert "its record was changed" in refused(library, "kernel_new")


def test_an_older_kernel_renamed_to_a_newer_one_is_refused(library: KernelLibrary, url: str) -> None:
    library.remove("kernel_new")
    library.set_tags("kernel_old", ())  # which refer to the kernel by its name
    execute(url, "UPDATE kernels SET kernel_id = 'kernel_new' WHERE kernel_id = 'kernel_old'")
    assert "its record was changed" in refused(library, "kernel_new")


def test_a_signature_of_another_kernel_is_refused(library: KernelLibrary, url: str) -> None:
    old = "(SELECT signature FROM kernels WHERE kernel_id = 'kernel_old')"
    execute(url, f"UPDATE kernels SET signature = {old} WHERE kernel_id = 'kernel_new'")
    assert "its record was changed" in refused(library, "kernel_new")


def test_sealed_bytes_of_one_kernel_in_the_place_of_another_are_refused(
    library: KernelLibrary, url: str
) -> None:
    old, new = (library.get(f"kernel_{name}").program_digest for name in ("old", "new"))
    there = "(SELECT data FROM blobs WHERE digest = :old)"
    execute(url, f"UPDATE blobs SET data = {there} WHERE digest = :new", old=old, new=new)
    assert "its program is not what was sealed" in refused(library, "kernel_new")


@pytest.mark.parametrize("key_id", [KEY.id, ""])
def test_plain_bytes_are_refused_even_if_they_are_the_right_ones(
    library: KernelLibrary, url: str, key_id: str
) -> None:
    digest = digest_of(b"the newer program")
    change = "UPDATE blobs SET data = :data, key_id = :key_id WHERE digest = :digest"
    execute(url, change, data=b"the newer program", key_id=key_id, digest=digest)
    assert "its program is not what was sealed" in refused(library, "kernel_new")


def test_what_may_change_is_not_signed(library: KernelLibrary, url: str) -> None:
    library.set_tags("kernel_new", ("a", "b"))
    library.set_status("kernel_new", "retired")
    library.record_trial(report(kernel_id="kernel_new"), "run")
    library.verify("kernel_new")
    assert library.get("kernel_new").tags == ("a", "b")


def test_a_kernel_that_was_added_without_the_key_is_refused_at_the_next_opening(
    library: KernelLibrary, url: str
) -> None:
    execute(url, "UPDATE kernels SET signature = '' WHERE kernel_id = 'kernel_new'")
    with pytest.raises(LibraryError, match="not sealed"):
        open_sealed(url, never_load)


def test_another_key_opens_nothing(library: KernelLibrary, url: str) -> None:
    stranger = Envelope(KeyRing((OTHER,), "another place"))
    with open_library(url, never_load, envelope=stranger) as opened:
        message = refused(opened, "kernel_new", UnknownKey)
    assert KEY.id in message
    assert "another place" in message


def test_a_stored_library_without_an_envelope_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="must be sealed"):
        open_library(url, never_load)


def test_putting_a_kernel_again_leaves_its_sealed_bytes_alone(library: KernelLibrary, url: str) -> None:
    before = everything(url)
    library.put(artefact("new", program=b"the newer program", weights=b"newer", blueprint='{"n":1}'))
    assert everything(url) == before


def test_resealing_moves_everything_to_the_key_that_seals_now(library: KernelLibrary, url: str) -> None:
    assert library.sealed_by() == {KEY.id: 8}
    both = Envelope(KeyRing((OTHER, KEY), "the tests"))
    seen: list[tuple[int, int]] = []
    with open_library(url, never_load, envelope=both) as rotating:
        assert rotating.reseal(lambda done, total: seen.append((done, total))) == 8
        assert seen == [(6, 8), (8, 8)]
        assert rotating.sealed_by() == {OTHER.id: 8}
        assert rotating.reseal() == 0
    with open_library(url, never_load, envelope=Envelope(KeyRing((OTHER,), "the tests"))) as opened:
        opened.verify("kernel_old")
        opened.verify("kernel_new")
    assert OTHER.id in refused(library, "kernel_new", UnknownKey)


def test_resealing_can_be_stopped_at_any_batch_and_goes_on(library: KernelLibrary, url: str) -> None:
    for number in range(60):
        library.put(artefact(str(number)))
    both = Envelope(KeyRing((OTHER, KEY), "the tests"))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with open_library(url, never_load, envelope=both) as rotating:
        total = sum(rotating.sealed_by().values())
        batches = 0
        while set(rotating.sealed_by()) != {OTHER.id}:
            with pytest.raises(KeyboardInterrupt):
                rotating.reseal(stop)
            batches += 1
            for name in ("old", "new", "7"):
                rotating.verify(f"kernel_{name}")
        assert batches == 3
        assert rotating.sealed_by() == {OTHER.id: total}


def test_resealing_leaves_what_is_damaged_under_its_key(library: KernelLibrary, url: str) -> None:
    execute(url, "UPDATE blobs SET data = 'damaged' WHERE digest = :digest", digest=digest_of(b"newer"))
    execute(url, "UPDATE kernels SET name = 'edited' WHERE kernel_id = 'kernel_old'")
    both = Envelope(KeyRing((OTHER, KEY), "the tests"))
    with open_library(url, never_load, envelope=both) as rotating:
        assert rotating.reseal() == 6
        assert rotating.sealed_by() == {OTHER.id: 6, KEY.id: 2}
        assert "record was changed" in refused(rotating, "kernel_old")


def test_kernels_go_from_one_library_to_another_with_other_keys(library: KernelLibrary) -> None:
    with open_library("sqlite://", never_load, envelope=ENVELOPE) as other:
        for kernel_id in ("kernel_old", "kernel_new"):
            other.put(library.artefact(kernel_id))
            assert other.artefact(kernel_id) == library.artefact(kernel_id)
