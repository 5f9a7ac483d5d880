import pytest
import torch
from torch import nn

from esper.models import MLP, PatchTransformer, ResNet
from esper.models.resnet import BasicBlock


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


HOSTS = {
    "resnet-8": (lambda: ResNet(4), (1, 8, 8)),
    "resnet-28": (lambda: ResNet(4), (1, 28, 28)),
    "resnet-32": (lambda: ResNet(4, (2, 1, 3), in_channels=3, classes=7), (3, 32, 32)),
    "mlp": (lambda: MLP(64, (32, 16)), (1, 8, 8)),
    "mlp-linear": (lambda: MLP(64, ()), (1, 8, 8)),
    "transformer": (lambda: PatchTransformer(8, 2, 16, 2, 4), (1, 8, 8)),
    "transformer-28": (lambda: PatchTransformer(28, 7, 16, 1, 2, in_channels=3, classes=7), (3, 28, 28)),
}


@pytest.fixture(params=HOSTS)
def host(request):
    make, shape = HOSTS[request.param]
    torch.manual_seed(0)
    return make().eval(), torch.randn(5, *shape)


@pytest.mark.parametrize(("width", "count"), [(8, 19_810), (14, 59_692)])
def test_resnet_has_the_parameters_that_its_docstring_states(width, count):
    assert parameters(ResNet(width)) == count


def test_logits_have_one_row_a_sample_and_one_column_a_class(host):
    model, x = host
    assert model(x).shape == (5, model.head.out_features)


def test_samples_do_not_influence_each_other_in_eval_mode(host):
    model, x = host
    torch.testing.assert_close(model(x)[2:3], model(x[2:3]), rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient(host):
    model, x = host
    model.train()(x).square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The keys' bias shifts every score of a query alike, which softmax takes out again: its gradient is zero
    # but for rounding, and it shares its tensor with the queries and values.
    assert without == []


def test_symbolic_trace_computes_the_same(host):
    model, x = host
    assert torch.equal(torch.fx.symbolic_trace(model)(x), model(x))


def test_traced_graph_takes_other_batch_sizes(host):
    model, x = host
    assert torch.fx.symbolic_trace(model)(x[:2]).shape[0] == 2


def test_one_seed_fixes_the_initial_weights():
    for make, _ in HOSTS.values():
        states = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            states.append(torch.cat([p.detach().flatten() for p in make().parameters()]))
        assert torch.equal(states[0], states[1])
        assert not torch.equal(states[0], states[2])


def test_channels_last_changes_speed_only():
    torch.manual_seed(0)
    model, x = ResNet(8), torch.randn(4, 1, 28, 28)
    model.eval()
    expected = model(x)
    torch.testing.assert_close(model.to(memory_format=torch.channels_last)(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stride", "size"), [(1, 7), (2, 4)])
@pytest.mark.parametrize("out_channels", [3, 6])
def test_a_block_divides_the_image_by_its_stride_rounding_up(stride, size, out_channels):
    assert BasicBlock(3, out_channels, stride)(torch.randn(2, 3, 7, 7)).shape == (2, out_channels, size, size)


def test_names_that_patterns_are_written_for():
    resnet = dict(ResNet(4).named_modules())
    assert {"stem.conv", "stage1.0.conv1", "stage2.0.bn2", "stage2.0.shortcut.conv", "head"} <= resnet.keys()
    transformer = dict(PatchTransformer().named_modules())
    wanted = {"embed", "blocks.0.attention", "blocks.1.attention.qkv", "blocks.0.ff1", "blocks.1.ff2", "head"}
    assert wanted <= transformer.keys()
    assert {"hidden.0", "hidden.1", "head"} <= dict(MLP(4, (3, 2)).named_modules()).keys()


def test_attention_is_that_of_torch():
    torch.manual_seed(0)
    ours = PatchTransformer(dim=16, heads=4).blocks[0].attention
    theirs = nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.load_state_dict(
        {
            "in_proj_weight": ours.qkv.weight,
            "in_proj_bias": ours.qkv.bias,
            "out_proj.weight": ours.proj.weight,
            "out_proj.bias": ours.proj.bias,
        }
    )
    x = torch.randn(3, 5, 16)
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet(0),
        lambda: ResNet(8, (1, 1)),
        lambda: ResNet(8, (1, 0, 1)),
        lambda: ResNet(8, classes=0),
        lambda: MLP(0),
        lambda: MLP(4, (3, 0)),
        lambda: PatchTransformer(8, 3),
        lambda: PatchTransformer(dim=10, heads=4),
        lambda: PatchTransformer(depth=0),
    ],
)
def test_impossible_sizes_are_refused(make):
    with pytest.raises(ValueError, match=r"at least 1|must divide"):
        make()
