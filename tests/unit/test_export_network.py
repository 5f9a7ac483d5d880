"""Grown networks exported as plain source: the same function, the same gradients, no Esper."""

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from export_support import Grown, Growth, grow, load_export, train_a_little
from torch import nn

from esper.errors import RunError, StorageError
from esper.kasmina import observe, seeded_layers
from esper.messages import SeedState
from esper.models import MLP, PatchTransformer, ResNet
from esper.tolaria.export import ExportReport, export_network


def bottleneck(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 3), nn.GELU(), nn.Linear(3, outputs, bias=False))


def convolution(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride=stride, padding=1, groups=inputs),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1),
    )


def resnet():
    growths = [
        Growth("stem.conv", 1, convolution(2, 2), site="series"),
        Growth("stage2.0.conv1", 0, convolution(2, 4, stride=2)),
        Growth("stage2.0.conv1", 3, nn.Conv2d(2, 4, 3, stride=2, padding=1), blend="lerp", alpha=0.3),
        Growth("stage3.0.conv2", 2, convolution(8, 8), alpha=0.5, state=SeedState.BLENDING),
        Growth("head", 0, bottleneck(8, 3)),
    ]
    return grow(ResNet(width=8), torch.randn(6, 1, 16, 16), growths)


def mlp():
    growths = [Growth("hidden.0", 1, bottleneck(16, 8)), Growth("head", 3, nn.Linear(8, 2), blend="lerp")]
    return grow(MLP(64, hidden=(32, 32)), torch.randn(6, 64), growths)


def transformer():
    growths = [
        Growth("blocks.0.attention", 2, bottleneck(8, 8)),
        Growth("blocks.0.ff1", 0, bottleneck(8, 32), alpha=0.7, state=SeedState.HOLDING),
        Growth("blocks.1", 1, nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)), site="series"),
    ]
    include = ("blocks.?.attention", "blocks.0.ff1", "blocks.1")
    return grow(PatchTransformer(), torch.randn(6, 1, 8, 8), growths, include=include)


def sequential():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Dropout2d(0.5),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    growths = [Growth("0", 0, nn.Conv2d(2, 2, 1), site="series"), Growth("6", 4, bottleneck(6, 1))]
    return grow(model, torch.randn(6, 3, 10, 10), growths, seeds=5)


class AttentionClassifier(nn.Module):
    """Attention whose tuple is unpacked, and a mode that a function follows."""

    def __init__(self):
        super().__init__()
        self.attend = nn.MultiheadAttention(8, 2, dropout=0.2)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x, mask=None):
        z = x if self.attend.batch_first else x.transpose(0, 1)
        y, _ = self.attend(z, z, z, need_weights=False, attn_mask=mask)
        y = y if self.attend.batch_first else y.transpose(0, 1)
        y = nn.functional.dropout(self.norm(x + y), 0.1, training=self.training)
        return self.head(y.mean(1))


def time_first():
    growths = [
        Growth("attend", 1, nn.Sequential(nn.Linear(2, 2), nn.Softmax(dim=1))),
        Growth("attend", 2, nn.Linear(2, 2), site="series"),
    ]
    return grow(AttentionClassifier(), torch.randn(6, 5, 8), growths)


def encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 2))
    growths = [
        Growth("0.layers.0.self_attn", 1, bottleneck(2, 2)),
        Growth("0.layers.1.linear1", 0, bottleneck(2, 4)),
    ]
    return grow(model, torch.randn(6, 5, 8), growths, include=("0.*",))


NETWORKS = [resnet, mlp, transformer, sequential, time_first, encoder]
WITH_DROPOUT = [sequential, time_first]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def export(grown, folder, **options):
    return export_network(grown.model, grown.kernels, grown.example, folder, **options)


@dataclass(frozen=True)
class Exported:
    make: Callable
    grown: Grown
    report: ExportReport

    @property
    def folder(self):
        return self.report.source.parent


def everything(grown):
    """All that an export could have changed."""
    modules = [grown.model, *grown.kernels.values()]
    state = [{name: value.tolist() for name, value in module.state_dict().items()} for module in modules]
    modes = [module.training for module in grown.model.modules()]
    return state, modes, [layer.observing for layer in seeded_layers(grown.model).values()]


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda make: make.__name__)
def exported(request, tmp_path_factory):
    """Each network after some training, and its export: the check in a new process takes its time."""
    torch.manual_seed(0)
    grown = request.param()
    train_a_little(grown.model, grown.example)
    next(iter(seeded_layers(grown.model).values())).host.eval()
    observe(grown.model, True)
    before, folder = everything(grown), tmp_path_factory.mktemp("export")
    report = export(grown, folder, notes='Rows of "digits",\nin units of their deviation.')
    assert everything(grown) == before
    observe(grown.model, False)
    return Exported(request.param, grown, report)


