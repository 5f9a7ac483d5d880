"""The average of the weights: what it is, and how it follows kernels, wider layers, blocks and folding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kasmina_support import grow
from torch import Tensor, nn

from esper.errors import GraftError
from esper.kasmina import seeded_layers, wrap
from esper.kasmina.operators import Growth, deepen, widen
from esper.kasmina.operators.fold import fold
from esper.messages import SeedState
from esper.tolaria.weight_average import WeightAverage

X = torch.linspace(-1, 1, 48).view(6, 8)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 12)
        self.norm = nn.BatchNorm1d(12)
        self.layer_norm = nn.LayerNorm(12)
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.norm(self.layer_norm(self.first(x)))))
        return out


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net()


def moved(model: nn.Module, average: WeightAverage, steps: int = 4) -> None:
    """Steps of training, each counted."""
    for step in range(steps):
        model(X + step)  # statistics of the norm
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        average.update()


def outputs(model: nn.Module, average: WeightAverage) -> tuple[Tensor, Tensor]:
    """What the network of the weights gives, and that of the averages."""
    model.eval()
    with torch.no_grad():
        own = model(X)
        with average.swapped():
            averaged = model(X)
    model.train()
    return own, averaged


def begun(model: nn.Module, decay: float = 0.9) -> WeightAverage:
    average = WeightAverage(model, decay)
    average.follow()
    return average


def test_it_is_the_moving_average_of_weights_and_statistics(model: Net) -> None:
    average = begun(model, decay=0.3)
    tensors = {"last.weight": model.last.weight, "norm.running_var": model.norm.running_var}
    expected = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    for step in range(4):
        moved(model, average, 1)
        decay = min(0.3, (1 + step) / (10 + step))
        for name, tensor in tensors.items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.detach()
    for name, value in expected.items():
        torch.testing.assert_close(average.state()["values"][name], value)


def test_swapped_in_it_is_measured_and_then_all_is_as_before(model: Net) -> None:
    average = begun(model)
    moved(model, average)
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values = {name: value.clone() for name, value in average.state()["values"].items()}
    with average.swapped():
        assert all(torch.equal(model.state_dict()[name], value) for name, value in values.items())
    assert all(torch.equal(own[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(values[name], value) for name, value in average.state()["values"].items())


def wider(model: nn.Module) -> Growth:
    generator = torch.Generator().manual_seed(1)
    return widen(model, {"first": 16}, example=X, generator=generator, start="pairs")


def deeper(model: nn.Module) -> Growth:
    return deepen(model, "first", example=X, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("operator", [wider, deeper])
def test_growth_changes_neither_network(model: Net, operator: Callable[[nn.Module], Growth]) -> None:
    average = begun(model)
    moved(model, average)
    before = outputs(model, average)
    means, size = average.means(), len(average.state()["values"])
    growth = average.grown(lambda: operator(model))
    for one, other in zip(before, outputs(model, average), strict=True):
        torch.testing.assert_close(one, other)
    names = dict(model.named_parameters())
    assert all(value.shape == names[name].shape for name, value in average.state()["values"].items()
               if name in names)  # fmt: skip
    assert len(average.state()["values"]) == size + len(growth.added)
    growth.undo()
    average.put_back(means)
    for one, other in zip(before, outputs(model, average), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_is_born_joins_at_its_birth_and_what_goes_leaves(model: Net) -> None:
    wrap(model, X, include=["last"])
    average = begun(model)
    moved(model, average)
    before = outputs(model, average)
    seed = grow(seeded_layers(model)["last"], 1, alpha=0.0)
    average.follow()
    state = average.state()
    born = {name for name in state["ages"] if ".kernel." in name}
    assert {state["ages"][name] for name in born} == {0}
    assert all(torch.equal(state["values"][name], model.state_dict()[name]) for name in born)
    for one, other in zip(before, outputs(model, average), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    moved(model, average, 1)
    assert {age for name, age in average.state()["ages"].items() if name in born} == {1}
    seed.transition(SeedState.CULLED, {"reason": "the test"})
    seed.remove_kernel()
    assert not born & set(average.state()["values"])


def test_folding_changes_neither_network(model: Net) -> None:
    wrap(model, X, include=["last"])
    layer, average = seeded_layers(model)["last"], begun(model)
    slot = layer.slot("parallel", 1)
    seed = grow(layer, 1, alpha=1.0, kernel=nn.Linear(slot.in_features, slot.out_features))
    average.follow()
    moved(model, average)
    seed.restore(SeedState.FOSSILIZED)
    before = outputs(model, average)
    average.grown(lambda: fold(layer, 1))
    for one, other in zip(before, outputs(model, average), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(*before)


def test_growth_that_is_refused_leaves_all_as_it_was(model: Net) -> None:
    average = begun(model)
    moved(model, average)
    before = outputs(model, average)
    with pytest.raises(GraftError):
        average.grown(lambda: widen(model, {"first": 3}, example=X))
    for one, other in zip(before, outputs(model, average), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
