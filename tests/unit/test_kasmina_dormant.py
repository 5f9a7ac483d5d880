"""A network whose seeds are all dormant is the bare network, bit for bit."""

from __future__ import annotations

import contextlib
import copy
import gc

import pytest
import torch
import torch.distributed as dist
from torch import nn

from esper.kasmina import drain, observe, unwrap, wrap
from esper.models.mlp import MLP
from esper.models.resnet import ResNet


def encoder(batch_first: bool) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.1, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


torch.set_num_threads(1)

NETWORKS = {
    "resnet": (lambda: ResNet(width=4), (4, 1, 8, 8), ("*",)),
    "mlp": (lambda: MLP(12, (8, 8)), (4, 12), ("*",)),
    "encoder": (lambda: encoder(True), (4, 5, 16), ("*",)),
    "encoder, time first": (lambda: encoder(False), (5, 4, 16), ("*",)),
    "blocks": (lambda: ResNet(width=4), (4, 1, 8, 8), ("stage?.0", "head")),
}


@pytest.fixture(params=NETWORKS)
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, torch.Tensor]:
    build, shape, include = NETWORKS[request.param]
    torch.manual_seed(0)
    bare = build()
    x = torch.randn(shape)
    wrapped = copy.deepcopy(bare)
    batch_axis = 1 if "time first" in request.param else 0
    assert wrap(wrapped, x, include=include, batch_axis=batch_axis)
    return bare, wrapped, x


def three_steps(model: nn.Module, x: torch.Tensor, autocast: bool = False) -> list[torch.Tensor]:
    """Outputs, gradients, parameters and buffers of three steps of training and an evaluation."""
    torch.manual_seed(1)
    seen: list[torch.Tensor] = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    context = torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext()
    model.train()
    for step in range(3):
        optimizer.zero_grad()
        with context:
            y = model(x + step)
            loss = y.float().square().mean()
        loss.backward()
        seen += [y.detach().clone(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
        optimizer.step()
    model.eval()
    with context, torch.no_grad():
        seen.append(model(x))
    return [*seen, *(p.detach().clone() for p in model.parameters()), *(b.clone() for b in model.buffers())]


def assert_same(a: list[torch.Tensor], b: list[torch.Tensor]) -> None:
    assert len(a) == len(b)
    assert all(x.dtype == y.dtype and torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_bits_are_those_of_the_bare_network(pair, autocast: bool) -> None:
    bare, wrapped, x = pair
    assert_same(three_steps(bare, x, autocast), three_steps(wrapped, x, autocast))


def test_observing_changes_no_bit(pair) -> None:
    bare, wrapped, x = pair
    observe(wrapped, True)
    assert_same(three_steps(bare, x), three_steps(wrapped, x))
    assert all(metrics.signals for metrics in drain(wrapped).values())


def test_bits_under_compile() -> None:
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8))
    wrapped, x = copy.deepcopy(bare), torch.randn(2, 1, 4, 4)
    assert wrap(wrapped, x) == ["0", "4"]
    torch._dynamo.reset()
    expected = three_steps(torch.compile(bare, backend="aot_eager"), x)
    assert_same(expected, three_steps(torch.compile(wrapped, backend="aot_eager", fullgraph=True), x))


def test_bits_under_data_parallel(pair, tmp_path) -> None:
    bare, wrapped, x = pair
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        first = nn.parallel.DistributedDataParallel(bare)
        second = nn.parallel.DistributedDataParallel(wrapped)
        assert_same(three_steps(first, x), three_steps(second, x))
        del first, second
        gc.collect()
    finally:
        dist.destroy_process_group()


def test_the_output_is_the_hosts_own_object() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    given = []
    model[0].register_forward_hook(lambda _, __, output: given.append(output))
    wrap(model, torch.zeros(2, 4))
    given.clear()
    assert model(torch.zeros(2, 4)) is given[0]


def test_wrapping_leaves_modes_buffers_gradients_and_random_state_alone() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(0.5)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            torch.rand(1)
            return self.dropout(self.linear(x))

    model = nn.Sequential(Counter(), nn.BatchNorm1d(4))
    model[1].eval()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    wrap(model, torch.randn(2, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in (model, model[0], model[0].linear, model[1])] == [True, True, True, False]
    assert all(p.grad is None for p in model.parameters())
    unwrap(model)
    assert_same(list(state.values()), list(model.state_dict().values()))


def test_unwrap_gives_back_the_original_modules() -> None:
    model = MLP(12, (8, 8))
    before = dict(model.named_modules())
    wrap(model, torch.zeros(2, 12))
    assert dict(model.named_modules()) != before
    assert unwrap(model) is model
    after = dict(model.named_modules())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
