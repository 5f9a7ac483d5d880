"""The pipeline: stages, identity before compiling, artefacts that train, second attempts."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from esper.blueprint import Blueprint, from_json, load_blueprints, parse_blueprint
from esper.errors import BlueprintError, CompilationError
from esper.messages import CompilationRecord, KernelArtefact, Slot
from esper.tezzeret.budget import Budget
from esper.tezzeret.builder import build
from esper.tezzeret.examples import example
from esper.tezzeret.pipeline import STAGES, Pipeline, StageClock
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.tezzeret.worker import compile_missing

torch.set_num_threads(1)
BLUEPRINTS = Path(__file__).parents[2] / "blueprints"
SLOT = Slot("features", 8, 6)
IMAGES = Slot("channels", 4, 6, 2)


@pytest.fixture(scope="module")
def mlp() -> Blueprint:
    return load_blueprints(BLUEPRINTS / "bottleneck_mlp.yaml")[0]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(TorchScriptTarget())


@pytest.fixture(scope="module")
def artefact(pipeline: Pipeline, mlp: Blueprint) -> KernelArtefact:
    return pipeline.compile(mlp, SLOT)


def dead() -> Blueprint:
    """A valid blueprint that fails in validation: what it computes is always zero."""
    nodes = [
        {"id": "a", "op": "linear", "inputs": ["x"], "params": {"out": "out"}},
        {"id": "b", "op": "scale", "inputs": ["a"], "params": {"init": 0.0}},
    ]
    return parse_blueprint(
        {"version": 1, "name": "dead", "layouts": ["features"], "nodes": nodes, "output": "b"}
    )


def test_metadata_describes_the_kernel(artefact: KernelArtefact, pipeline: Pipeline, mlp: Blueprint) -> None:
    metadata = artefact.metadata
    assert metadata.kernel_id == pipeline.kernel_id(mlp, SLOT)
    assert metadata.blueprint_id == mlp.blueprint_id
    assert (metadata.input_shape, metadata.output_shape, metadata.slot) == ((8,), (6,), SLOT)
    assert metadata.tags == ("bottleneck", "linear", "mlp", "validated")
    assert metadata.parameters == 8 * 2 + 2 + 2 * 6 + 6
    assert (metadata.target, metadata.device, metadata.dtype) == ("torchscript", "cpu", "float32")
    assert metadata.program_digest == hashlib.sha256(artefact.program).hexdigest()
    assert metadata.weights_digest == hashlib.sha256(artefact.weights).hexdigest()
    assert (metadata.program_bytes, metadata.weights_bytes) == (len(artefact.program), len(artefact.weights))
    assert 0 < metadata.performance_score < 1
    assert metadata.latency_ms > 0
    assert metadata.latency_ratio > 0
    assert from_json(artefact.blueprint) == mlp


def test_kernel_id_follows_all_that_decides_the_kernel(pipeline: Pipeline, mlp: Blueprint) -> None:
    other = mlp.model_copy(update={"name": "other"})
    ids = [
        pipeline.kernel_id(mlp, SLOT),
        pipeline.kernel_id(mlp, Slot("features", 8, 7)),
        pipeline.kernel_id(mlp, Slot("tokens", 8, 6)),
        pipeline.kernel_id(parse_blueprint(other.model_dump(mode="json")), SLOT),
        replace(pipeline, seed=1).kernel_id(mlp, SLOT),
        replace(pipeline, dtype="float64").kernel_id(mlp, SLOT),
        replace(pipeline, device="cuda").kernel_id(mlp, SLOT),
    ]
    assert len(set(ids)) == len(ids)
    assert replace(pipeline, optimise=False).kernel_id(mlp, SLOT) == ids[0]


@pytest.mark.parametrize(("name", "slot"), [("bottleneck_mlp", SLOT), ("residual_conv", IMAGES)])
def test_program_and_weights_are_the_network(name: str, slot: Slot, pipeline: Pipeline) -> None:
    blueprint = load_blueprints(BLUEPRINTS / f"{name}.yaml")[0]
    made = pipeline.compile(blueprint, slot)
    assert ("optimized" in made.metadata.tags) == (slot.layout == "channels")
    program = pipeline.target.load(made.program)
    rebuilt = build(from_json(made.blueprint), slot, seed=99)
    rebuilt.load_state_dict(safetensors.torch.load(made.weights))
    x = example(slot, 3, 7)
    torch.testing.assert_close(program.eval()(x), rebuilt.eval()(x))
    assert program.state_dict().keys() == rebuilt.state_dict().keys()


def test_a_loaded_program_trains(artefact: KernelArtefact, pipeline: Pipeline) -> None:
    program = pipeline.target.load(artefact.program)
    assert sum(parameter.numel() for parameter in program.parameters()) == artefact.metadata.parameters
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y = torch.tanh(x @ torch.randn(8, 6))
    optimizer = torch.optim.Adam(program.parameters(), lr=1e-2)
    losses = []
    for _ in range(60):
        loss = nn.functional.mse_loss(program(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_each_load_is_a_fresh_module(artefact: KernelArtefact, pipeline: Pipeline) -> None:
    first, second = (pipeline.target.load(artefact.program) for _ in range(2))
    with torch.no_grad():
        next(first.parameters()).zero_()
    assert next(second.parameters()).any()


def test_stages_are_timed_and_the_random_state_is_left_alone(pipeline: Pipeline, mlp: Blueprint) -> None:
    clock = StageClock()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = pipeline.compile(mlp, SLOT, clock)
    assert torch.equal(torch.get_rng_state(), before)
    assert tuple(clock.seconds) == STAGES
    assert all(seconds > 0 for seconds in clock.seconds.values())
    assert 0 < made.metadata.compilation_time <= clock.total


def test_compiling_twice_gives_the_same_weights_and_score(
    artefact: KernelArtefact, pipeline: Pipeline, mlp: Blueprint
) -> None:
    again = pipeline.compile(mlp, SLOT)
    assert again.weights == artefact.weights
    assert again.metadata.performance_score == artefact.metadata.performance_score


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes(dtype: str, pipeline: Pipeline, mlp: Blueprint) -> None:
    made = replace(pipeline, dtype=dtype).compile(mlp, SLOT)
    loaded = pipeline.target.load(made.program)
    assert {str(parameter.dtype) for parameter in loaded.parameters()} == {f"torch.{dtype}"}


def test_unknown_dtype_names_those_there_are(pipeline: Pipeline) -> None:
    with pytest.raises(CompilationError, match="one of: float32, float64, bfloat16"):
        replace(pipeline, dtype="int8")


def test_failures_name_blueprint_slot_and_stage(pipeline: Pipeline, mlp: Blueprint) -> None:
    with pytest.raises(CompilationError, match=r"dead for features 8->6: validate: output .* zero") as failed:
        pipeline.compile(dead(), SLOT)
    assert failed.value.stage == "validate"
    clock = StageClock()
    with pytest.raises(BlueprintError, match="36 parameters; the budget is 10"):
        replace(pipeline, budget=Budget(parameters=10)).compile(mlp, SLOT, clock)
    assert (clock.stage, list(clock.seconds)) == ("build", ["parse", "build"])


class Library:
    """A library in memory, enough for the worker."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelArtefact] = {}
        self.records: list[CompilationRecord] = []

    def contains(self, kernel_id: str) -> bool:
        return kernel_id in self.kernels

    def put(self, artefact: KernelArtefact) -> None:
        self.kernels[artefact.metadata.kernel_id] = artefact

    def record_compilation(self, record: CompilationRecord) -> None:
        self.records.append(record)


