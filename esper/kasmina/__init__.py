"""Kasmina: layers, seeds, blending, health signals."""

from esper.kasmina.counters import Fault
from esper.kasmina.faults import pop_faults, repeat_faults, set_loss_scale
from esper.kasmina.graft import (
    SeedRecord,
    graft,
    restore_seeds,
    seed_records,
    unwrap,
    wrap,
)
from esper.kasmina.health import drain, merge_observed, observe, observed, restore_observed
from esper.kasmina.layer import SeededLayer, seeded_layers
from esper.kasmina.seed import TRANSITIONS, Seed, seed_off
from esper.kasmina.signals import LayerSignals, signals_so_far

__all__ = [
    "TRANSITIONS",
    "Fault",
    "LayerSignals",
    "Seed",
    "SeedRecord",
    "SeededLayer",
    "drain",
    "graft",
    "merge_observed",
    "observe",
    "observed",
    "pop_faults",
    "repeat_faults",
    "restore_observed",
    "restore_seeds",
    "seed_off",
    "seed_records",
    "seeded_layers",
    "set_loss_scale",
    "signals_so_far",
    "unwrap",
    "wrap",
]
