"""Data sets that ship, and loaders for those in a folder that the user names.

``load_digits``, ``load_fashion`` and ``load_text`` need nothing; ``load_idx`` (MNIST, Fashion-MNIST) and
``load_cifar10`` read the original files from a folder. Each returns :class:`DataSplits`.
"""

from esper.data.batches import Augment, Batches
from esper.data.cifar import load_cifar10
from esper.data.idx import load_idx
from esper.data.losses import mean_loss, sample_losses
from esper.data.shipped import load_digits, load_fashion
from esper.data.splits import DataSplits, Split
from esper.data.text import load_text

__all__ = [
    "Augment",
    "Batches",
    "DataSplits",
    "Split",
    "load_cifar10",
    "load_digits",
    "load_fashion",
    "load_idx",
    "load_text",
    "mean_loss",
    "sample_losses",
]
