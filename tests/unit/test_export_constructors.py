"""Constructors read back from modules of ``torch.nn``."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from esper.errors import RunError
from esper.tolaria.export.constructors import constructor, function_name, is_plain, literal

MODULES = [
    lambda: nn.Linear(3, 4),
    lambda: nn.Linear(3, 4, bias=False),
    lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
    lambda: nn.Conv2d(2, 4, (3, 1), padding=(1, 0), groups=2, dilation=2),
    lambda: nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect"),
    lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1),
    lambda: nn.BatchNorm2d(4, eps=1e-3),
    lambda: nn.BatchNorm2d(4, affine=False),
    lambda: nn.BatchNorm1d(4, momentum=None, track_running_stats=False),
    lambda: nn.InstanceNorm2d(3, affine=True),
    lambda: nn.LayerNorm((4, 2), bias=False),
    lambda: nn.LayerNorm(4, elementwise_affine=False),
    lambda: nn.GroupNorm(2, 4, affine=False),
    lambda: nn.RMSNorm(4),
    lambda: nn.MultiheadAttention(8, 2, dropout=0.1, bias=False, batch_first=True),
    lambda: nn.MultiheadAttention(8, 2, kdim=4, add_bias_kv=True, add_zero_attn=True),
    lambda: nn.LSTM(3, 4, 2, bidirectional=True, batch_first=True, dropout=0.2, proj_size=2),
    lambda: nn.GRU(3, 4, bias=False),
    lambda: nn.TransformerEncoderLayer(
        8, 2, 16, activation="gelu", norm_first=True, batch_first=True, dropout=0.2
    ),
    lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, bias=False), 2, norm=nn.LayerNorm(8)
    ),
    lambda: nn.GELU("tanh"),
    lambda: nn.ReLU(inplace=True),
    lambda: nn.ReLU6(),
    lambda: nn.Hardtanh(-2, 2),
    lambda: nn.PReLU(4),
    lambda: nn.ELU(math.inf),
    lambda: nn.Softmax(-1),
    lambda: nn.Flatten(),
    lambda: nn.Unflatten(1, (2, 2)),
    lambda: nn.Embedding(4, 3, padding_idx=0),
    lambda: nn.EmbeddingBag(4, 3, mode="sum"),
    lambda: nn.MaxPool2d(2),
    lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    lambda: nn.AdaptiveAvgPool2d((None, 2)),
    lambda: nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True),
    lambda: nn.ConstantPad2d((1, 2, 0, 0), 3.0),
    lambda: nn.Dropout(0.1),
    lambda: nn.Identity(3),
]


def rebuilt(module):
    name, arguments = constructor(module, "layer")
    return eval(f"{name}({', '.join(arguments)})", {"nn": nn, "torch": torch, "F": F})


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")
@pytest.mark.parametrize("make", MODULES, ids=lambda make: inspect.getsource(make).strip()[8:40])
def test_a_module_is_built_again_with_the_same_form_and_state(make):
    module = make()
    again = rebuilt(module)
    assert repr(again) == repr(module)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in module.state_dict().items()
    }


def test_what_repr_does_not_show_is_kept():
    assert rebuilt(nn.RNN(3, 4, nonlinearity="relu")).nonlinearity == "relu"
    assert rebuilt(nn.MultiheadAttention(8, 2, dropout=0.25, batch_first=True)).dropout == 0.25
    layer = rebuilt(nn.TransformerEncoderLayer(8, 2, 16, activation="gelu"))
    assert layer.activation is F.gelu


def test_arguments_at_their_default_are_left_out():
    assert constructor(nn.Conv2d(1, 8, 3, padding=1), "conv") == ("nn.Conv2d", ["1", "8", "3", "padding=1"])
    assert constructor(nn.LayerNorm(8), "norm") == ("nn.LayerNorm", ["8"])


class Custom(nn.Linear):
    pass


def test_only_classes_of_torch_nn_are_plain():
    assert is_plain(nn.Linear(1, 1))
    assert not is_plain(nn.Sequential(nn.Linear(1, 1)))
    assert not is_plain(Custom(1, 1))
    with pytest.raises(RunError, match=r"'stem\.conv': Custom is no class of torch.nn"):
        constructor(Custom(1, 1), "stem.conv")
    with pytest.raises(RunError, match="ParametrizedLinear"):
        constructor(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), "head")


def test_an_argument_that_the_module_does_not_keep_is_an_error():
    with pytest.raises(RunError, match=r"'distance'.*argument 'p'"):
        constructor(nn.PairwiseDistance(), "distance")


LITERALS = [
    *(None, True, -3, 0.1, 1e300, math.inf, -math.inf, 2j, "same", 'it\'s "quoted"\\\n', "", "ключ"),
    *((1,), (), [1, [2.5]], slice(None, 3), ...),
    *(torch.float16, torch.channels_last, torch.Size([2, 3]), F.relu, torch.fft.rfft),
]
NOT_LITERALS = [torch.zeros(2), torch.device("cpu"), object(), {"a": 1}, len, print]


@pytest.mark.parametrize("value", LITERALS, ids=lambda value: type(value).__name__)
def test_a_literal_evaluates_to_its_value(value):
    assert eval(literal(value, "x"), {"torch": torch, "F": F}) == value


@pytest.mark.parametrize("value", NOT_LITERALS, ids=lambda value: type(value).__name__)
def test_what_has_no_literal_is_an_error(value):
    with pytest.raises(RunError, match="the third argument of cat"):
        literal(value, "the third argument of cat")


def test_functions_are_named_as_in_public():
    assert function_name(F.gelu) == "F.gelu"
    assert function_name(torch.cat) == "torch.cat"
    assert function_name(F.max_pool2d) == "F.max_pool2d"
    assert function_name(math.sqrt) == "math.sqrt"
    assert function_name(eval) is None
