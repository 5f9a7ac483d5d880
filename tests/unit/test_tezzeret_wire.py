"""Jobs and outcomes on their way over a broker: the same at the other end, and nobody else's."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

import pytest
from tezzeret_support import MLP, SLOT, Hostile, spin

from esper.errors import CompilationError, SealBroken, UnknownKey
from esper.security import Envelope, Key, KeyRing
from esper.tezzeret.jobs import CompileJob, Outcome, attempt_here
from esper.tezzeret.pipeline import Pipeline, Trained
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.tezzeret.wire import Wire, decoded, encoded

JOB = CompileJob(Pipeline(TorchScriptTarget(), seed=3), MLP, SLOT)


def new_wire() -> Wire:
    return Wire(Envelope(KeyRing((Key(secrets.token_bytes(32)),), "the tests")))


def test_a_job_is_the_same_at_the_other_end() -> None:
    key, data = encoded(JOB)
    there = decoded(data)
    assert (there.blueprint, there.slot) == (MLP, SLOT)
    assert replace(there.pipeline, target=JOB.pipeline.target) == JOB.pipeline
    assert type(there.pipeline.target) is TorchScriptTarget
    assert encoded(there) == (key, data)
    assert encoded(replace(JOB, slot=replace(SLOT, out_features=9)))[0] != key
    assert encoded(replace(JOB, pipeline=replace(JOB.pipeline, optimise=False)))[0] != key


@pytest.mark.parametrize(
    "outcome",
    [attempt_here(JOB), Outcome("build", 0.5, "too large"), Outcome("parse", 0.0, "")],
    ids=["kernel", "failure", "no reason"],
)
def test_an_outcome_is_the_same_at_the_other_end(outcome: Outcome) -> None:
    wire = new_wire()
    assert wire.open_outcome(wire.seal_outcome(outcome, "k", "a"), "k", "a") == outcome


def test_what_was_sealed_for_another_job_or_attempt_does_not_open() -> None:
    wire, outcome = new_wire(), Outcome("build", 0.5, "too large")
    for key, attempt in (("k", "b"), ("l", "a")):
        with pytest.raises(SealBroken):
            wire.open_outcome(wire.seal_outcome(outcome, "k", "a"), key, attempt)
        with pytest.raises(SealBroken):
            wire.open_job(wire.seal_job(encoded(JOB)[1], "k", "a"), key, attempt)
    with pytest.raises(SealBroken):  # a job is no outcome
        wire.open_outcome(wire.seal_job(encoded(JOB)[1], "k", "a"), "k", "a")


def test_what_was_sealed_with_another_key_does_not_open() -> None:
    with pytest.raises(UnknownKey):
        new_wire().open_job(new_wire().seal_job(encoded(JOB)[1], "k", "a"), "k", "a")


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"kernel_id": "kernel_0123456789abcdef"},
        {"slot": {"layout": "features"}},
        {"pipeline": {"target": "torchscript", "budget": {}, "unheard": 1}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_job_of_another_version_is_refused(change: dict[str, Any]) -> None:
    document = json.loads(encoded(JOB)[1]) | change
    with pytest.raises(CompilationError, match="another version of Esper"):
        decoded(json.dumps(document).encode())


def test_an_outcome_of_another_version_is_refused() -> None:
    wire = new_wire()
    for data in (b"", b"{}\n", b'{"seconds": 1, "done": [{}, [1, 2, 3]]}\n123456'):
        sealed = wire._envelope.seal(data, "compile outcome k a")
        with pytest.raises(CompilationError, match="another version of Esper"):
            wire.open_outcome(sealed, "k", "a")


def test_what_other_machines_do_not_have_is_refused() -> None:
    with pytest.raises(CompilationError, match="of one's own is compiled on this machine only"):
        encoded(replace(JOB, pipeline=Pipeline(Hostile(spin))))
    with pytest.raises(CompilationError, match="weights from a run"):
        encoded(replace(JOB, trained=Trained({}, "kernel", "run", "decision")))
