"""Urza: the kernel library and its cache tiers."""

from esper.urza.entries import Page, Standing
from esper.urza.library import Kernel, KernelLibrary
from esper.urza.opening import open_library
from esper.urza.query import SORT_KEYS, KernelQuery
from esper.urza.ranking import RankedKernel, TrialContext, Wanted
from esper.urza.reports import ReportPage, ReportQuery, StoredReport
from esper.urza.rows import Trial
from esper.urza.upkeep import Garbage

__all__ = [
    "SORT_KEYS",
    "Garbage",
    "Kernel",
    "KernelLibrary",
    "KernelQuery",
    "Page",
    "RankedKernel",
    "ReportPage",
    "ReportQuery",
    "Standing",
    "StoredReport",
    "Trial",
    "TrialContext",
    "Wanted",
    "open_library",
]
