"""Make a recorded growth again on a fresh model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from esper.errors import GraftError
from esper.kasmina.operators.operator import REPLAYS, Growth


def replay(model: nn.Module, record: Mapping[str, Any], *, example: Any) -> Growth:
    """Grow a fresh ``model`` as ``record`` says, so that ``load_state_dict`` fits it.

    Several growths are replayed in the order in which they were made.

    Raises:
        GraftError: the record names no operator that exists, or ``model`` cannot grow so.
    """
    operator = record.get("operator")
    if operator not in REPLAYS:
        known = ", ".join(sorted(REPLAYS))
        raise GraftError(f"no growth operator {operator!r}", hint=f"there are: {known}")
    return REPLAYS[operator](model, record, example=example)
