"""Ways to compute a step, with each other and with growth. Each pair alone: tests/drills/pairs.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from drills.pairs import BASE, WAYS, check, pairs, train
from safetensors.torch import load_file

from esper.assembly.exporting import export_run
from esper.assembly.training import build_training
from esper.errors import ConfigError
from esper.tolaria.run import weights_digest
from esper_cli.config import compose, compose_from

TOGETHER = (
    ("bf16", "accumulate", "clip", "ema", "compile", "kernels"),
    ("fp16", "accumulate", "clip", "ema", "compile", "widening"),
    ("bf16", "widening"),
    ("fp16", "kernels"),
)
"""Few runs in which each two ways meet."""


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    yield
    torch.compiler.reset()


def test_each_two_meet() -> None:
    met = {pair for ways in TOGETHER for pair in itertools.combinations(WAYS, 2) if set(pair) <= set(ways)}
    assert met == set(pairs())


@pytest.mark.parametrize("ways", TOGETHER, ids="-".join)
def test_together_they_learn_grow_and_go_on_exactly(ways: tuple[str, ...], tmp_path: Path) -> None:
    assert check(ways, tmp_path, stops=(8,)) == []


def test_with_none_of_them_a_run_is_a_plain_loop_to_the_last_bit(tmp_path: Path) -> None:
    whole = train((), tmp_path / "whole")[1]
    plain = build_training(compose([*BASE, f"runs={tmp_path}"])).trainer
    for epoch in range(4):
        plain.model.train()
        for step, (x, y) in enumerate(plain.batches.epoch(epoch)):
            plain.schedule.apply(plain.optimizer, (epoch + step / len(plain.batches)) / 4)
            plain.optimizer.zero_grad()
            torch.nn.functional.cross_entropy(plain.model(x), y).backward()
            plain.optimizer.step()
    assert weights_digest(plain.model) == whole["weights_sha256"]
    others = {way: train((way,), tmp_path / way)[1] for way in ("bf16", "fp16", "accumulate", "clip")}
    digests = {whole["weights_sha256"], *(other["weights_sha256"] for other in others.values())}
    assert len(digests) == 1 + len(others)  # none of them is a word that nothing hears
    assert {(o["training_flops"], o["steps"]) for o in others.values()} == {
        (whole["training_flops"], whole["steps"])
    }

    losses = [summary["held_out"]["loss"] for summary in (others["accumulate"], whole)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # the same gradient, summed in parts


def test_what_is_reported_exported_and_started_from_are_the_averages(tmp_path: Path) -> None:
    trainer, summary = train(("ema",), tmp_path)
    run = Path(summary["folder"])
    export_run(compose_from(run / "config.yaml", []), run, tmp_path / "out")
    exported = load_file(tmp_path / "out" / "model.safetensors")
    averages = trainer.state()["average"]["values"]
    assert sorted(float(v.sum()) for v in averages.values()) == sorted(
        float(v.sum()) for v in exported.values()
    )
    started = build_training(compose([*BASE, f"runs={tmp_path}", f"tolaria.start={run}"])).trainer
    assert started.held_out.evaluate().loss == pytest.approx(summary["held_out"]["loss"])


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["tolaria.precision=fp8"], "tolaria.precision must be one of bf16, fp16 or null"),
        (["tolaria.precision=fp16", "tolaria.autocast=true"], "autocast=true is bf16"),
        (["tolaria.compile=fast"], "tolaria.compile must be one of inductor, aot_eager, eager or null"),
        (["tolaria.ema=1.5"], "tolaria.ema must be at most 1"),
        (["tolaria.accumulate=0"], "tolaria.accumulate must be at least 1"),
    ],
)
def test_what_no_step_can_be_is_refused(overrides: list[str], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        build_training(compose([*BASE, f"runs={tmp_path}", *overrides]))
    assert not list(tmp_path.iterdir())
