"""What ``torch.compile`` leaves as it is: a graph break at each layer that has a running seed.

Containing faults needs Python's exceptions and hooks on gradients. Layers without a running seed compile
whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from esper.kasmina import blending

apply_seeds: Callable[..., Any] = torch.compiler.disable(blending.apply_seeds)  # type: ignore[no-untyped-call]  # torch's
