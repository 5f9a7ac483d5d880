"""Checkpoints of a run: sealed, whole or not there, written while training goes on."""

from esper.tolaria.checkpoints.background import BackgroundSaver, Saved
from esper.tolaria.checkpoints.manifest import Manifest, Mark
from esper.tolaria.checkpoints.retention import Retention
from esper.tolaria.checkpoints.store import Checkpoints, Found

__all__ = ["BackgroundSaver", "Checkpoints", "Found", "Manifest", "Mark", "Retention", "Saved"]
