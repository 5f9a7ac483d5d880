"""Every blueprint that ships can be exported, in every layout that it fits."""

from pathlib import Path

import torch
from export_support import Growth, grow, load_export, train_a_little
from torch import nn

from esper.blueprint import fits, load_blueprints
from esper.kasmina import wrap
from esper.messages import Slot
from esper.tezzeret.builder import build
from esper.tolaria.export import export_network

BLUEPRINTS = Path(__file__).parents[2] / "blueprints"
SLOTS = {
    "channels": Slot("channels", 8, 8),
    "halved": Slot("channels", 8, 8, 2),
    "tokens": Slot("tokens", 8, 8),
    "features": Slot("features", 8, 8),
}


class Chain(nn.Module):
    """A layer of each layout, eight features wide for each blueprint that fits it; the widest comes first."""

    def __init__(self, channels, halved, tokens, features):
        super().__init__()
        self.channels = nn.Conv2d(channels, channels, 1)
        self.halved = nn.Conv2d(halved, halved, 3, stride=2, padding=1)
        self.tokens = nn.Linear(tokens, tokens)
        self.features = nn.Linear(features, features)

    def forward(self, x):
        x = self.channels(x)
        x = self.halved(x[:, : self.halved.in_channels])
        x = self.tokens(x[:, : self.tokens.in_features].flatten(2).transpose(1, 2))
        return self.features(x.mean(1)[:, : self.features.in_features])


def test_every_shipped_blueprint_is_exported(tmp_path):
    torch.manual_seed(0)
    found = [blueprint for path in sorted(BLUEPRINTS.iterdir()) for blueprint in load_blueprints(path)]
    fitting = {name: [each for each in found if fits(each, slot)] for name, slot in SLOTS.items()}
    assert {each.name for group in fitting.values() for each in group} == {each.name for each in found}
    model = Chain(*(8 * len(group) for group in fitting.values()))
    x = torch.randn(4, 8 * len(fitting["channels"]), 6, 6)
    growths = []
    for name, group in fitting.items():
        growths += [Growth(name, i, build(each, SLOTS[name])) for i, each in enumerate(group)]
        if name != "features":
            wrap(model, x, include=(name,), seeds=len(group))
    grown = grow(model, x, growths, include=("features",), seeds=len(fitting["features"]))
    train_a_little(grown.model, x)
    report = export_network(grown.model, grown.kernels, x, tmp_path)
    assert report.max_difference < 1e-5
    assert report.parameters == sum(p.numel() for p in grown.model.parameters())
    network = load_export(tmp_path).load().train()
    network(x).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())
