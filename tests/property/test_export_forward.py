"""Random programs of tensors, written as source and run from it: the same values, bit for bit.

What this is after is the order of what is executed and the reuse of names: values that are used again later,
views that are written through, and operators that are folded into one expression.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import Tracer

from esper.tolaria.export.source import network_source

torch.set_num_threads(1)

STEPS = {
    "add": lambda program, a, b: a + b,
    "subtract": lambda program, a, b: a - b,
    "negate": lambda program, a, b: -a,
    "maximum": lambda program, a, b: torch.maximum(a, b),
    "add in place": lambda program, a, b: a.add_(b),
    "write a column": lambda program, a, b: a[:, 1].mul_(0.5).unsqueeze(1).expand(3, 4).clone(),
    "view": lambda program, a, b: a[:, 1:3].unsqueeze(2).expand(3, 2, 2).flatten(1) * b,
    "join": lambda program, a, b: torch.cat([a[:, :2], b[:, 2:] + program.scale[2:]], dim=1),
    "fold": lambda program, a, b: (a * program.scale - b * 0.5) * -(a - 1e-3),
    "module": lambda program, a, b: program.inner(a),
}


class Program(nn.Module):
    """Runs steps on a list of tensors of one shape, each on two of those before; returns sum and last."""

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.scale = nn.Parameter(torch.linspace(-1, 1, 4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x):
        values = [x * 1.5]
        for step, first, second in self.steps:
            values.append(STEPS[step](self, values[first % len(values)], values[second % len(values)]))
        total = values[0]
        for value in values[1:]:
            total = total + value
        return total, values[-1]


def from_source(program):
    """The network that the source of ``program`` describes, with its weights."""
    source = network_source(Tracer().trace(program), program, lambda path: path)
    lines = ["class Network(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += [f"        {line}" for line in source.initialisation]
    lines += ["    def forward(self, x):", *(f"        {line}" for line in source.forward)]
    namespace = {"torch": torch, "nn": nn, "F": nn.functional}
    exec("\n".join(lines), namespace)
    network = namespace["Network"]()
    network.load_state_dict(source.state)
    return network


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 12), st.integers(0, 12)), max_size=12)
)
def test_a_program_computes_the_same_from_its_source(steps):
    torch.manual_seed(0)
    program, x = Program(steps), torch.randn(3, 4)
    with torch.no_grad():
        expected, found = program(x.clone()), from_source(program)(x.clone())
    for value, again in zip(expected, found, strict=True):
        torch.testing.assert_close(value, again, rtol=0, atol=0, equal_nan=True)
