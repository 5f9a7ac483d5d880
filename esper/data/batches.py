"""Training batches whose order and augmentation depend on (seed, epoch, step) alone.

A run that is resumed, rolled back or compared with its control therefore sees exactly the same numbers,
whatever else drew from PyTorch's global generator in between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from esper.errors import ConfigError


@dataclass(frozen=True)
class Augment:
    """Light augmentation of images: a shift of up to ``pad`` pixels each way, and a left-right flip.

    The pad-and-crop of He et al. 2016 (arXiv 1512.03385, section 4.2). ``fill`` is the value of the pixels
    that come in at the edges, one per channel or one for all.
    """

    pad: int = 2
    flip: bool = True
    fill: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if self.pad < 0:
            raise ConfigError(f"the padding of an augmentation must be at least 0, not {self.pad}")

    def __call__(
        self, x: Tensor, generator: torch.Generator, *, part: slice = slice(None), of: int | None = None
    ) -> Tensor:
        """Images (N, C, H, W) to new ones of the same shape; each image draws from ``generator`` (CPU).

        ``x`` may be the ``part`` of a batch of so many: each image becomes what it would in the whole batch.
        """
        count, _, height, width = x.shape
        drawn = count if of is None else of
        # Both are always drawn, so that turning the flip off does not move the shifts.
        shift = torch.randint(0, 2 * self.pad + 1, (2, drawn, 1), generator=generator)[:, part].to(x.device)
        mirrored = torch.randint(0, 2, (drawn, 1), generator=generator)[part].bool().to(x.device)
        fill = torch.tensor(self.fill, dtype=x.dtype, device=x.device).view(-1, 1, 1)
        # The padding of zeros becomes ``fill`` exactly, and the image stays what it was to the last bit.
        inside = F.pad(x.new_ones(1, 1, height, width), [self.pad] * 4)
        padded = torch.where(inside.bool(), F.pad(x, [self.pad] * 4), fill)
        columns = torch.arange(width, device=x.device).expand(count, -1)
        if self.flip:
            columns = torch.where(mirrored, columns.flip(1), columns)
        rows = torch.arange(height, device=x.device) + shift[0]
        columns = columns + shift[1]
        samples = torch.arange(count, device=x.device)[:, None, None]
        cropped = padded[samples, :, rows[:, :, None], columns[:, None, :]]  # (N, H, W, C)
        return cropped.permute(0, 3, 1, 2).contiguous()


class Batches:
    """Batches of ``x`` (N, ...) and ``y`` (N, ...), each sample once an epoch; the last batch may be smaller.

    Raises ConfigError for a batch size below 1 and for no samples.
    """

    def __init__(
        self, x: Tensor, y: Tensor, batch_size: int, seed: int, *, augment: Augment | None = None
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"the batch size must be at least 1, not {batch_size}")
        if len(x) != len(y) or not len(y):
            raise ConfigError(f"as many samples as labels are needed, and at least one: {len(x)}, {len(y)}")
        self.x, self.y = x, y
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self._cached: tuple[int, Tensor] | None = None
        self._left_out: Tensor | None = None

    def leave_out(self, samples: Sequence[int]) -> None:
        """Give no batch the ``samples`` of these indices; none but these are left out then."""
        self._left_out = torch.tensor(samples, device=self.y.device) if samples else None

    def chosen(self, epoch: int, step: int) -> Tensor:
        """The indices of the samples of a batch, int64 (B,), without those that are left out."""
        start = step * self.batch_size
        samples = self.order(epoch)[start : start + self.batch_size]
        return samples if self._left_out is None else samples[~torch.isin(samples, self._left_out)]

    def __len__(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.y) // self.batch_size)

    def order(self, epoch: int) -> Tensor:
        """The permutation of the samples that ``epoch`` goes through, int64 (N,), on the samples' device."""
        if self._cached is None or self._cached[0] != epoch:
            generator = _generator("order", self.seed, epoch)
            self._cached = (epoch, torch.randperm(len(self.y), generator=generator).to(self.y.device))
        return self._cached[1]

    def batch(self, epoch: int, step: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Batch ``step`` of ``epoch``, both counted from 0: new tensors of B samples, or of a ``part``."""
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of an epoch of {len(self)}")
        chosen = self.chosen(epoch, step)
        x, y = self.x[chosen[part]], self.y[chosen[part]]
        if self.augment is not None:
            generator = _generator("augment", self.seed, epoch, step)
            x = self.augment(x, generator, part=part, of=len(chosen))
        return x, y

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of ``epoch``, from step ``start`` on."""
        return (self.batch(epoch, step) for step in range(start, len(self)))


def _generator(purpose: str, *numbers: int) -> torch.Generator:
    """A CPU generator that depends on its arguments alone, and hardly alike for any two of them."""
    key = "/".join((purpose, *map(str, numbers))).encode()
    seed = int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little")
    return torch.Generator().manual_seed(seed)