def test_the_export_computes_what_the_network_does(exported):
    network, grown = load_export(exported.folder).load(), exported.grown
    assert exported.report.max_difference < 1e-5
    grown.model.eval()
    for batch in (1, 4):
        x = torch.randn(batch, *grown.example.shape[1:])
        torch.testing.assert_close(network(x), grown.model(x), rtol=1e-4, atol=1e-5)


def test_every_parameter_is_exported_once(exported):
    report, network = exported.report, load_export(exported.folder).load()
    assert report.parameters == sum(p.numel() for p in network.parameters())
    assert report.parameters == sum(p.numel() for p in exported.grown.model.parameters())


def test_a_step_of_training_is_that_of_the_grown_network(exported):
    if exported.make in WITH_DROPOUT:
        return  # its masks differ; both modes are tested below
    network, grown = load_export(exported.folder).load(), exported.grown
    before = copy.deepcopy(grown.model.state_dict())
    losses, outputs = [], []
    for each in (network, grown.model):
        optimizer = torch.optim.SGD(each.train().parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss = each(grown.example).square().mean()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
        outputs.append(each.eval()(grown.example).detach())
    grown.model.load_state_dict(before)
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-5)


def test_both_modes_are_kept(exported):
    network, x = load_export(exported.folder).load(), exported.grown.example
    assert torch.equal(network(x), network(x))
    network.train()
    assert torch.equal(network(x), network(x)) != (exported.make in WITH_DROPOUT)


def test_the_source_says_what_it_is(exported):
    module = load_export(exported.folder)
    assert "Rows of 'digits',\nin units of their deviation." in module.__doc__
    assert f"float32 (N, {', '.join(map(str, exported.grown.example.shape[1:]))})" in module.Network.__doc__
    for layer, seed_idx in exported.grown.kernels:
        assert f"- {layer}, seed {seed_idx}: output[" in module.__doc__
    assert not re.search("^(from|import) esper", exported.report.source.read_text(), re.MULTILINE)


def test_the_source_reads_as_if_written_by_hand(tmp_path):
    growths = [Growth("hidden.0", 1, nn.Sequential(nn.Linear(16, 3), nn.GELU(), nn.Linear(3, 8, bias=False)))]
    growths.append(Growth("head", 3, nn.Linear(8, 2), blend="lerp", alpha=0.3))
    unheard = [
        Growth("hidden.1", 0, nn.Linear(8, 8), state=SeedState.TRAINING),
        Growth("hidden.1", 1, nn.Linear(8, 8), state=SeedState.GERMINATED),
        Growth("hidden.1", 2, nn.Linear(8, 8), state=SeedState.BLENDING, alpha=0.0),
    ]
    export(grow(MLP(64, hidden=(32, 32)), torch.randn(4, 64), growths + unheard), tmp_path)
    text = (tmp_path / "model.py").read_text()
    assert text[text.index("    def __init__") : text.index("\n\ndef load")] == HANDWRITTEN


HANDWRITTEN = """\
    def __init__(self) -> None:
        super().__init__()
        self.hidden_0 = nn.Linear(64, 32)
        self.hidden_0_seed1_0 = nn.Linear(16, 3)
        self.hidden_0_seed1_1 = nn.GELU()
        self.hidden_0_seed1_2 = nn.Linear(3, 8, bias=False)
        self.hidden_1 = nn.Linear(32, 32)
        self.head = nn.Linear(32, 10)
        self.head_seed3 = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)  # (N, 64)
        y = self.hidden_0(x)  # (N, 32)
        seed1 = self.hidden_0_seed1_0(x[..., 16:32])  # (N, 3)
        seed1 = self.hidden_0_seed1_1(seed1)
        seed1 = self.hidden_0_seed1_2(seed1)  # (N, 8)
        y = torch.cat([y[..., 0:8], y[..., 8:16] + seed1, y[..., 16:32]], dim=-1)  # (N, 32)
        y = F.relu(y)
        y = self.hidden_1(y)
        y = F.relu(y)
        x = self.head(y)  # (N, 10)
        seed3 = self.head_seed3(y[..., 24:32])  # (N, 2)
        seed3 = torch.lerp(x[..., 8:10], seed3, 0.3)
        x = torch.cat([x[..., 0:8], seed3], dim=-1)  # (N, 10)
        return x
"""


def test_other_types_are_kept(tmp_path):
    dtype = torch.float64
    eager = bottleneck(16, 8).to(dtype)
    model, x = MLP(64, hidden=(32,)).to(dtype), torch.randn(4, 64, dtype=dtype)
    grown = grow(model, x, [Growth("hidden.0", 0, eager)])
    export(grown, tmp_path)
    network = load_export(tmp_path).load()
    assert {value.dtype for value in network.parameters()} == {dtype}
    torch.testing.assert_close(network(x), model.eval()(x))


