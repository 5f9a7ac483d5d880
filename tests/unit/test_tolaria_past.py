"""What only grows is written once, beside the checkpoints, and each of those has its own end of it."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from waiting import LONG

from esper.errors import CheckpointError, StorageError, UnknownKey
from esper.messages import EpochRecord, FieldReport, Slot
from esper.security import Envelope, KeyRing, new_key
from esper.tolaria.append_only import AppendOnly, restored
from esper.tolaria.checkpoints import BackgroundSaver, Checkpoints, Mark, background
from esper.tolaria.checkpoints.manifest import _message
from esper.tolaria.checkpoints.tree import split, to_json
from esper.tolaria.trial import field_report_from

Epochs = AppendOnly[EpochRecord]


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "run" / "checkpoints", Envelope(KeyRing((new_key(),), "memory")))


def lived(epochs: Epochs, *numbers: int) -> Epochs:
    for number in numbers:
        accuracy = float("nan") if number else 0.5
        epochs = epochs.plus(EpochRecord(number, 1 / (number + 1), number / 3, accuracy))
    return epochs


def numbers(state: dict[str, Any]) -> list[int]:
    return [record.epoch for record in history(state)]


def history(state: dict[str, Any]) -> Epochs:
    return restored(state["history"], lambda record: EpochRecord(**record))


def full(_: int) -> None:
    raise OSError(28, "No space left on device")


# The sequence


def test_it_is_added_to_like_a_tuple() -> None:
    chance = random.Random(0)
    known: list[tuple[AppendOnly[int], tuple[int, ...]]] = [(AppendOnly(), ())]
    for item in range(300):
        sequence, same = chance.choice(known)
        known.append((sequence.plus(item), (*same, item)))
    for sequence, same in known:
        assert sequence == same
        assert (len(sequence), tuple(sequence)) == (len(same), same)
        assert list(reversed(sequence)) == [*reversed(same)]
        for cut in (slice(-3, None), slice(2), slice(None, None, -2), slice(5, 1)):
            assert sequence[cut] == same[cut]
        for place in (0, -1, len(same) - 1, len(same), -len(same) - 1):
            if -len(same) <= place < len(same):
                assert sequence[place] == same[place]
            else:
                with pytest.raises(IndexError):
                    sequence[place]


# The log


def test_each_checkpoint_has_its_past_and_it_is_written_once(checkpoints: Checkpoints) -> None:
    epochs, sizes = Epochs(), []
    log = checkpoints.folder / "past.sealed"
    for number in range(60):
        epochs = lived(epochs, number)
        path = checkpoints.save(Mark(number, number), {"history": epochs})
        sizes.append((log.stat().st_size, sum(file.stat().st_size for file in path.iterdir())))
    added = [after - before for (before, _), (after, _) in pairwise(sizes)]
    assert max(added) < 400  # bytes, of one epoch
    assert sizes[-1][1] <= sizes[1][1] + 20  # digits
    assert numbers(checkpoints.load()) == list(range(60))
    assert numbers(checkpoints.load("58")) == list(range(59))
    again = history(checkpoints.load())
    assert repr(again) == repr(epochs)  # to the last bit, and what is no number
    checkpoints.save(Mark(60, 59), {"history": again})
    assert log.stat().st_size == sizes[-1][0]  # nothing is new


def test_who_goes_back_lives_on_from_there(checkpoints: Checkpoints) -> None:
    epochs = Epochs()
    for number in range(5):
        epochs = lived(epochs, number)
        checkpoints.save(Mark(number, number), {"history": epochs})
    back = history(checkpoints.load("3"))
    before = (checkpoints.folder / "past.sealed").stat().st_size
    checkpoints.save(Mark(9, 9), {"history": lived(back, 70, 80)})
    assert numbers(checkpoints.load("9")) == [0, 1, 2, 3, 70, 80]
    assert numbers(checkpoints.load("4")) == [0, 1, 2, 3, 4]
    assert (checkpoints.folder / "past.sealed").stat().st_size - before < 500
    other = lived(Epochs(), 5, 6)  # of which the log knows nothing
    checkpoints.save(Mark(10, 10), {"history": epochs, "other": other})
    checkpoints.save(Mark(11, 11), {"history": epochs, "other": lived(Epochs(), 7)})  # nor of another one
    assert [record["epoch"] for record in checkpoints.load("11")["other"]] == [7]
    state = checkpoints.load("10")
    assert (numbers(state), [record["epoch"] for record in state["other"]]) == ([0, 1, 2, 3, 4], [5, 6])


def test_what_could_not_be_written_is_in_the_next_one(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    epochs = lived(Epochs(), 0)
    checkpoints.save(Mark(0, 0), {"history": epochs})
    epochs = lived(epochs, 1)
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(StorageError):
            checkpoints.save(Mark(1, 1), {"history": epochs})
    checkpoints.save(Mark(2, 2), {"history": lived(epochs, 2)})
    assert numbers(checkpoints.load()) == [0, 1, 2]


def test_every_record_comes_back_as_it_was(checkpoints: Checkpoints) -> None:
    report = FieldReport(
        *("hidden.0", "linear", 1, Slot("features", 4, 8), "series", "k", "b", 3, 5, "kept", "why \u00e9"),
        *(0.1, 0.2, 0.3, 0.0, 1.5, 1.25, 0.5, 0.75, 40),
        tags=("low rank", "fast"),
    )
    checkpoints.save(Mark(1, 1), {"reports": AppendOnly([report])})
    assert [field_report_from(each) for each in checkpoints.load()["reports"]] == [report]


def test_what_is_damaged_in_one_file_is_read_from_the_other_and_told(checkpoints: Checkpoints) -> None:
    epochs, chance = Epochs(), random.Random(0)
    for number in range(6):
        epochs = lived(epochs, number)
        checkpoints.save(Mark(number, number), {"history": epochs})
    files = [checkpoints.folder / name for name in ("past.sealed", "past-copy.sealed")]
    whole = files[0].read_bytes()
    assert files[1].read_bytes() == whole
    for file, other in (files, reversed(files)):
        for damaged in (*(flipped(whole, chance) for _ in range(20)), whole[:-1], b"", None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            state, told = checkpoints.load_newest_good()
            assert numbers(state) == list(range(6))
            wanted = [f"{file} is damaged"] if file == files[0] else []  # the copy is read only where needed
            assert [each.message.partition(";")[0] for each in told] == wanted
            with pytest.raises(CheckpointError, match=f"{file} is damaged"):
                checkpoints.verify(checkpoints.find())
            file.write_bytes(whole)
        assert checkpoints.verify(checkpoints.find())
        file.write_bytes(whole[:-1])
        other.write_bytes(flipped(whole[: len(whole) // 3], chance) + whole[len(whole) // 3 :])
        assert numbers(checkpoints.load()) == list(range(6))  # each has what the other lacks
        for each in files:
            each.write_bytes(whole)
    files[1].unlink()
    checkpoints.save(Mark(7, 7), {"history": lived(epochs, 6)})  # which is made anew from there on
    files[0].write_bytes(whole)
    assert numbers(checkpoints.load()) == list(range(7))


def flipped(data: bytes, chance: random.Random) -> bytes:
    changed, bit = bytearray(data), chance.randrange(8 * len(data))
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_a_log_that_was_changed_is_refused_and_the_network_is_there(checkpoints: Checkpoints) -> None:
    epochs, chance = Epochs(), random.Random(0)
    for number in range(3):
        epochs = lived(epochs, number)
        checkpoints.save(Mark(number, number), {"history": epochs, "w": torch.ones(3)})
    log = checkpoints.folder / "past.sealed"
    log.with_name("past-copy.sealed").write_bytes(b"")
    whole = log.read_bytes()
    first, found = checkpoints.find("1"), checkpoints.find("2")
    for bit in chance.sample(range(8 * len(whole)), 200):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        log.write_bytes(changed)
        with pytest.raises((CheckpointError, UnknownKey)):
            checkpoints.load()
    for left in (0, 10, len(whole) // 2, len(whole) - 1):
        log.write_bytes(whole[:left])
        with pytest.raises(CheckpointError, match=r"past.sealed beside it is not what was sealed"):
            checkpoints.verify(found)
        assert checkpoints.load(past=False)["w"].tolist() == [1, 1, 1]
    assert numbers(checkpoints.load_newest_good()[0]) == [0, 1]  # the end alone is missing
    assert numbers(checkpoints.open(first)) == [0, 1]
    log.unlink()
    with pytest.raises(CheckpointError, match=r"past.sealed beside it is missing"):
        checkpoints.load()


def test_a_checkpoint_of_before_the_log_is_read(checkpoints: Checkpoints) -> None:
    epochs = lived(Epochs(), 0, 1)
    path = checkpoints.save(Mark(1, 2), {"history": [asdict(each) for each in epochs]})
    assert not (checkpoints.folder / "past.sealed").exists()
    document = json.loads((path / "manifest.json").read_text())
    del document["tag"], document["past"]
    document["format"] = 3
    tag = checkpoints._envelope.authenticate(_message(document))
    (path / "manifest.json").write_text(json.dumps({**document, "tag": tag}))
    again = history(checkpoints.load())
    assert repr(again) == repr(epochs)
    checkpoints.save(Mark(2, 3), {"history": lived(again, 2)})
    assert numbers(checkpoints.load()) == [0, 1, 2]


def test_taking_a_state_apart_does_not_look_at_its_past() -> None:
    class Unseen(Epochs):
        def __iter__(self) -> Iterator[EpochRecord]:
            pytest.fail("it was read")

    history = lived(Unseen(), *range(20))
    parts = split({"history": Unseen(history[:])})
    assert len(to_json(parts.document)) < 50


# Copied while the next step is computed


def test_what_is_steady_is_copied_before_it_may_be_changed(checkpoints: Checkpoints) -> None:
    saver, weights = BackgroundSaver(checkpoints), [torch.zeros(200_000) for _ in range(8)]
    for step in range(1, 9):
        for weight in weights:
            weight.fill_(step)
        saver.begin(Mark(step, step), {"w": weights, "step": torch.tensor(step)}, weights)
        saver.hold()
        for weight in weights:
            weight.fill_(-1)
        (saved,) = saver.wait()
        assert 0 < saved.paused <= saved.seconds
        assert all(bool((weight == step).all()) for weight in checkpoints.load()["w"])


def test_what_is_changed_too_early_gets_into_no_checkpoint(
    checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed, fill = threading.Event(), background.fill

    def slow(room: dict[str, Any], tensors: dict[str, Any]) -> None:
        assert not tensors or changed.wait(LONG)
        fill(room, tensors)

    monkeypatch.setattr(background, "fill", slow)
    saver, weight = BackgroundSaver(checkpoints), torch.zeros(200_000)
    saver.begin(Mark(1, 1), {"w": weight}, [weight])
    weight.add_(1)
    changed.set()
    with pytest.raises(RuntimeError, match="w was changed while it was copied"):
        saver.wait()
    assert checkpoints.all() == []
