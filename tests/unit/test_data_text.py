import gzip
import hashlib
import math
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from esper.data import load_digits, load_text, mean_loss, sample_losses, text
from esper.data.shipped import FILES
from esper.data.text import ALPHABET, STRETCH, decode, encode
from esper.errors import ConfigError, DataError
from esper.models import SequenceTransformer

ROOT = Path(__file__).parents[2]
DIGESTS = ["9997d748f502c089", "62c96fa9d01aa4af", "983a7ec29266eb9b"]
WHOLE = gzip.decompress((FILES / "austen.txt.gz").read_bytes()).decode("ascii")


@pytest.fixture(scope="module")
def splits():
    return load_text()


def stretches(split, length=32) -> set[int]:
    """The stretches of the text that the windows of ``split`` lie in."""
    each = (STRETCH - 1) // length
    starts = {
        WHOLE[at : at + length + 1]: at // STRETCH
        for first in range(0, len(WHOLE) - STRETCH + 1, STRETCH)
        for at in range(first, first + each * length, length)
    }
    found = {starts[decode(x) + decode(y[-1:])] for x, y in zip(split.x, split.y, strict=True)}
    assert len(found) == -(-len(split.x) // each)  # side by side, none left out
    return found


def test_types_shapes_and_names(splits):
    for split, count in ((splits.train, 8000), (splits.held_out, 1000), (splits.test, 2000)):
        assert split.x.dtype == split.y.dtype == torch.int64
        assert split.x.shape == split.y.shape == (count, 32)
        assert 0 <= int(split.x.min()) < int(split.x.max()) < splits.vocabulary
    assert splits.sample_shape == (32,)
    assert splits.vocabulary == splits.classes == len(ALPHABET) == 37
    assert splits.task == "austen-32/8000"
    assert load_digits().vocabulary is None


def test_each_label_is_the_token_after(splits):
    for split in (splits.train, splits.held_out, splits.test):
        assert torch.equal(split.x[:, 1:], split.y[:, :-1])
    assert torch.equal(splits.train.x[1:127, 0], splits.train.y[:126, -1])  # from window to window
    assert decode(splits.train.x[:127].flatten()) in WHOLE


@pytest.mark.parametrize(("length", "split_seed"), [(32, 0), (32, 1), (100, 0)])
def test_no_stretch_of_the_text_is_in_two_splits(length, split_seed):
    splits = load_text(length=length, samples=3000, held_out=400, test=500, split_seed=split_seed)
    train, held_out, test = (stretches(s, length) for s in (splits.train, splits.held_out, splits.test))
    assert not train & held_out
    assert not held_out & test
    assert not train & test


def test_all_windows_together_are_the_whole_text():
    count = len(WHOLE) // STRETCH
    test, each = count // 5, (STRETCH - 1) // 32
    splits = load_text(samples=(count - test - 2) * each, held_out=2 * each, test=test * each)
    parts = [stretches(s) for s in (splits.train, splits.held_out, splits.test)]
    assert sorted(set().union(*parts)) == list(range(count))
    assert sum(map(len, parts)) == count


def test_the_windows_are_always_the_same(splits):
    # A change here means that figures reported before and after it are of different data.
    def digest(split):
        return hashlib.sha256(split.x[:100].numpy().astype("<i8").tobytes()).hexdigest()[:16]

    assert [digest(s) for s in (splits.train, splits.held_out, splits.test)] == DIGESTS


def test_split_seed_moves_the_held_out_split_and_never_the_test_split(splits):
    other = load_text(split_seed=1)
    assert torch.equal(splits.test.x, other.test.x)
    assert stretches(splits.held_out) != stretches(other.held_out)
    assert stretches(splits.train) != stretches(other.train)
    every = load_text(split_seed=1, samples=20_000).train
    assert not stretches(splits.test) & stretches(every)


def test_a_larger_split_holds_the_smaller_and_leaves_the_others(splits):
    larger = load_text(samples=12_000, held_out=1500, test=2500)
    for one, two in zip(
        (splits.train, splits.held_out, splits.test),
        (larger.train, larger.held_out, larger.test),
        strict=True,
    ):
        assert torch.equal(one.x, two.x[: len(one.x)])


def test_every_split_has_the_letters_of_the_language(splits):
    counts = [torch.bincount(s.x.flatten(), minlength=37) / s.x.numel() for s in (splits.train, splits.test)]
    assert (counts[0] - counts[1]).abs().sum() < 0.05


def test_text_is_read_back_as_written():
    assert decode(encode(WHOLE[:5000])) == WHOLE[:5000]
    assert encode(ALPHABET).tolist() == list(range(37))
    assert len(encode("")) == 0


@pytest.mark.parametrize("character", ["A", "0", "é", "€", "\x00", "\U0001f600"])
def test_a_character_outside_the_alphabet_is_named(character):
    with pytest.raises(ValueError, match="character 2 is"):
        encode(f"ab{character}cd")


@pytest.mark.parametrize(
    ("options", "message", "hint"),
    [
        ({"samples": 0}, "data.samples is 0, but the text has", "between 1 and"),
        ({"samples": 30_000}, "data.samples is 30000, but the text has 27432 windows of 32", "and 27432"),
        ({"held_out": -1}, "data.held_out is -1", "between 1 and"),
        ({"held_out": 28_448}, "data.held_out is 28448, but the text has 28321", "between 1 and 28321"),
        ({"test": 7000}, "data.test is 7000, but the text has 6985 windows", "between 1 and 6985"),
        ({"held_out": 28_321, "samples": 128}, "data.samples is 128, but the text has 127", "1 and 127"),
        ({"length": 0}, "data.length is 0", "between 1 and 4095"),
        ({"length": 4096}, "data.length is 4096", "between 1 and 4095"),
        ({"split_seed": -1}, "data.split_seed is -1", "between 0 and"),
    ],
)
def test_impossible_sizes_are_refused_with_the_next_step(options, message, hint):
    with pytest.raises(ConfigError, match=message) as caught:
        load_text(**options)
    assert hint in caught.value.hint
    assert "\n" not in str(caught.value.args[0])


@pytest.mark.parametrize("length", [1, 4095])
def test_the_shortest_and_the_longest_window(length):
    splits = load_text(length=length, samples=5, held_out=3, test=2)
    assert splits.train.x.shape == (5, length)
    assert splits.test.y.shape == (2, length)


@pytest.mark.parametrize(
    ("damaged", "found"),
    [
        (None, "No such file"),
        (b"", "found 0"),
        (b"moved elsewhere", "gzip"),
        (gzip.compress(WHOLE.encode())[:200_000], "ended"),
        (gzip.compress(WHOLE[:-1].encode()), "found 1,143,511"),
        (gzip.compress(WHOLE.encode() + b"a"), "found more"),
        (gzip.compress(b"E" + WHOLE[1:].encode()), "character 0 is 'E'"),
        (gzip.compress("é".encode() + WHOLE[2:].encode()), "ascii"),
    ],
)
def test_a_damaged_installation_is_named_with_the_next_step(tmp_path, monkeypatch, damaged, found):
    monkeypatch.setattr(text, "FILES", tmp_path)
    if damaged is not None:
        (tmp_path / "austen.txt.gz").write_bytes(damaged)
    with pytest.raises(DataError, match=r"austen\.txt\.gz") as caught:
        load_text()
    assert found in str(caught.value)
    assert "install esper-morph again" in str(caught.value)


def r_strings(*lines: str) -> bytes:
    """A vector of strings as R stores it in a lazy-load database, written from R Internals."""
    content = b"X\n" + struct.pack(">3I", 3, 0x040201, 0x030500) + struct.pack(">I", 5) + b"UTF-8"
    content += struct.pack(">2I", 16, len(lines))
    for line in lines:
        content += struct.pack(">2I", 0x40009, len(line.encode())) + line.encode()
    return struct.pack(">I", len(content)) + zlib.compress(content)


def run_script(*arguments):
    command = [sys.executable, ROOT / "scripts" / "make_austen_text.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_script_that_makes_the_text(tmp_path):
    other = r_strings("EMMA", "", "Chapter 1", "Never this.")
    first = r_strings(
        "PRIDE AND PREJUDICE", "", "By Jane Austen", "Chapter 1", "", "It is  a _truth_", "(of 1813)--known.",
        "", "", "Chapter 2", "", '"Café!"', "",
    )  # fmt: skip
    second = r_strings("Persuasion", "Chapter 1", "Sir Walter;", "", "Finis")
    (tmp_path / "in.rdb").write_bytes(other + second + first)
    done = run_script(tmp_path / "in.rdb", tmp_path / "out.gz")
    assert done.returncode == 0, done.stderr
    made = gzip.decompress((tmp_path / "out.gz").read_bytes())
    assert made == b'it is a truth of --known.\n"caf!"\nsir walter;\n'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "No such file"),
        (b"text, not data", "cannot be read as R data"),
        (r_strings("Persuasion", "Chapter 1"), "the book 'PRIDE AND PREJUDICE' is not in it"),
    ],
)
def test_the_script_says_what_is_wrong_in_one_line(tmp_path, content, found):
    if content is not None:
        (tmp_path / "in.rdb").write_bytes(content)
    done = run_script(tmp_path / "in.rdb", tmp_path / "out.gz")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert found in done.stderr
    assert not (tmp_path / "out.gz").exists()


