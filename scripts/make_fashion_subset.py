"""Make ``esper/data/files/fashion-12k.npz`` from the original files of Fashion-MNIST.

    python scripts/make_fashion_subset.py FOLDER [OUTPUT]

FOLDER holds the four IDX files: download them from https://github.com/zalandoresearch/fashion-mnist, or
install Debian's package ``dataset-fashion-mnist`` and take ``/usr/share/datasets/fashion-mnist``.

The subset has 1,000 images a class of the training set and 200 a class of the test set, chosen by a fixed
seed and kept in their original order. ``train_index`` and ``test_index`` say where each image came from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from esper.data.idx import read_idx
from esper.errors import EsperError

SEED = 2017
CLASSES = 10
OUTPUT = Path(__file__).parents[1] / "esper" / "data" / "files" / "fashion-12k.npz"


def choose(labels: np.ndarray, per_class: int) -> np.ndarray:
    """Ascending indices of ``per_class`` samples of each class, int32."""
    # RandomState: NumPy promises that its stream never changes (NEP 19).
    shuffled = np.random.RandomState(SEED).permutation(len(labels))
    chosen = []
    for label in range(CLASSES):
        of_class = shuffled[labels[shuffled] == label]
        if len(of_class) < per_class:
            raise SystemExit(f"class {label} has {len(of_class)} images, {per_class} are needed")
        chosen.append(of_class[:per_class])
    return np.sort(np.concatenate(chosen)).astype(np.int32)


def main() -> None:
    """Read the folder, choose, write."""
    parser = argparse.ArgumentParser(description="Make the Fashion-MNIST subset that ships with Esper.")
    parser.add_argument("folder", type=Path, help="folder with the four gzipped IDX files")
    parser.add_argument("output", type=Path, nargs="?", default=OUTPUT)
    parser.add_argument("--train", type=int, default=1000, help="images a class from the training set")
    parser.add_argument("--test", type=int, default=200, help="images a class from the test set")
    options = parser.parse_args()
    arrays = {}
    for part, stem, per_class in (("train", "train", options.train), ("test", "t10k", options.test)):
        images = read_idx(options.folder / f"{stem}-images-idx3-ubyte.gz", 3)
        labels = read_idx(options.folder / f"{stem}-labels-idx1-ubyte.gz", 1)
        index = choose(labels, per_class)
        arrays |= {f"{part}_images": images[index], f"{part}_labels": labels[index], f"{part}_index": index}
    np.savez_compressed(options.output, **arrays)
    print(f"{options.output}: {options.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    try:
        main()
    except EsperError as error:
        raise SystemExit(str(error)) from error