class Tied(nn.Module):
    """A weight that two layers share, a frozen one, a buffer that is not saved and one of integers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.middle = nn.Linear(8, 8)
        self.middle.bias.requires_grad_(False)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("position", torch.randn(1, 8), persistent=False)
        self.register_buffer("order", torch.arange(8).flip(0))
        self.constant = torch.randn(8)

    def forward(self, x):
        y = self.embed(x) + self.position * self.constant
        return self.head(self.middle(y).index_select(-1, self.order))


def test_shared_frozen_and_bare_tensors_are_kept(tmp_path):
    x = torch.randint(0, 11, (4, 3))
    grown = grow(Tied(), x, [Growth("middle", 0, nn.Linear(2, 2))], include=("middle",))
    report = export(grown, tmp_path)
    network = load_export(tmp_path).load()
    assert network.head.weight is network.embed.weight
    assert not network.middle.bias.requires_grad
    assert network.middle.weight.requires_grad
    assert report.parameters == 11 * 8 + 8 * 8 + 8 + 2 * 2 + 2
    torch.testing.assert_close(network(x), grown.model.eval()(x))


class Strange(nn.Module):
    """Names that are no identifiers, or that a module and its source need for themselves."""

    def __init__(self):
        super().__init__()
        for name in ("2nd layer", "class", "forward_", "a-b", "a_b", "ключ", "x', evil()#"):
            self.add_module(name, nn.Linear(4, 4))

    def forward(self, x):
        for layer in self.children():
            x = layer(x)
        return x


def test_names_are_made_safe(tmp_path):
    grown = grow(Strange(), torch.randn(3, 4), [Growth("a-b", 0, nn.Linear(1, 1))])
    export(grown, tmp_path, notes='"""\nimport os\n\\')
    network = load_export(tmp_path).load()
    assert len(list(network.children())) == 8
    assert "import os" in load_export(tmp_path).__doc__


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Length(nn.Module):
    def forward(self, x):
        return x.view(len(x), -1)


class OtherInTraining(nn.Module):
    def forward(self, x):
        return x.relu() if self.training else x


class Random(nn.Module):
    def forward(self, x):
        return x + torch.rand(4)


class Custom(nn.Module):
    def forward(self, x):
        return custom(x)


@torch.fx.wrap
def custom(x):
    return x + 1


class Hooked(nn.Identity):
    def __init__(self):
        super().__init__()
        self.register_forward_hook(lambda module, args, output: output * 2)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Branching(), r"'1' \(Branching\): its forward cannot be traced"),
        (Length(), r"'1' \(Length\): its forward takes len\(\) of a tensor"),
        (OtherInTraining(), "'1': it computes something else in training"),
        (Random(), "'1': it computes something else in training"),
        (Custom(), r"custom in '1' \(Custom\): it is neither a public function"),
        (Hooked(), "'1': it has forward hooks"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), "'1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_is_named(part, message, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), part)
    folder = tmp_path / "export"
    with pytest.raises(RunError, match=message) as caught:
        export_network(model, {}, torch.randn(3, 4), folder)
    assert caught.value.hint
    assert not folder.exists() or not list(folder.iterdir())


def test_a_kernel_without_its_blueprint_is_named(tmp_path):
    grown = mlp()
    kernels = {("head", 3): grown.kernels["head", 3]}
    with pytest.raises(RunError, match=r"seed 1 of layer 'hidden\.0' \(kernel_hidden\.0_1\)"):
        export_network(grown.model, kernels, grown.example, tmp_path)
    kernels["hidden.0", 1] = nn.Linear(16, 8)
    with pytest.raises(RunError, match="its weights are not those of its blueprint"):
        export_network(grown.model, kernels, grown.example, tmp_path)


class Hidden(nn.Module):
    """Computes something that no trace can see."""

    def forward(self, x):
        return x + 1 if torch.is_grad_enabled() else x


def test_only_an_export_that_passed_takes_the_place_of_an_earlier_one(tmp_path):
    export(mlp(), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    model = nn.Sequential(nn.Linear(4, 4), Hidden())
    with pytest.raises(RunError, match="does not compute what the network does: an output differs by 1"):
        export_network(model, {}, torch.randn(3, 4), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    export(sequential(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.py", "model.safetensors"]
    assert load_export(tmp_path).load()(torch.randn(2, 3, 10, 10)).shape == (2, 5)


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    grown = mlp()
    with pytest.raises(StorageError, match="cannot write the export to"):
        export(grown, tmp_path / "file")
    (tmp_path / "model.py").mkdir()
    with pytest.raises(StorageError, match="cannot write the export to"):
        export(grown, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