def test_a_subset_is_of_whole_windows(splits):
    small = splits.subset(train=50)
    whole = {x.numpy().tobytes() for x in splits.train.x}
    assert small.train.x.shape == small.train.y.shape == (50, 32)
    assert all(x.numpy().tobytes() in whole for x in small.train.x)
    assert torch.equal(small.train.x[:, 1:], small.train.y[:, :-1])
    assert not torch.equal(small.train.x, splits.subset(train=50, seed=1).train.x)
    assert small.vocabulary == 37


@pytest.mark.parametrize("augment", [{"pad": 1}, {"flip": True}])
def test_text_is_not_shifted_or_flipped(splits, augment):
    with pytest.raises(ConfigError, match="austen-32 is text") as caught:
        splits.batches(8, 0, **augment)
    assert "tolaria.augment" in caught.value.hint


def test_a_batch_keeps_windows_and_labels_together(splits):
    x, y = splits.batches(64, 3).batch(1, 2)
    assert x.shape == y.shape == (64, 32)
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_losses_of_positions_are_averaged():
    torch.manual_seed(0)
    logits, y = torch.randn(4, 6, 9), torch.randint(0, 9, (4, 6))
    each = -logits.log_softmax(-1).gather(-1, y[..., None])[..., 0]
    torch.testing.assert_close(sample_losses(logits, y), each.mean(1))
    torch.testing.assert_close(mean_loss(logits, y), each.mean())


def test_losses_of_one_label_a_sample_are_those_of_torch():
    torch.manual_seed(0)
    logits, y = torch.randn(7, 9), torch.randint(0, 9, (7,))
    assert torch.equal(mean_loss(logits, y), F.cross_entropy(logits, y))
    assert torch.equal(sample_losses(logits, y), F.cross_entropy(logits, y, reduction="none"))


def test_a_short_training_learns_more_than_how_often_each_letter_comes(splits):
    torch.manual_seed(0)
    model = SequenceTransformer(37, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for x, y in splits.batches(64, 0).epoch(0):
        optimizer.zero_grad()
        mean_loss(model(x), y).backward()
        optimizer.step()
    with torch.no_grad():
        loss = mean_loss(model(splits.held_out.x), splits.held_out.y).item()
    share = np.bincount(encode(WHOLE)) / len(WHOLE)
    unigram = -sum(p * math.log(p) for p in share)
    assert 2.9 < unigram < 3.0
    assert loss < unigram - 0.4  # and more than a table of pairs would, 2.35, after a few epochs
