"""From blueprint files to kernels that are found, fetched and trained, through the real library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from urza_support import open_sealed

from esper.assembly.kernels import fill_library, missing_kernels
from esper.karn.catalogue import fitting, load_catalogue
from esper.messages import KernelMetadata, Slot
from esper.tezzeret.examples import example
from esper.tezzeret.pipeline import Pipeline
from esper.tezzeret.torchscript import TorchScriptTarget
from esper.tezzeret.worker import compile_missing
from esper.urza import open_library
from esper_cli.config import compose

torch.set_num_threads(1)
BLUEPRINTS = Path(__file__).parents[2] / "blueprints"
SLOT = Slot("channels", 4, 6, 2)


def test_compiled_kernels_are_found_fetched_and_trained(tmp_path: Path) -> None:
    target = TorchScriptTarget()
    pipeline = Pipeline(target)

    def load(metadata: KernelMetadata, program: bytes) -> torch.nn.Module:
        return target.load(program, metadata.device)

    paths = [BLUEPRINTS / f"{name}.yaml" for name in ("low_rank", "squeeze_excite", "swiglu")]
    blueprints = fitting(load_catalogue(paths).blueprints, SLOT)
    with open_sealed(f"sqlite:///{tmp_path}/kernels.db", load) as library:
        records = compile_missing(pipeline, library, [(blueprint, SLOT) for blueprint in blueprints])
        assert [record.status for record in records] == ["compiled"] * 3
        assert compile_missing(pipeline, library, [(blueprint, SLOT) for blueprint in blueprints]) == []
        assert library.compilations() == records

        found = library.find(SLOT)
        assert [metadata.performance_score for metadata in found] == sorted(
            (metadata.performance_score for metadata in found), reverse=True
        )
        (gated,) = library.find(SLOT, tags=["squeeze-excite"])
        kernel = library.fetch(gated.kernel_id)
        x = example(SLOT, 2, 7)
        made = kernel.module(x)
        assert made.shape == (2, 6, 4, 4)
        made.square().sum().backward()
        assert all(parameter.grad is not None for parameter in kernel.module.parameters())


class Broken(TorchScriptTarget):
    """Compiles nothing."""

    def compile(self, module: torch.nn.Module) -> torch.nn.Module:
        raise RuntimeError("this target fails on purpose")


def test_a_kernel_that_is_tried_twice_counts_once_in_the_progress() -> None:
    told: list[dict[str, Any]] = []
    cfg = compose([f"karn.paths=[{BLUEPRINTS / 'low_rank.yaml'},{BLUEPRINTS / 'swiglu.yaml'}]"])
    with open_library("sqlite://", lambda *_: torch.nn.Identity()) as library:
        listeners = [lambda event, fields: told.append(dict(fields))]
        pipeline = Pipeline(Broken())
        missing = missing_kernels(cfg, library, pipeline, [SLOT], listeners)
        fill_library(cfg, library, pipeline, missing, listeners)
    assert [(fields["done"], fields["total"]) for fields in told] == [(1, 2), (1, 2), (2, 2), (2, 2)]