class BreaksWhenOptimised(TorchScriptTarget):
    """Its optimiser does harm that only validation can see."""

    def optimise(self, program: nn.Module, device: torch.device) -> tuple[str, ...]:
        with torch.no_grad():
            next(program.parameters()).fill_(torch.nan)
        return ("harm",)


def outcomes(records: list[CompilationRecord]) -> list[tuple[Any, ...]]:
    return [(record.blueprint_name, record.status, record.stage) for record in records]


def test_worker_compiles_what_is_missing_and_one_failure_stops_nothing(
    pipeline: Pipeline, mlp: Blueprint
) -> None:
    library, seen = Library(), []
    pairs = [(dead(), SLOT), (mlp, SLOT), (mlp, IMAGES), (mlp, SLOT)]
    records = compile_missing(pipeline, library, pairs, seen.append)
    assert outcomes(records) == [
        ("dead", "failed", "validate"),
        ("dead", "failed", "validate"),  # the second attempt
        ("bottleneck_mlp", "compiled", None),
        ("bottleneck_mlp", "compiled", None),
    ]
    assert records == seen == library.records
    assert [record.kernel_id for record in records[2:]] == list(library.kernels)
    assert "zero everywhere" in str(records[0].reason)
    assert all(record.seconds > 0 for record in records)
    assert compile_missing(pipeline, library, pairs[1:]) == []


def test_worker_tries_again_unoptimised(mlp: Blueprint) -> None:
    library = Library()
    pipeline = Pipeline(BreaksWhenOptimised())
    records = compile_missing(pipeline, library, [(mlp, SLOT)])
    assert outcomes(records) == [
        ("bottleneck_mlp", "failed", "validate"),
        ("bottleneck_mlp", "compiled", None),
    ]
    (made,) = library.kernels.values()
    assert "optimized" not in made.metadata.tags
    assert "fallback" in made.metadata.tags
    assert records[1].reason == "torchscript, cpu, float32, not optimised"
    assert compile_missing(pipeline, library, [(mlp, SLOT)]) == []  # what stands in is not made again
    once = compile_missing(replace(pipeline, optimise=False), Library(), [(mlp, SLOT)])
    assert outcomes(once) == [("bottleneck_mlp", "compiled", None)]
    hopeless = compile_missing(replace(pipeline, optimise=False), Library(), [(dead(), SLOT)])
    assert outcomes(hopeless) == [("dead", "failed", "validate")]  # no other configuration is left


def test_worker_does_not_retry_what_no_configuration_changes(pipeline: Pipeline, mlp: Blueprint) -> None:
    small = replace(pipeline, budget=Budget(parameters=10))
    records = compile_missing(small, Library(), [(mlp, SLOT), (mlp, Slot("features", 1, 1))])
    assert outcomes(records) == [("bottleneck_mlp", "failed", "build"), ("bottleneck_mlp", "compiled", None)]
    misfit = compile_missing(pipeline, Library(), [(dead(), IMAGES)])
    assert outcomes(misfit) == [("dead", "failed", "parse")]
