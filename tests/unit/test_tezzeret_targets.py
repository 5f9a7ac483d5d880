"""The targets: programs that train, copy, save and load as the eager network does, and hold nothing else."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from esper.blueprint import Blueprint, parse_blueprint, plan
from esper.errors import CompilationError
from esper.messages import Slot
from esper.tezzeret.builder import build, unweighted
from esper.tezzeret.eager import EagerTarget
from esper.tezzeret.examples import example
from esper.tezzeret.export import ExportedKernel, ExportTarget
from esper.tezzeret.target import Target
from esper.tezzeret.targets import TARGETS, target_named
from esper.tezzeret.torchscript import TorchScriptTarget

torch.set_num_threads(1)
ALL = pytest.mark.parametrize("target", TARGETS.values(), ids=list(TARGETS))
IMAGES = Slot("channels", 4, 6, 2)


def blueprint(layout: str = "channels", op: str = "dropout") -> Blueprint:
    """A map, batch norm over channels, ``op``, and a map."""
    norm = {"id": "norm", "op": "batch_norm", "inputs": ["map"]}
    nodes: list[dict[str, Any]] = [
        {"id": "shrunk", "op": "pool", "inputs": ["x"], "params": {"stride": "stride"}},
        {"id": "map", "op": "linear", "inputs": ["shrunk"], "params": {"out": "out"}},
        *([norm] if layout == "channels" else []),
        {"id": "op", "op": op, "inputs": ["norm" if layout == "channels" else "map"]},
        {"id": "last", "op": "linear", "inputs": ["op"], "params": {"out": "out"}},
    ]
    data = {"version": 1, "name": "one", "layouts": [layout], "nodes": nodes, "output": "last"}
    return parse_blueprint(data)


def loaded(target: Target, slot: Slot = IMAGES, op: str = "dropout") -> tuple[nn.Module, nn.Module]:
    """An eager network, and its program as it comes out of storage."""
    eager = build(blueprint(slot.layout, op), slot)
    return eager, target.load(target.save(target.compile(eager)))


@ALL
def test_both_modes_and_the_statistics_are_those_of_the_network(target: Target) -> None:
    eager, program = loaded(target)
    assert list(program.state_dict()) == list(eager.state_dict())
    for training in (True, False, True):
        x = example(IMAGES, 5, 7)
        eager.train(training)
        program.train(training)
        torch.manual_seed(3)
        wanted = eager(x)
        torch.manual_seed(3)
        torch.testing.assert_close(program(x), wanted)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(program.state_dict()[name], value)
    assert program.state_dict()["norm.num_batches_tracked"] == 2  # eval mode counted nothing


@ALL
def test_copies_train_apart_and_are_saved_with_their_weights(target: Target) -> None:
    _, program = loaded(target)
    program.eval()
    twin = copy.deepcopy(program)
    for parameter in twin.parameters():
        parameter.detach_().requires_grad_()  # as the library does
    x = example(IMAGES, 3)
    before = program(x)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1e-2)
    twin(x).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close(program(x), before, rtol=0, atol=0)
    assert not torch.allclose(twin(x), before)
    again = target.load(target.save(twin)).eval()
    torch.testing.assert_close(again(x), twin(x))


@ALL
def test_a_program_takes_any_batch_and_extent(target: Target) -> None:
    eager, program = loaded(target)
    eager.eval()
    program.eval()
    for shape in ((1, 4, 1, 1), (1, 4, 2, 9), (7, 4, 11, 3)):
        x = torch.randn(shape)
        torch.testing.assert_close(program(x), eager(x))
    eager, program = loaded(target, Slot("features", 4, 4), "gelu")
    for leading in ((), (1,), (2, 3), (2, 1, 3)):
        x = torch.randn(*leading, 4)
        torch.testing.assert_close(program(x), eager(x))


@ALL
@pytest.mark.parametrize("op", ["layer_norm", "rms_norm", "gelu"])
def test_a_program_under_autocast_gives_what_the_network_gives(target: Target, op: str) -> None:
    eager, program = loaded(target, Slot("tokens", 4, 4), op)
    x = example(Slot("tokens", 4, 4))
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(program(x), eager(x), rtol=0.05, atol=0.05)  # of the same dtype


@ALL
def test_a_program_may_be_moved_to_double(target: Target) -> None:
    eager, program = loaded(target, op="gelu")
    x = example(IMAGES).double()
    torch.testing.assert_close(program.double().eval()(x), eager.double().eval()(x))


@pytest.mark.parametrize("target", [ExportTarget(), EagerTarget()])
def test_bytes_are_the_same_each_time_and_name_no_file(target: Target) -> None:
    saved = [target.save(target.compile(build(blueprint(), IMAGES))) for _ in range(2)]
    assert saved[0] == saved[1]
    assert b"site-packages" not in saved[0]
    target.check(target.load(saved[0]))


@ALL
def test_what_is_no_program_is_refused(target: Target) -> None:
    with pytest.raises(RuntimeError):
        target.load(b"\x10\0\0\0\0\0\0\0not a program at all")
    with pytest.raises(RuntimeError):
        target.check(nn.Identity())


def test_a_target_is_found_by_its_word() -> None:
    own = TorchScriptTarget()
    assert target_named("torchscript", own) is own
    assert target_named("eager", own) is TARGETS["eager"]
    with pytest.raises(CompilationError, match="no target 'onnx'"):
        target_named("onnx", own)


def test_export_refuses_what_it_would_fix_to_one_dtype() -> None:
    with pytest.raises(RuntimeError, match="an op changes the dtype"):
        ExportTarget().compile(build(blueprint("tokens", "fourier"), Slot("tokens", 4, 4)))


class Counting(nn.Module):
    """Does what no op of the table does."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bincount(torch.ones(3, dtype=torch.int64), minlength=1).sum()


