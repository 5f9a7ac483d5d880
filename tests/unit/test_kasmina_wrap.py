from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from kasmina_support import grow, kernel_for
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from esper.errors import GraftError
from esper.kasmina import graft, seeded_layers, unwrap, wrap
from esper.messages import Slot
from esper.models.resnet import ResNet

IMAGES = torch.zeros(2, 1, 8, 8)


def test_types_and_patterns_choose_layers() -> None:
    assert wrap(ResNet(width=4), IMAGES, types=("linear",)) == ["head"]
    assert wrap(ResNet(width=4), IMAGES, include=("stage2.*",), exclude=("*.shortcut.*",)) == [
        "stage2.0.conv1",
        "stage2.0.conv2",
    ]
    model = ResNet(width=4)
    assert wrap(model, IMAGES, include=("stage?", "head")) == ["stage1", "stage2", "stage3", "head"]
    assert [layer.kind for layer in seeded_layers(model).values()] == ["block"] * 3 + ["linear"]


def test_slots_of_a_residual_network() -> None:
    model = ResNet(width=6)
    wrap(model, IMAGES, include=("*", "stage2.0"))
    layers = seeded_layers(model)
    assert layers["stage2.0"].slot("parallel", 0) == Slot("channels", 2, 3, 2)
    assert layers["stage2.0.conv1"].slot("parallel", 3) == Slot("channels", 1, 3, 2)
    assert layers["stage2.0.conv1"].slot("series", 0) == Slot("channels", 3, 3)
    assert layers["head"].slot("parallel", 0) == Slot("features", 6, 3)
    assert layers["head"].slot("parallel", 3) == Slot("features", 6, 2)


def test_uneven_chunks_are_those_of_tensor_split() -> None:
    model = nn.Sequential(nn.Linear(11, 7))
    wrap(model, torch.zeros(2, 11), seeds=3)
    layer = seeded_layers(model)["0"]
    assert layer.in_sizes == [len(c) for c in torch.zeros(11).tensor_split(3)]
    assert layer.out_sizes == [len(c) for c in torch.zeros(7).tensor_split(3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"include": ("stage2.0.conv3",)}, r"no module is named like 'stage2.0.conv3'.*stage2.0.conv2"),
        ({"seeds": 5}, r"stem.conv: 5 seeds do not fit into 4 output features.*at most 4"),
        ({"seeds": 0}, "one seed at least"),
        ({"types": ("lstm",)}, "unknown layer types: lstm.*known: linear"),
        ({"exclude": ("*",)}, "every layer that was included is excluded"),
        ({"example_input": torch.zeros(2, 3, 8, 8)}, "example input does not run.*RuntimeError"),
    ],
)
def test_errors_say_what_and_leave_the_network_alone(arguments, message: str) -> None:
    model = ResNet(width=4)
    with pytest.raises(GraftError, match=f"(?s){message}"):
        wrap(model, **{"example_input": IMAGES, **arguments})
    assert not seeded_layers(model)


def test_what_cannot_hold_seeds_is_refused() -> None:
    lstm = nn.Sequential(nn.Embedding(5, 4), nn.ModuleDict({"a": nn.Linear(4, 4)}))

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts, self.pick, self.unused = lstm, Pick(), nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.pick(x)
            return self.parts[1]["a"](self.parts[0](x))

    class Pick(nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"x": x}

    x = torch.zeros(2, 3, dtype=torch.long)
    for name, message in {
        "pick": "pick cannot be wrapped: it gives dict",
        "parts.1": "parts.1 is never called",
        "unused": "unused is never called",
    }.items():
        with pytest.raises(GraftError, match=message):
            wrap(Net(), x, include=(name,))
    model = Net()
    assert wrap(model, x) == ["parts.1.a"]
    assert wrap(model, x, include=("parts.0",)) == ["parts.0"]
    with pytest.raises(GraftError, match=r"no parallel kernel fits.*series"):
        seeded_layers(model)["parts.0"].slot("parallel", 0)


@pytest.mark.parametrize(
    ("convolution", "message"),
    [
        (nn.Conv2d(4, 4, 3, stride=(2, 1), padding=1), "stride .2, 1. is not the same"),
        (nn.Conv2d(4, 4, 3), "output of 6x6 is not its input of 8x8"),
        (nn.Conv2d(4, 4, 3, padding=2), "output of 10x10"),
        (nn.Conv2d(2, 4, 3, padding=1), "2 input features cannot be cut into 4 chunks"),
    ],
)
def test_convolutions_without_a_parallel_site_take_series_kernels(convolution, message: str) -> None:
    model = nn.Sequential(convolution)
    x = torch.randn(2, convolution.in_channels, 8, 8)
    wrap(model, x)
    layer = seeded_layers(model)["0"]
    with pytest.raises(GraftError, match=f"{message}.*series"):
        layer.slot("parallel", 0)
    grow(layer, 0, site="series")
    assert not torch.equal(layer(x)[:, :1], layer.host(x)[:, :1])


