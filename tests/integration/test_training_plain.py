"""Without growth a run is the loop that one would write by hand, to the last bit of the weights."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from esper.assembly.network import build_data, build_model
from esper.assembly.training import build_training
from esper.kasmina import unwrap
from esper_cli.config import compose

OVERRIDES = [
    "+experiment=smoke",
    "tamiyo=never",
    "urza=memory",
    "model.norm=true",
    "tolaria.epochs=4",
    "seed=3",
]


def test_a_run_that_never_grows_is_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cfg = compose(OVERRIDES)
    run = build_training(cfg)
    run.run()
    trained = unwrap(run.trainer.model).state_dict()

    data = build_data(cfg)
    batches = data.batches(64, seed=3)
    torch.manual_seed(3)
    model = build_model(cfg, data)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True, weight_decay=5e-4)
    for epoch in range(4):
        for step, (x, y) in enumerate(batches.epoch(epoch)):
            done = (epoch + step / len(batches)) / 4
            cooled = max(0.0, (done - 0.6) / 0.4)
            optimizer.param_groups[0]["lr"] = (
                0.1 * max(0.01, min(1.0, done / 0.05)) * (1 + math.cos(math.pi * cooled)) / 2
            )
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()

    plain = model.state_dict()
    assert plain.keys() == trained.keys()
    for name, value in plain.items():
        assert torch.equal(value, trained[name]), name
