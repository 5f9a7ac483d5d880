import gzip
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from esper.data import Augment, Batches
from esper.data.cifar_pickle import read_pickled_batch
from esper.data.idx import read_idx
from esper.data.splits import stratified
from esper.data.text import ALPHABET, STRETCH, Sizes, cut, decode, encode
from esper.errors import DataError

SEEDS = st.integers(0, 2**32 - 1)


@given(st.lists(st.integers(0, 9), min_size=2, max_size=300), st.data(), SEEDS)
def test_a_stratified_cut_is_a_partition_in_proportion(labels, data, seed):
    labels = np.array(labels, dtype=np.int64)
    count = data.draw(st.integers(1, len(labels) - 1))
    chosen, rest = stratified(labels, count, seed)
    assert len(chosen) == count
    assert np.array_equal(np.sort(np.concatenate([chosen, rest])), np.arange(len(labels)))
    assert all(np.array_equal(part, np.sort(part)) for part in (chosen, rest))
    for label in np.unique(labels):
        share = count * int(np.sum(labels == label))
        assert abs(int(np.sum(labels[chosen] == label)) * len(labels) - share) < len(labels)


@settings(deadline=None)
@given(st.integers(5 * STRETCH, 30 * STRETCH), st.integers(64, STRETCH - 1), st.data(), SEEDS)
def test_windows_of_a_text_are_disjoint_and_keep_inside_their_stretch(total, length, data, seed):
    places = np.arange(total)  # a text in which each token says where it stands
    stretches, each = total // STRETCH, (STRETCH - 1) // length
    sizes = Sizes(each, data.draw(st.integers(1, each)), data.draw(st.integers(1, stretches // 5 * each)))
    splits = cut("places", places, length, sizes, seed)
    parts = (splits.train, splits.held_out, splits.test)
    assert tuple(len(part.y) for part in parts) == sizes
    for part in parts:
        assert torch.equal(part.y, part.x + 1)
        assert torch.equal(part.x, part.x[:, :1] + torch.arange(length))
        assert torch.equal(part.x[:, 0] // STRETCH, part.y[:, -1] // STRETCH)
    used = torch.cat([part.x.flatten() for part in parts])
    assert len(used.unique()) == len(used)
    homes = [set((part.x[:, 0] // STRETCH).tolist()) for part in parts]
    assert sum(map(len, homes)) == len(set.union(*homes))
    assert torch.equal(splits.test.x, cut("places", places, length, sizes, seed ^ 1).test.x)


@given(st.text(ALPHABET), st.characters())
def test_text_is_read_back_or_refused_at_the_first_foreign_character(text, character):
    assert decode(encode(text)) == text
    if character in ALPHABET:
        return
    with pytest.raises(ValueError, match=f"character {len(text)} is|surrogates not allowed"):
        encode(text + character + text)


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 5), SEEDS)
def test_any_step_alone_equals_that_step_of_a_whole_epoch(count, size, epoch, seed):
    x, y = torch.arange(count).float(), torch.arange(count)
    in_order = list(Batches(x, y, size, seed).epoch(epoch))
    assert sorted(torch.cat([labels for _, labels in in_order]).tolist()) == list(range(count))
    fresh = Batches(x, y, size, seed)
    fresh.order(epoch + 1)
    for step in reversed(range(len(fresh))):
        assert fresh.batch(epoch, step)[1].equal(in_order[step][1])


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), SEEDS)
def test_an_augmented_image_is_a_window_of_the_padded_one(count, channels, height, width, pad, seed):
    x = torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))
    fill = tuple(float(-10 - c) for c in range(channels))
    out = Augment(pad, True, fill)(x, torch.Generator().manual_seed(seed))
    assert out.shape == x.shape
    assert out.is_contiguous()
    for image, moved in zip(x, out, strict=True):
        padded = torch.tensor(fill).view(-1, 1, 1).repeat(1, height + 2 * pad, width + 2 * pad)
        padded[:, pad : pad + height, pad : pad + width] = image
        windows = [
            padded[:, top : top + height, left : left + width]
            for top in range(2 * pad + 1)
            for left in range(2 * pad + 1)
        ]
        assert any(moved.equal(w) or moved.equal(w.flip(2)) for w in windows)


def _read(content: bytes, axes: int, suffix: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"values{suffix}"
        path.write_bytes(content)
        return read_idx(path, axes)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=3, max_side=6)), st.booleans())
def test_idx_files_read_back_as_written(values, zipped):
    content = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
    read = _read(gzip.compress(content) if zipped else content, values.ndim, ".gz" if zipped else "")
    assert np.array_equal(read, values)


@settings(max_examples=200)
@given(st.data(), st.booleans())
def test_a_damaged_idx_file_gives_one_kind_of_error_or_values_of_the_stated_shape(data, zipped):
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = struct.pack(">HBB3I", 0, 8, 3, 2, 3, 4) + values.tobytes()
    damaged = _damage(data, gzip.compress(content, mtime=0) if zipped else content)
    try:
        read = _read(damaged, 3, ".gz" if zipped else "")
    except DataError:
        return
    assert read.size == 24
    assert read.ndim == 3
    if zipped:  # its checksum leaves no room for other values
        assert np.array_equal(read, values)


# Two pixels of one image and one label, as Python 2's cPickle wrote them at protocol 2.
BATCH = (
    b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03K\x07aU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\n"
    b"ndarray\nq\x06K\x00\x85q\x07U\x01bq\x08\x87q\tRq\n(K\x01K\x01K\x02\x86q\x0bcnumpy\ndtype\nq\x0cU\x02u1q\r"
    b"K\x00K\x01\x87q\x0eRq\x0f(K\x03U\x01|q\x10NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x2a\x2btbu."
)


def test_the_batch_that_is_damaged_below_is_whole():
    pixels, labels = read_pickled_batch(BATCH, Path("batch"))
    assert pixels.tolist() == [[42, 43]]
    assert labels.tolist() == [7]


@settings(max_examples=400)
@given(st.data())
def test_a_damaged_pickle_gives_one_kind_of_error_or_bytes(data):
    try:
        pixels, labels = read_pickled_batch(_damage(data, BATCH), Path("batch"))
    except DataError:
        return
    assert pixels.dtype == np.uint8
    assert labels.dtype == np.int64


def _damage(data: st.DataObject, content: bytes) -> bytes:
    """``content`` cut short, with bytes replaced, or with bytes put in."""
    at = data.draw(st.integers(0, len(content) - 1))
    new = data.draw(st.binary(max_size=4))
    kept = data.draw(st.sampled_from([0, at + len(new), at]))
    return content[:at] + new + (content[kept:] if kept else b"")
