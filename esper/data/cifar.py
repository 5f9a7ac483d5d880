"""CIFAR-10 in its own formats, from a folder (Krizhevsky 2009, "Learning Multiple Layers of Features")."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from esper.data.cifar_pickle import read_pickled_batch
from esper.data.idx import checked_labels, existing_folder
from esper.data.splits import DataSplits, RawImages, assemble
from esper.errors import DataError

_RECORD = 1 + 3 * 32 * 32
_AGAIN = "unpack the archive again: https://www.cs.toronto.edu/~kriz/cifar.html"
_TRAIN = [f"data_batch_{number}" for number in range(1, 6)]


def load_cifar10(
    root: str | Path, *, held_out: int = 5000, split_seed: int = 0, batch_records: int = 10_000
) -> DataSplits:
    """60,000 colour images of 32x32 pixels, ten classes, from the binary or the Python version.

    ``root`` is the folder with ``data_batch_1.bin`` (binary version, preferred) or ``data_batch_1`` (Python
    version), or the one above it. ``held_out`` is cut from the 50,000 training images, ``test`` is the
    official test set. The pickles of the Python version are read without running anything that is in them.

    ``batch_records`` is how many images each of the six files must hold: 10,000 in the original, to be
    changed only for a copy that was cut down on purpose. Raises DataError for what is missing, damaged or of
    another format.
    """
    folder, suffix = _find(existing_folder(root))
    parts = [_read(folder / f"{stem}{suffix}", batch_records) for stem in _TRAIN]
    pool = RawImages(
        np.concatenate([part.images for part in parts]), np.concatenate([part.labels for part in parts])
    )
    test = _read(folder / f"test_batch{suffix}", batch_records)
    return assemble("cifar10", 10, pool, test, held_out=held_out, split_seed=split_seed)


def _find(root: Path) -> tuple[Path, str]:
    for suffix, below in ((".bin", "cifar-10-batches-bin"), ("", "cifar-10-batches-py")):
        for folder in (root, root / below):
            if (folder / f"{_TRAIN[0]}{suffix}").is_file():
                return folder, suffix
    raise DataError(
        f"{root}: expected data_batch_1.bin or data_batch_1 there or in cifar-10-batches-*, found neither",
        hint="unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz and set data.root to its folder",
    )


def _read(path: Path, records: int) -> RawImages:
    if not path.is_file():
        raise DataError(f"{path}: expected this file beside {_TRAIN[0]}, found none", hint=_AGAIN)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", hint="check the file's permissions") from error
    if path.suffix == ".bin":
        pixels, labels = _parse_binary(raw, records, path)
    else:
        pixels, labels = read_pickled_batch(raw, path)
        if pixels.shape != (records, _RECORD - 1) or len(labels) != records:
            raise DataError(
                f"{path}: expected {records:,} images of {_RECORD - 1} values and as many labels, "
                f"found images {pixels.shape} and {len(labels):,} labels",
                hint=_AGAIN,
            )
    return RawImages(pixels.reshape(-1, 3, 32, 32), checked_labels(labels, 10, path))


def _parse_binary(raw: bytes, records: int, path: Path) -> tuple[np.ndarray, np.ndarray]:
    if len(raw) != records * _RECORD:
        raise DataError(
            f"{path}: expected {records * _RECORD:,} bytes ({records:,} records of {_RECORD}), "
            f"found {len(raw):,}",
            hint=_AGAIN,
        )
    table = np.frombuffer(raw, dtype=np.uint8).reshape(records, _RECORD)
    return table[:, 1:], table[:, 0]
