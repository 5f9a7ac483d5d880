"""Static networks by their width: how large each is, and which is as large as a grown one."""

from __future__ import annotations

import math
from collections.abc import Iterable

from omegaconf import DictConfig, OmegaConf

from esper.assembly.network import build_data, build_model
from esper.assembly.proving.settings import Settings
from esper.data.splits import DataSplits
from esper.errors import ConfigError

MAX_WIDTH = 65_536

RATIO = 1.2
"""Between neighbours of a row of widths: a size is right within as much."""


class Widths:
    """The static networks that ``settings`` describe, as ``prove.width_key`` and ``prove.static`` say."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._step: int = settings.cfg.prove.width_step
        self._data: DataSplits | None = None
        self._static: DictConfig | None = None

    def static(self, width: int) -> tuple[str, ...]:
        """The overrides of the static network of that width."""
        return ("tamiyo=never", f"{self.settings.width_key}={width}", *self.settings.cfg.prove.static)

    def holding(self, parameters: int) -> int:
        """The smallest width whose static network has at least as many parameters; ConfigError if none."""
        high = 1
        while not self._holds(high, parameters):
            high *= 2
            if high * self._step > MAX_WIDTH:
                key = self.settings.width_key
                raise ConfigError(
                    f"no {key} up to {MAX_WIDTH} gives a network of {parameters:,} parameters",
                    hint="name what scales the network: prove.width_key=KEY",
                )
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._holds(middle, parameters) else (middle, high)
        return high * self._step

    def between(self, large: int, count: int) -> list[int]:
        """Up to ``count`` distinct widths between the given network's and ``large``, in a geometric row."""
        small = self._small()
        row = (small * (large / small) ** (i / (count + 1)) for i in range(1, count + 1))
        return [width for width in self._rounded(row) if small < width < large]

    def row(self, widest: int) -> list[int]:
        """Distinct widths from the given network's to ``widest`` or past it, about ``RATIO`` apart."""
        small = self._small()
        steps = max(1, math.ceil(math.log(widest / small, RATIO)))
        return self._rounded(small * RATIO**i for i in range(steps + 1))

    def _small(self) -> int:
        return self.holding(self._parameters(self.settings.cfg))

    def _rounded(self, row: Iterable[float]) -> list[int]:
        return sorted({self._step * round(width / self._step) for width in row})

    def _holds(self, steps: int, parameters: int) -> bool:
        if self._static is None:  # composing takes longer than building
            self._static = self.settings.compose(self.static(self._step))
        OmegaConf.update(self._static, self.settings.width_key, steps * self._step)
        return self._parameters(self._static) >= parameters

    def _parameters(self, cfg: DictConfig) -> int:
        if self._data is None:
            self._data = build_data(self.settings.cfg)
        return sum(p.numel() for p in build_model(cfg, self._data).parameters())
