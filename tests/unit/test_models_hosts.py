import pytest
import torch
from torch import nn

from esper.models import MLP, PatchTransformer, ResNet, SequenceTransformer
from esper.models.resnet import BasicBlock
from esper.models.transformer import Attention


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


HOSTS = {
    "resnet-8": (lambda: ResNet(4), (1, 8, 8)),
    "resnet-28": (lambda: ResNet(4), (1, 28, 28)),
    "resnet-32": (lambda: ResNet(4, (2, 1, 3), in_channels=3, classes=7), (3, 32, 32)),
    "resnet-any": (
        lambda: ResNet(1, (1, 2, 1), stem_stride=2, widths=(5, 3, 7), inner=(2, 9, 4, 1)),
        (1, 28, 28),
    ),
    "mlp": (lambda: MLP(64, (32, 16)), (1, 8, 8)),
    "mlp-linear": (lambda: MLP(64, ()), (1, 8, 8)),
    "mlp-norm": (lambda: MLP(64, (32, 16), norm=True), (1, 8, 8)),
    "mlp-width": (lambda: MLP(64, (3,), width=12, depth=3), (1, 8, 8)),
    "transformer": (lambda: PatchTransformer(8, 2, 16, 2, 4), (1, 8, 8)),
    "transformer-28": (lambda: PatchTransformer(28, 7, 16, 1, 2, in_channels=3, classes=7), (3, 28, 28)),
    "transformer-any": (lambda: PatchTransformer(dim=10, heads=(3, 2), head_dim=4, ff=(5, 7)), (1, 8, 8)),
}
TOKENS, LENGTH = 11, 6
SEQUENCES = {
    "sequence": lambda: SequenceTransformer(TOKENS, LENGTH, 16),
    "sequence-any": lambda: SequenceTransformer(TOKENS, LENGTH, 10, heads=(3, 2), head_dim=4, ff=(5, 7)),
}


@pytest.fixture(params=SEQUENCES)
def sequence(request):
    torch.manual_seed(0)
    return SEQUENCES[request.param]().eval(), torch.randint(0, TOKENS, (5, LENGTH))


@pytest.fixture(params=HOSTS)
def host(request):
    make, shape = HOSTS[request.param]
    torch.manual_seed(0)
    return make().eval(), torch.randn(5, *shape)


@pytest.mark.parametrize(("width", "count"), [(8, 19_810), (14, 59_692)])
def test_resnet_has_the_parameters_that_its_docstring_states(width, count):
    assert parameters(ResNet(width)) == count


def test_each_width_of_a_residual_network_can_be_given():
    model = ResNet(9, (1, 2, 1), widths=(5, 3, 7), inner=(2, 9, 4, 1))
    blocks = [*model.stage1, *model.stage2, *model.stage3]
    assert [block.conv1.in_channels for block in blocks] == [5, 5, 3, 3]
    assert [block.conv1.out_channels for block in blocks] == [2, 9, 4, 1]
    assert [block.conv2.out_channels for block in blocks] == [5, 3, 3, 7]
    assert model.head.in_features == 7


