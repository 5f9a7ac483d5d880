"""Networks that this project did not write, and what a network gives in both modes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def call(model: nn.Module, x: Any) -> Tensor:
    y = model(*x) if isinstance(x, tuple) else model(x)
    return y[0] if isinstance(y, tuple | list) else y


def outputs(model: nn.Module, x: Any) -> list[Tensor]:
    """In eval and in train mode, without dropout; buffers stay."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    dropouts = [m for m in model.modules() if isinstance(m, nn.modules.dropout._DropoutNd)]
    found = []
    with torch.no_grad():
        for training in (False, True):
            model.train(training)
            for dropout in dropouts:
                dropout.training = False
            for m in model.modules():
                if isinstance(m, nn.MultiheadAttention):
                    m.dropout = 0.0
            found.append(call(model, x).clone())
        for name, b in model.named_buffers():
            b.copy_(buffers[name])
    return found


def worst(a: list[Tensor], b: list[Tensor]) -> float:
    return max(float((x - y).abs().max() / x.abs().max()) for x, y in zip(a, b, strict=True))


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, norm_first=True, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(3, 8), stack, nn.Linear(8, 2))


def densenet() -> nn.Module:
    from monai.networks.nets import DenseNet

    return DenseNet(2, 1, 3, init_features=8, growth_rate=4, block_config=(2, 2), bn_size=2)


def segresnet() -> nn.Module:
    from monai.networks.nets import SegResNet

    return SegResNet(2, 8, 1, 2, blocks_down=(1, 1), blocks_up=(1,))


def unet() -> nn.Module:
    from monai.networks.nets import UNet

    return UNet(2, 1, 2, (4, 8, 16), (2, 2), num_res_units=1)


def ft_transformer() -> nn.Module:
    from rtdl_revisiting_models import FTTransformer

    return FTTransformer(
        n_cont_features=4,
        cat_cardinalities=[3],
        d_out=2,
        n_blocks=2,
        d_block=16,
        attention_n_heads=4,
        attention_dropout=0.0,
        ffn_d_hidden=None,
        ffn_d_hidden_multiplier=1.5,
        ffn_dropout=0.0,
        residual_dropout=0.0,
    )


IMAGE = (2, 1, 16, 16)
HOSTS = {
    "torch TransformerEncoder": (encoder, (2, 5, 3)),
    "MONAI DenseNet": (densenet, IMAGE),
    "MONAI SegResNet": (segresnet, IMAGE),
    "MONAI UNet": (unet, IMAGE),
    "FT-Transformer": (ft_transformer, (3, 4)),
}


def public_network(name: str) -> tuple[nn.Module, Any]:
    """The network ``name`` in float64, the same each time, and an example for it."""
    make, shape = HOSTS[name]
    torch.manual_seed(0)
    model = make().double()
    generator = torch.Generator().manual_seed(0)
    x: Any = torch.randn(shape, generator=generator, dtype=torch.float64)
    return model, (x, torch.tensor([[0], [1], [2]])) if name == "FT-Transformer" else x