def test_export_refuses_an_op_that_no_kernel_needs() -> None:
    exported = torch.export.export(Counting(), (torch.randn(2, 4),))
    program: nn.Module = type("Other", (ExportedKernel,), {"exported": exported})()
    with pytest.raises(RuntimeError, match=r"what no kernel may: .*aten::bincount"):
        ExportTarget().check(program)


def test_an_exported_archive_holds_no_pickle() -> None:
    target = ExportTarget()
    with zipfile.ZipFile(io.BytesIO(target.save(target.compile(build(blueprint(), IMAGES))))) as archive:
        for name in archive.namelist():
            content = archive.read(name)
            assert not content.startswith((b"\x80", b"PK")), name
            assert b'"use_pickle": true' not in content, name


def test_an_archive_that_holds_a_pickle_is_refused_before_torch_reads_it(tmp_path: Path) -> None:
    class Deed:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "done",))

    target = ExportTarget()
    saved = target.save(target.compile(build(blueprint(), IMAGES)))
    hostile = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved)) as good, zipfile.ZipFile(hostile, "w") as out:
        for name in good.namelist():
            content = good.read(name)
            if name.endswith("sample_inputs/model.pt"):
                inputs = io.BytesIO()
                torch.save(Deed(), inputs)
                content = inputs.getvalue()
            out.writestr(name, content)
    with pytest.raises(RuntimeError, match=r"sample_inputs/model.pt is pickled"):
        target.load(hostile.getvalue())
    assert not (tmp_path / "done").exists()


def test_eager_rebuilds_only_what_the_weights_fill() -> None:
    target = EagerTarget()
    saved = target.save(build(blueprint("features", "gelu"), Slot("features", 4, 4)))
    weights = safetensors.torch.load(saved)
    about = {
        "blueprint": blueprint("features", "gelu").canonical_json(),
        "slot": {"layout": "features", "in_features": 10**6, "out_features": 10**6, "stride": 1},
    }
    with pytest.raises(RuntimeError, match=r"size mismatch for map.weight"):
        target.load(
            safetensors.torch.save(weights, {"kernel": json.dumps(about)})
        )  # 4 TB, were they allocated
    huge = unweighted(plan(blueprint("features", "gelu"), Slot("features", 10**6, 10**6)))
    assert {parameter.device.type for parameter in huge.parameters()} == {"meta"}