@pytest.mark.parametrize("size", [8, 7])
@pytest.mark.parametrize("host", [nn.Conv2d(4, 8, 1, 2), nn.Conv2d(4, 8, 7, 2, 3), nn.Conv2d(4, 8, 3, 1, 1)])
def test_strided_convolutions_take_parallel_kernels(host: nn.Conv2d, size: int) -> None:
    x = torch.randn(2, 4, size, size)
    model = nn.Sequential(copy.deepcopy(host))
    wrap(model, x)
    layer = seeded_layers(model)["0"]
    assert layer.slot("parallel", 0).stride == host.stride[0]
    grow(layer, 0)
    assert layer(x).shape == layer.host(x).shape
    assert not layer.pending_faults


def test_attributes_are_those_of_the_host() -> None:
    host = nn.Linear(4, 4)
    model = nn.Sequential(host)
    wrap(model, torch.zeros(2, 4))
    assert model[0].weight is host.weight
    assert model[0].out_features == 4
    replacement = nn.Parameter(torch.ones(4, 4))
    model[0].weight = replacement
    assert host.weight is replacement
    assert dict(model.named_parameters()).keys() == {"0.host.weight", "0.host.bias"}
    with pytest.raises(AttributeError, match="no attribute 'missing'"):
        _ = model[0].missing


class Tied(nn.Module):
    """One layer under two names, and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_a_shared_module_is_wrapped_once_under_every_name() -> None:
    model = Tied()
    assert wrap(model, torch.zeros(2, 4)) == ["first"]
    assert model.first is model.second
    kernel = nn.Linear(1, 1)
    grow(model.first, 0, 1.0, kernel=kernel)
    x = torch.randn(3, 4)
    once = model.first(x)
    assert torch.equal(model(x), model.first(once))
    model.first.seed(0).reset()
    unwrap(model)
    assert type(model.first) is nn.Linear
    assert model.first is model.second


def test_calls_with_different_axes_fall_back_to_features_or_are_refused() -> None:
    class Twice(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x).unsqueeze(1))

    model = Twice(nn.Linear(4, 4))
    wrap(model, torch.zeros(2, 4))
    assert model.layer.layout == "features"
    with pytest.raises(GraftError, match="called with different layouts"):
        wrap(Twice(nn.Sequential(nn.Identity())), torch.zeros(2, 3, 4), include=("layer",), types=())


def test_nested_layers_each_have_their_seeds_and_keep_their_names() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 4))
    x = torch.randn(2, 4)
    assert wrap(model, x, include=("0", "*")) == ["0", "0.0", "1"]
    layers = seeded_layers(model)
    assert layers["0.0"] is layers["0"].host[0]
    grow(layers["0.0"], 0)
    grow(layers["0"], 1)
    inner = layers["0"].host(x)
    assert not torch.equal(inner[:, 0], torch.tanh(layers["0.0"].host(x))[:, 0])
    assert torch.equal(layers["0"](x)[:, 0], inner[:, 0])
    assert not torch.equal(layers["0"](x)[:, 1], inner[:, 1])
    assert unwrap(model) is model
    assert set(seeded_layers(model)) == {"0", "0.0"}


def test_wrapping_again_adds_layers_and_spares_those_wrapped() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.zeros(2, 4)
    assert wrap(model, x, include=("0",)) == ["0"]
    first = model[0]
    assert wrap(model, x, include=("1",)) == ["1"]
    assert model[0] is first
    with pytest.raises(GraftError, match="already"):
        wrap(model, x, include=("0",))


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (nn.Linear(3, 2), "does not fit features 2->2.*RuntimeError"),
        (nn.Linear(2, 3), r"it gives \(2, 3\) torch.float32, not \(2, 2\)"),
        (nn.Linear(2, 2).double(), "does not fit features 2->2"),
        (nn.Sequential(nn.ReLU(inplace=True), nn.Linear(2, 2)), "changes its input in place"),
        (nn.Flatten(0), r"it gives \(4,\)"),
    ],
)
def test_a_kernel_that_does_not_fit_is_refused(kernel: nn.Module, message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    wrap(model, torch.zeros(2, 8))
    layer = seeded_layers(model)["0"]
    random = torch.get_rng_state()
    with pytest.raises(GraftError, match=message):
        graft(layer, 0, kernel, kernel_id="k", site="series", blend="residual")
    assert torch.equal(torch.get_rng_state(), random)
    assert layer.seed(0).kernel is None


def test_a_seed_takes_one_kernel() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    wrap(model, torch.zeros(2, 8))
    layer = seeded_layers(model)["0"]
    grow(layer, 0)
    with pytest.raises(GraftError, match=r"it is BLENDING.*dormant"):
        graft(layer, 0, kernel_for(layer.slot("series", 0)), kernel_id="k", site="series", blend="lerp")


def test_a_sharded_network_is_refused_with_the_reason(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        with pytest.raises(
            GraftError, match=r"0\.weight is sharded over processes, as FSDP2 does"
        ) as refused:
            wrap(model, torch.zeros(2, 8))
        assert "tolaria=ddp" in str(refused.value.hint)
        assert not seeded_layers(model)
    finally:
        dist.destroy_process_group()
