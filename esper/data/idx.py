"""MNIST, Fashion-MNIST and their kin, from IDX files in a folder.

The IDX format (LeCun et al. 1998, http://yann.lecun.com/exdb/mnist): two zero bytes, a type code, the number
of axes, the axes as big-endian 32-bit counts, then the values.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from esper.data.splits import DataSplits, RawImages, assemble
from esper.errors import DataError

_UNSIGNED_BYTE = 0x08
_LARGEST = 2**30
"""No known data set of this format comes near; a header that claims more is damaged, and is not obeyed."""

_AGAIN = "copy or download that file again"


def load_idx(
    root: str | Path,
    name: str = "idx",
    *,
    classes: int = 10,
    held_out: int = 5000,
    split_seed: int = 0,
) -> DataSplits:
    """The four IDX files of MNIST or Fashion-MNIST in the folder ``root``, gzipped or not.

    ``train`` and ``held_out`` are cut from the 60,000 training images, ``test`` is the official test set.
    Raises DataError for what is missing, damaged or of another format.
    """
    folder = existing_folder(root)
    pool = _read_part(folder, "train", classes)
    test = _read_part(folder, "t10k", classes)
    if pool.images.shape[1:] != test.images.shape[1:]:
        sizes = ["x".join(map(str, raw.images.shape[2:])) for raw in (pool, test)]
        raise DataError(f"{folder}: training images are {sizes[0]}, test images {sizes[1]}", hint=_AGAIN)
    return assemble(name, classes, pool, test, held_out=held_out, split_seed=split_seed)


def existing_folder(root: str | Path) -> Path:
    """``root`` with ``~`` expanded; DataError where it is not a folder that can be read."""
    folder = Path(root)
    try:
        folder = folder.expanduser()
        found = "a folder" if folder.is_dir() else "a file" if folder.exists() else "nothing"
    except (OSError, RuntimeError) as error:  # RuntimeError: no such user's home
        found = str(error)
    if found != "a folder":
        raise DataError(
            f"expected a folder at data.root={folder}, found {found}",
            hint="download the data set and set data.root=FOLDER",
        )
    if not os.access(folder, os.R_OK | os.X_OK):
        raise DataError(f"data.root={folder} may not be read", hint="check the folder's permissions")
    return folder


def read_idx(path: Path, axes: int) -> npt.NDArray[np.uint8]:
    """The values of the IDX file ``path``, gzipped where it ends in ``.gz``, as uint8 with ``axes`` axes."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            header = stream.read(4 + 4 * axes)
            expected = struct.pack(">HBB", 0, _UNSIGNED_BYTE, axes)
            if header[:4] != expected:
                found = header[:4].hex() or "nothing"
                raise DataError(
                    f"{path}: expected an IDX file starting with {expected.hex()}, found {found}", hint=_AGAIN
                )
            if len(header) < 4 + 4 * axes:
                raise DataError(f"{path}: the file ends inside its header", hint=_AGAIN)
            shape = struct.unpack(f">{axes}I", header[4:])
            size = math.prod(shape)
            if not 0 < size <= _LARGEST:
                raise DataError(f"{path}: the header claims {size:,} values {shape}", hint=_AGAIN)
            values = stream.read(size + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip stream is damaged or cut off: {error}", hint=_AGAIN) from error
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}", hint="check the file's permissions") from error
    if len(values) != size:
        found = f"{len(values):,}" if len(values) < size else "more"
        raise DataError(f"{path}: expected {size:,} values after the header, found {found}", hint=_AGAIN)
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def checked_labels(labels: npt.NDArray[np.integer], classes: int, path: Path) -> npt.NDArray[np.int64]:
    """``labels`` as int64; DataError where one is outside 0 to ``classes`` - 1."""
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        where = int(outside[0])
        raise DataError(
            f"{path}: expected labels 0 to {classes - 1}, found {int(labels[where])} at sample {where}",
            hint=f"set data.classes if the data set has other than {classes} classes",
        )
    return labels.astype(np.int64)


def _read_part(folder: Path, part: str, classes: int) -> RawImages:
    images_path = _find(folder, f"{part}-images", "idx3")
    labels_path = _find(folder, f"{part}-labels", "idx1")
    images = read_idx(images_path, 3)
    labels = read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: expected {len(images):,} labels, as many as {images_path.name} has images, "
            f"found {len(labels):,}",
            hint=_AGAIN,
        )
    return RawImages(images[:, None], checked_labels(labels, classes, labels_path))


def _find(folder: Path, stem: str, kind: str) -> Path:
    names = [f"{stem}{mark}{kind}-ubyte{suffix}" for mark in "-." for suffix in (".gz", "")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"{folder}: expected a file {names[0]} or {names[1]}, found none",
        hint="data.root must be the folder that holds the four IDX files of the data set",
    )
