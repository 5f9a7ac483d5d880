"""Random numbers from a seed, for code that can only draw from torch's global state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[Callable[[], bool]]:
    """Random numbers on ``device`` from ``seed``; the global state is afterwards what it was.

    Gives what tells whether any have been drawn.
    """
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        (torch.cuda.manual_seed if on_gpu else torch.default_generator.manual_seed)(seed)
        first = _state(device)
        yield lambda: not torch.equal(_state(device), first)


def _state(device: torch.device) -> torch.Tensor:
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
