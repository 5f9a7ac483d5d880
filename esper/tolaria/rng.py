"""Every random generator that training may draw from, saved and restored as plain data."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), NumPy and Python."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def rng_state() -> dict[str, Any]:
    """The state of all generators; holds tensors and plain data, so ``weights_only`` loading reads it."""
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    keys = numpy_state["state"]["key"]
    version, words, gauss_next = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {
            **numpy_state,
            "state": {**numpy_state["state"], "key": torch.from_numpy(keys.astype(np.int64))},
        },
        "python": (version, list(words), gauss_next),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what ``rng_state`` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    inner = state["numpy"]["state"]
    keys = inner["key"].numpy().astype(np.uint32)
    np.random.set_state({**state["numpy"], "state": {**inner, "key": keys}})
    version, words, gauss_next = state["python"]
    random.setstate((version, tuple(words), gauss_next))


def draw_apart(rank: int) -> None:
    """Let the process of ``rank`` draw other numbers from torch's generators than the first one does."""
    if rank:
        torch.manual_seed((torch.initial_seed() + rank * 0x9E3779B97F4A7C15) % 2**63)
