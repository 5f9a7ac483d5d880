"""Urza: the kernel library and its cache tiers."""

from esper.urza.library import Kernel, KernelLibrary, open_library
from esper.urza.query import SORT_KEYS, KernelQuery
from esper.urza.rows import Trial

__all__ = ["SORT_KEYS", "Kernel", "KernelLibrary", "KernelQuery", "Trial", "open_library"]
