"""The images that ship with Esper, so that every shipped experiment runs without a network."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

import numpy as np

from esper.data.splits import DataSplits, RawImages, assemble, stratified
from esper.errors import DataError

FILES = Path(__file__).parent / "files"

_DIGITS_TEST_SIZE = 360
_DIGITS_TEST_SEED = 1998
_REINSTALL = "the file is part of Esper: install esper-morph again"


def load_digits(*, held_out: int = 240, split_seed: int = 0) -> DataSplits:
    """1,797 handwritten digits of 8x8 pixels, one channel, ten classes (Alpaydin and Kaynak 1998, UCI).

    The source has no test set of its own, so 360 images are set aside as one. That cut never changes, not
    even with ``split_seed``: what was tuned on one split was never tested on with another.
    """
    path = FILES / "digits.csv.gz"
    try:
        with gzip.open(path, "rt") as stream:
            table = np.array([[int(cell) for cell in row.split(",")] for row in stream], dtype=np.int64)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise unreadable(path, error) from error
    if table.shape != (1797, 65) or table.min() < 0 or table[:, :64].max() > 16 or table[:, 64].max() > 9:
        raise DataError(f"{path}: expected 1797 rows of 64 pixels 0-16 and a digit", hint=_REINSTALL)
    everything = RawImages(table[:, :64].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, 64])
    test, pool = stratified(everything.labels, _DIGITS_TEST_SIZE, _DIGITS_TEST_SEED)
    return assemble(
        "digits", 10, everything.take(pool), everything.take(test), held_out=held_out, split_seed=split_seed
    )


def load_fashion(*, held_out: int = 1500, split_seed: int = 0) -> DataSplits:
    """12,000 images of Fashion-MNIST, 28x28 pixels, one channel, ten classes (Xiao et al. 2017).

    arXiv 1708.07747. 1,000 images a class from the official training set, of which ``held_out`` are cut off,
    and 200 a class from the official test set. ``scripts/make_fashion_subset.py`` made the file.
    """
    path = FILES / "fashion-12k.npz"
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            pool, test = (
                RawImages(stored[f"{part}_images"][:, None], stored[f"{part}_labels"].astype(np.int64))
                for part in ("train", "test")
            )
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise unreadable(path, error) from error
    for raw, count in ((pool, 10_000), (test, 2_000)):
        if raw.images.shape != (count, 1, 28, 28) or raw.images.dtype != np.uint8:
            found = f"{raw.images.dtype} {raw.images.shape}"
            raise DataError(
                f"{path}: expected uint8 images ({count}, 1, 28, 28), found {found}", hint=_REINSTALL
            )
        if not np.array_equal(np.bincount(raw.labels, minlength=10), np.full(10, count // 10)):
            raise DataError(f"{path}: expected {count // 10} labels of each of 10 classes", hint=_REINSTALL)
    return assemble("fashion-12k", 10, pool, test, held_out=held_out, split_seed=split_seed)


def unreadable(path: Path, error: Exception | str) -> DataError:
    """What to raise for a shipped file that is damaged or gone."""
    return DataError(f"{path}: cannot be read: {error}", hint=_REINSTALL)
