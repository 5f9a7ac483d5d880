"""Random numbers from a seed, for code that can only draw from torch's global state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers on ``device`` from ``seed``; the global state is afterwards what it was."""
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        (torch.cuda.manual_seed if on_gpu else torch.default_generator.manual_seed)(seed)
        yield
