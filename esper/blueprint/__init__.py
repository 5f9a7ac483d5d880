"""BlueprintIR: a network as data, with bounds, a canonical spelling and a hash.

A blueprint is written once and built for many slots: its sizes are expressions over the slot's own. See
``blueprints/`` for the ones that ship.
"""

from esper.blueprint.checks import INPUT
from esper.blueprint.model import Blueprint, Node, Source
from esper.blueprint.ops import LAYOUTS, OPS, Op, Shape
from esper.blueprint.plan import Plan, PlannedNode, fits, plan
from esper.blueprint.reading import SUFFIXES, from_json, load_blueprints, parse_blueprint
from esper.blueprint.shrinking import smaller

__all__ = [
    "INPUT",
    "LAYOUTS",
    "OPS",
    "SUFFIXES",
    "Blueprint",
    "Node",
    "Op",
    "Plan",
    "PlannedNode",
    "Shape",
    "Source",
    "fits",
    "from_json",
    "load_blueprints",
    "parse_blueprint",
    "plan",
    "smaller",
]
