"""Growth operators: each changes a network in place, without changing its function, and can be undone."""

from esper.kasmina.operators.birth import Start
from esper.kasmina.operators.deepen import deepen
from esper.kasmina.operators.moments import begin_anew, carry, uncarry
from esper.kasmina.operators.operator import Growth, Resize
from esper.kasmina.operators.replay import replay
from esper.kasmina.operators.widen import try_widths, widen
from esper.kasmina.operators.widths import Width, find_widths

__all__ = [
    "Growth",
    "Resize",
    "Start",
    "Width",
    "begin_anew",
    "carry",
    "deepen",
    "find_widths",
    "replay",
    "try_widths",
    "uncarry",
    "widen",
]