def test_widths_in_proportion_are_the_network_that_one_width_gives():
    states = []
    for options in ({"width": 4}, {"widths": (4, 8, 16), "inner": (4, 8, 16)}):
        torch.manual_seed(0)
        states.append(ResNet(**options).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(("stem_stride", "side"), [(1, 28), (2, 14), (3, 10)])
def test_the_stem_divides_the_image_by_its_stride(stem_stride, side):
    model = ResNet(4, stem_stride=stem_stride)
    assert model.stem(torch.randn(2, 1, 28, 28)).shape == (2, 4, side, side)


def test_one_number_scales_a_perceptron():
    model = MLP(64, (3,), width=12, depth=3)
    assert [layer.out_features for layer in model.hidden] == [12, 12, 12]
    assert parameters(MLP(64, width=12, depth=1)) == parameters(MLP(64, (12,)))


def test_logits_have_one_row_a_sample_and_one_column_a_class(host):
    model, x = host
    assert model(x).shape == (5, model.head.out_features)


def test_a_sequence_has_logits_at_each_position(sequence):
    model, x = sequence
    assert model(x).shape == (5, LENGTH, TOKENS)


def test_no_position_of_a_sequence_sees_a_later_one(sequence):
    model, x = sequence
    before = model(x)
    for position in range(LENGTH):
        changed = x.clone()
        changed[:, position] = (changed[:, position] + 1) % TOKENS
        after = model(changed)
        assert torch.equal(after[:, :position], before[:, :position])
        differs = (after != before).any(-1).all(0)
        assert differs[position:].all()


def test_the_order_of_tokens_counts(sequence):
    model, x = sequence
    assert not torch.allclose(model(x.flip(1))[:, -1], model(x)[:, -1], atol=1e-4)


def test_every_parameter_of_a_sequence_host_gets_a_gradient(sequence):
    model, x = sequence
    model.train()(x).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_symbolic_trace_of_a_sequence_host_computes_the_same(sequence):
    model, x = sequence
    traced = torch.fx.symbolic_trace(model)
    assert torch.equal(traced(x), model(x))
    assert torch.equal(traced(x[:2]), model(x[:2]))


def test_inner_widths_stand_apart_from_the_outer_one():
    for model in (HOSTS["transformer-any"][0](), SEQUENCES["sequence-any"]()):
        first, second = model.blocks
        assert (first.attention.qkv.in_features, first.attention.qkv.out_features) == (10, 36)
        assert (second.attention.qkv.out_features, second.attention.proj.in_features) == (24, 8)
        assert (first.ff1.out_features, second.ff2.in_features) == (5, 7)
        assert (first.attention.heads, second.attention.heads) == (3, 2)


def test_inner_widths_in_proportion_are_the_network_that_one_number_gives():
    for make in (PatchTransformer, lambda **sizes: SequenceTransformer(TOKENS, LENGTH, **sizes)):
        states = []
        for options in ({}, {"ff": 64, "head_dim": 4, "heads": [4, 4]}):
            torch.manual_seed(0)
            states.append(make(dim=16, **options).state_dict())
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


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
    for make in (*(make for make, _ in HOSTS.values()), *SEQUENCES.values()):
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
    wanted = {"embed", "blocks.0.attention", "blocks.1.attention.qkv", "blocks.0.ff1", "blocks.1.ff2", "head"}
    for transformer in (PatchTransformer(), SequenceTransformer(4, 3)):
        assert wanted <= dict(transformer.named_modules()).keys()
    assert {"hidden.0", "hidden.1", "head"} <= dict(MLP(4, (3, 2)).named_modules()).keys()


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_that_of_torch(causal):
    torch.manual_seed(0)
    ours = Attention(16, 4, causal=causal)
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
    mask = torch.ones(5, 5).triu(1).bool() if causal else None
    torch.testing.assert_close(ours(x), theirs(x, x, x, attn_mask=mask)[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: ResNet(0),
        lambda: ResNet(8, (1, 1)),
        lambda: ResNet(8, (1, 0, 1)),
        lambda: ResNet(8, classes=0),
        lambda: ResNet(8, stem_stride=0),
        lambda: ResNet(8, widths=(8, 16)),
        lambda: ResNet(8, widths=(8, 0, 32)),
        lambda: ResNet(8, inner=(8, 16)),
        lambda: ResNet(8, (1, 1, 2), inner=(8, 16, 0, 32)),
        lambda: MLP(0),
        lambda: MLP(4, width=0),
        lambda: MLP(4, width=3, depth=-1),
        lambda: MLP(4, (3, 0)),
        lambda: PatchTransformer(8, 3),
        lambda: PatchTransformer(dim=10, heads=4),
        lambda: PatchTransformer(depth=0),
        lambda: PatchTransformer(heads=0),
        lambda: PatchTransformer(heads=(4, 3)),
        lambda: PatchTransformer(heads=(4, 4, 4)),
        lambda: PatchTransformer(ff=0),
        lambda: PatchTransformer(ff=(16,)),
        lambda: PatchTransformer(head_dim=0),
        lambda: SequenceTransformer(0, 4),
        lambda: SequenceTransformer(4, 0),
        lambda: SequenceTransformer(4, 4, dim=10),
    ],
)
def test_impossible_sizes_are_refused(make):
    with pytest.raises(ValueError, match=r"at least [01]|must divide"):
        make()
