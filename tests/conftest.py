"""What holds for every test: one thread, because small networks are slower with more on a shared machine."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
