"""The compiled forward pass: compiled once for each shape, counted by torch, and no silent way around it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kasmina_support import grow
from torch import Tensor, nn
from torch._dynamo.utils import counters

from esper.errors import ConfigError
from esper.kasmina import observe, seeded_layers, wrap
from esper.kasmina.operators import widen
from esper.messages import SeedState
from esper.tolaria.compiled import CompiledForward

X = torch.linspace(-1, 1, 48).view(6, 8)


class Net(nn.Module):
    """A loop, in which torch cannot go on compiling after a seed: then each layer is compiled by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(8 + i, 9 + i) for i in range(12)])
        self.factor = 1.0

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return x * self.factor


@pytest.fixture
def model() -> Iterator[Net]:
    torch.manual_seed(0)
    model = Net()
    wrap(model, X)
    yield model
    torch.compiler.reset()


def compiled(
    model: Net, backend: str | Callable[..., Any], shape: Callable[[], int] = int
) -> CompiledForward:
    layers = seeded_layers(model).values()
    return CompiledForward(model, backend, usual=len(X), layers=layers, shape=shape)


def graphs() -> int:
    return int(counters["stats"]["unique_graphs"])


def test_each_shape_is_compiled_once_and_gives_what_the_model_gives(model: Net) -> None:
    version = 0
    forward = compiled(model, "eager", lambda: version)
    seen: list[tuple[int, int]] = []

    def call(compilations: int, *, times: int = 2) -> None:
        for _ in range(times):
            expected = model(X)
            before = graphs()
            torch.testing.assert_close(forward(X), expected, rtol=0, atol=0)
            seen.append((forward.compilations, graphs() - before))
        assert forward.compilations == compilations
        assert seen[-1][1] == 0  # the second time nothing new was compiled

    call(1)
    assert seen[0][1] > 0
    widen(model, {"hidden.3": 16}, example=X)
    version += 1
    call(2)
    seed = grow(seeded_layers(model)["hidden.5"], 1, alpha=0.5)  # a kernel runs from here on
    call(3)
    assert seen[-2][1] >= len(model.hidden)  # more than torch compiles of one function, by itself
    seed.set_alpha(0.7)
    call(3)
    seed.transition(SeedState.HOLDING, {"alpha_target": 0.7})
    call(3)
    seed.transition(SeedState.CULLED, {"reason": "the test"})
    seed.remove_kernel()
    call(4)


def test_rare_calls_are_not_compiled(model: Net) -> None:
    forward = compiled(model, "eager")
    torch.testing.assert_close(forward(X[:4]), model(X[:4]), rtol=0, atol=0)
    observe(model, True)
    forward(X)
    assert forward.compilations == 0
    observe(model, False)
    forward(X)
    assert forward.compilations == 1


def test_a_network_that_changes_without_growth_is_told_of(model: Net) -> None:
    forward = compiled(model, "eager")
    forward(X)
    model.factor = 2.0
    with pytest.raises(ConfigError, match="again though it has not grown"):
        forward(X)


def test_what_cannot_be_compiled_is_told_of(model: Net) -> None:
    def no_compiler(*_: Any) -> Any:
        raise OSError("there is no compiler")

    with pytest.raises(ConfigError, match=r"cannot compile this network.*there is no compiler"):
        compiled(model, no_compiler)(X)


def test_errors_of_the_network_stay_what_they_are(model: Net) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("of its own")

    forward = compiled(model, "eager")
    forward(X)
    hooked = nn.Module.register_forward_hook(model.hidden[3], torch.compiler.disable(fail))
    try:
        with pytest.raises(RuntimeError, match="of its own"):
            compiled(model, "eager")(X)
    finally:
        hooked.remove()
