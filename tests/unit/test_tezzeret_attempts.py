"""What is tried when a kernel fails: unoptimised, another target, smaller; each on record, one alert."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tezzeret_support import MLP, SLOT, Hostile
from urza_support import open_sealed

from esper.blueprint import Blueprint, parse_blueprint
from esper.errors import CompilationError
from esper.messages import CompilationRecord, KernelArtefact, KernelMetadata
from esper.tezzeret.budget import Budget
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.targets import target_named
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.tezzeret.worker import compile_missing, stored_as

torch.set_num_threads(1)


class Library:
    """A library in memory, enough for compiling."""

    def __init__(self) -> None:
        self.kernels: dict[str, KernelArtefact] = {}
        self.records: list[CompilationRecord] = []
        self.alerts: list[CompilationRecord] = []

    def contains(self, kernel_id: str) -> bool:
        return kernel_id in self.kernels

    def put(self, artefact: KernelArtefact) -> None:
        self.kernels[artefact.metadata.kernel_id] = artefact

    def record_compilation(self, record: CompilationRecord) -> None:
        self.records.append(record)

    def compile(self, pipeline: Pipeline, blueprint: Blueprint) -> list[tuple[Any, ...]]:
        """What became of each attempt: status, target, stage, configuration."""
        records = compile_missing(pipeline, self, [(blueprint, SLOT)], on_failure=self.alerts.append)
        assert records == self.records[len(self.records) - len(records) :]
        assert {record.blueprint_id for record in records} <= {blueprint.blueprint_id}
        return [
            (record.status, record.target, record.stage, str(record.reason).rpartition("[")[2].rstrip("]"))
            for record in records
        ]


def fail() -> None:
    raise RuntimeError("it fails on purpose")


def wide(**fields: Any) -> Blueprint:
    """One hidden layer of 64."""
    nodes = [
        {"id": "up", "op": "linear", "inputs": ["x"], "params": {"out": "h"}},
        {"id": "down", "op": "linear", "inputs": ["up"], "params": {"out": "out"}},
    ]
    data = {"version": 1, "name": "wide", "layouts": ["features"], "nodes": nodes, "output": "down"}
    return parse_blueprint({**data, "sizes": {"h": "8*in"}, **fields})


FAILING = Pipeline(Hostile(fail), fallbacks=["export", "eager"])


def test_another_target_stands_in_and_says_so() -> None:
    library = Library()
    assert library.compile(FAILING, MLP) == [
        ("failed", "torchscript", "compile", "torchscript, cpu, float32, optimised"),
        ("failed", "torchscript", "compile", "torchscript, cpu, float32, not optimised"),
        ("compiled", "export", None, "export, cpu, float32, not optimised, instead of torchscript"),
    ]
    (made,) = library.kernels.values()
    assert made.metadata.target == "export"
    assert "fallback" in made.metadata.tags
    assert library.alerts == []
    assert library.compile(FAILING, MLP) == []  # it is there
    assert stored_as(library, FAILING, MLP, SLOT) == made.metadata.kernel_id


def test_a_kernel_that_was_asked_for_is_no_fallback_of_another() -> None:
    library = Library()
    eager = Pipeline(target_named("eager"))
    assert [status for status, *_ in library.compile(eager, MLP)] == ["compiled"]
    (asked,) = library.kernels.values()
    assert "fallback" not in asked.metadata.tags
    pipeline = replace(eager, target=TorchScriptTarget(), fallbacks=["eager"])
    assert stored_as(library, pipeline, MLP, SLOT) is None
    library.compile(pipeline, MLP)
    library.compile(replace(pipeline, target=Hostile(fail)), wide())
    assert sorted(one.metadata.target for one in library.kernels.values()) == [
        "eager", "eager", "torchscript",
    ]  # fmt: skip


def test_what_is_over_its_budget_is_made_smaller_where_it_may_be() -> None:
    library = Library()
    pipeline = Pipeline(TorchScriptTarget(), budget=Budget(parameters=300), fallbacks=["eager"])
    blueprint = wide(least={"h": 8})
    smaller = f"torchscript, cpu, float32, optimised, instead of {blueprint.blueprint_id}"
    assert library.compile(pipeline, blueprint) == [
        ("failed", "torchscript", "build", "torchscript, cpu, float32, optimised"),
        ("failed", "torchscript", "build", smaller),
        ("compiled", "torchscript", None, smaller),
    ]
    (made,) = library.kernels.values()
    assert made.metadata.parameters == 8 * 16 + 16 + 16 * 6 + 6
    assert made.metadata.parent_blueprint == blueprint.blueprint_id != made.metadata.blueprint_id
    assert "fallback" in made.metadata.tags
    assert library.compile(pipeline, blueprint) == []
    assert library.alerts == []


def test_one_alert_when_all_attempts_are_spent() -> None:
    library = Library()
    budget = Budget(parameters=10)
    too_large = Pipeline(TorchScriptTarget(), budget=budget, fallbacks=["eager"])
    assert len(library.compile(too_large, wide(least={"h": 1}))) == 4  # three times halved
    assert len(library.compile(too_large, wide())) == 1  # another target has no other budget
    assert [alert.stage for alert in library.alerts] == ["build", "build"]
    alone = replace(FAILING, fallbacks=[])
    assert len(library.compile(alone, MLP)) == 2
    assert len(library.alerts) == 3
    assert library.kernels == {}


def test_fallbacks_are_targets_that_there_are() -> None:
    with pytest.raises(CompilationError, match="no target 'onnx'"):
        Pipeline(TorchScriptTarget(), fallbacks=["onnx"])
    with pytest.raises(CompilationError, match="must be a list"):
        Pipeline(TorchScriptTarget(), fallbacks="eager")


def test_kernels_of_all_targets_live_in_one_library_and_load_as_what_they_are(tmp_path: Any) -> None:
    def load(metadata: KernelMetadata, program: bytes) -> torch.nn.Module:
        return target_named(metadata.target).load(program)

    x = torch.randn(3, SLOT.in_features)
    with open_sealed(f"sqlite:///{tmp_path}/kernels.db", load) as library:
        outputs = {}
        for name in ("torchscript", "export", "eager"):
            pipeline = Pipeline(target_named(name))
            compile_missing(pipeline, library, [(MLP, SLOT)])
            kernel = library.fetch(pipeline.kernel_id(MLP, SLOT))
            assert kernel.metadata.target == name
            library.verify(kernel.metadata.kernel_id)
            outputs[name] = kernel.module(x)
            outputs[name].sum().backward()
            assert all(parameter.grad is not None for parameter in kernel.module.parameters())
    for output in outputs.values():
        torch.testing.assert_close(output, outputs["torchscript"])
