"""Three disjoint splits of a data set, cut and normalised the same way for every source."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from esper.data.batches import Augment, Batches
from esper.errors import ConfigError


class Split(NamedTuple):
    """Samples ``x`` and their labels ``y``.

    Images: float32 (N, C, H, W), and int64 (N,). Text: tokens, int64 (N, T), and the token that follows each,
    int64 (N, T).
    """

    x: Tensor
    y: Tensor


class RawImages(NamedTuple):
    """Images as stored, uint8 (N, C, H, W), and their labels, int64 (N,)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def take(self, indices: npt.NDArray[np.int64]) -> RawImages:
        """The samples at ``indices``, in that order."""
        return RawImages(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class DataSplits:
    """A data set ready for training.

    ``train`` is trained on, ``held_out`` judges seeds and feeds decisions, ``test`` is only reported. Images
    are normalised per channel with the mean and standard deviation of ``train``; ``black`` is what a zero
    pixel became, one value per channel. Text is tokens from 0 to ``vocabulary`` - 1, with as many classes;
    where ``vocabulary`` is None the samples are images.
    """

    name: str
    classes: int
    train: Split
    held_out: Split
    test: Split
    black: tuple[float, ...] = ()
    vocabulary: int | None = None

    @property
    def task(self) -> str:
        """What is being learnt, and from how much: the name and the number of training samples."""
        return f"{self.name}/{len(self.train.y)}"

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """(C, H, W) of one image, or (T,) of one window of text."""
        return tuple(self.train.x.shape[1:])

    def digest(self) -> str:
        """SHA-256 over every sample and label, to the last bit, in hexadecimal."""
        found = hashlib.sha256()
        for tensor in (*self.train, *self.held_out, *self.test):
            found.update(repr((tensor.dtype, tuple(tensor.shape))).encode())
            found.update(tensor.cpu().contiguous().numpy().data)
        return found.hexdigest()

    def batches(self, batch_size: int, seed: int, *, pad: int = 0, flip: bool = False) -> Batches:
        """Training batches in an order fixed by ``seed``, augmented where ``pad`` or ``flip`` ask for it.

        Raises ConfigError where they ask for it and the samples are text.
        """
        if self.vocabulary is not None and (pad or flip):
            raise ConfigError(
                f"images can be shifted and flipped, but {self.name} is text",
                hint="set tolaria.augment.pad=0 and tolaria.augment.flip=false",
            )
        augment = Augment(pad, flip, self.black) if pad or flip else None
        return Batches(self.train.x, self.train.y, batch_size, seed, augment=augment)

    def subset(
        self,
        train: int | None = None,
        held_out: int | None = None,
        test: int | None = None,
        *,
        seed: int = 0,
    ) -> DataSplits:
        """At most so many samples of each split, chosen by ``seed``; images in the class proportions it has.

        ``None`` keeps a split whole. Values stay normalised by the whole training split. Raises ConfigError
        for a size below 1 or above what there is.
        """
        return replace(
            self,
            train=_shrink(self.train, train, seed, f"{self.name}: train"),
            held_out=_shrink(self.held_out, held_out, seed, f"{self.name}: held_out"),
            test=_shrink(self.test, test, seed, f"{self.name}: test"),
        )

    def to(self, device: torch.device | str) -> DataSplits:
        """The same splits on ``device``."""
        train, held_out, test = (
            Split(s.x.to(device), s.y.to(device)) for s in (self.train, self.held_out, self.test)
        )
        return replace(self, train=train, held_out=held_out, test=test)


def stratified(
    labels: npt.NDArray[np.int64], count: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Indices of ``count`` samples in the class proportions of ``labels``, and of the rest, both ascending.

    Each class is off its exact share by less than one sample (largest remainders).
    """
    # RandomState, not Generator: NumPy promises that its stream never changes (NEP 19), and a cut that
    # moved with a library's version would let held-out samples into training.
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    classes, sizes = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(count * sizes, len(labels))
    quotas[np.argsort(-remainders, kind="stable")[: count - quotas.sum()]] += 1
    chosen = np.concatenate(
        [shuffled[labels[shuffled] == label][:quota] for label, quota in zip(classes, quotas, strict=True)]
    )
    return np.sort(chosen), np.setdiff1d(shuffled, chosen)


def assemble(
    name: str, classes: int, pool: RawImages, test: RawImages, *, held_out: int, split_seed: int
) -> DataSplits:
    """Cut ``held_out`` samples off ``pool``, keep ``test`` as it is, normalise all with the rest of ``pool``.

    Raises ConfigError when ``held_out`` leaves nothing to train on, or is below 1.
    """
    available = len(pool.labels)
    if not 1 <= held_out < available:
        raise ConfigError(
            f"data.held_out is {held_out}, but {name} has {available} samples to cut it from",
            hint=f"set data.held_out between 1 and {available - 1}",
        )
    checked_seed(split_seed)
    judged, trained = stratified(pool.labels, held_out, split_seed)
    train = pool.take(trained)
    mean, std = _statistics(train.images)
    normalised = [
        Split(_normalise(raw.images, mean, std), torch.from_numpy(raw.labels))
        for raw in (train, pool.take(judged), test)
    ]
    black = tuple((-mean / std).tolist())
    return DataSplits(name, classes, normalised[0], normalised[1], normalised[2], black)


def checked_seed(split_seed: int) -> None:
    """Raise ConfigError for a ``split_seed`` that NumPy's generator does not take."""
    if not 0 <= split_seed < 2**32:
        raise ConfigError(f"data.split_seed is {split_seed}", hint="set it between 0 and 4294967295")


def _statistics(images: npt.NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per channel, float32 (C,), from exact counts of the 256 pixel values."""
    values = np.arange(256, dtype=np.float64)
    mean, std = [], []
    for channel in range(images.shape[1]):
        counts = np.bincount(images[:, channel].ravel(), minlength=256)
        centre = float(counts @ values / counts.sum())
        mean.append(centre)
        std.append(float(np.sqrt(counts @ (values - centre) ** 2 / counts.sum())))
    # A channel that never varies carries nothing: it becomes zero, not a division by zero.
    return torch.tensor(mean), torch.tensor([deviation or 1.0 for deviation in std])


def _normalise(images: npt.NDArray[np.uint8], mean: Tensor, std: Tensor) -> Tensor:
    x = torch.from_numpy(images.astype(np.float32))
    return x.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


def _shrink(split: Split, count: int | None, seed: int, what: str) -> Split:
    available = len(split.y)
    if count is None or count == available:
        return split
    if not 1 <= count <= available:
        raise ConfigError(f"{what}: {count} samples asked for, {available} there")
    labels = split.y.cpu().numpy() if split.y.ndim == 1 else np.zeros(available, dtype=np.int64)
    chosen = torch.from_numpy(stratified(labels, count, seed)[0]).to(split.y.device)
    return Split(split.x[chosen], split.y[chosen])
