"""``esper kernels export`` and ``import``: kernels from library to library through files of anybody's."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import forked
import pytest
import safetensors.torch
import torch
from forbidding import forbid_filters
from hostile_programs import BLUEPRINT, SHAPE, Overtaken, Plain, good, scripted
from torch import nn

from esper.assembly.kernels import build_pipeline
from esper.assembly.storage import build_library
from esper.blueprint import load_blueprints
from esper.errors import RefusedProgram
from esper.messages import KernelMetadata, Slot
from esper.tezzeret import importing
from esper.tezzeret.importing import Importer
from esper.tezzeret.kernelfile import read_kernel, write_kernel
from esper.tezzeret.pipeline import Trained
from esper.tezzeret.pool import WorkerPool
from esper.tezzeret.torchscript import TorchScriptTarget
from esper_cli import app
from esper_cli.config import compose

Output = pytest.CaptureFixture[str]
SLOT = Slot("features", 8, 6)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "theirs"))
    monkeypatch.delenv("COLUMNS", raising=False)
    (tmp_path / "offered.yaml").write_text(BLUEPRINT)
    return tmp_path


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1, nice=0) as pool:
        yield pool


@pytest.fixture
def shared(pool: WorkerPool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands use the pool of the module: to start one of their own takes seconds."""
    monkeypatch.setattr("esper.assembly.importing.WorkerPool", lambda *_: nullcontext(pool))


def esper(capsys: Output, *args: str) -> tuple[int, str, str]:
    code = app.run(["kernels", *args])
    out, err = capsys.readouterr()
    return code, out, err


def stored(trained: Trained | None = None) -> KernelMetadata:
    """A kernel of the blueprint, put into the library of the moment."""
    cfg = compose([])
    (blueprint,) = load_blueprints(Path("offered.yaml"))
    with build_library(cfg) as library:
        return library.put(build_pipeline(cfg).compile(blueprint, SLOT, trained=trained))


def all_stored() -> list[KernelMetadata]:
    from esper.urza import KernelQuery

    with build_library(compose([])) as library:
        return library.query(KernelQuery(sort="id"))


@pytest.mark.usefixtures("shared")
def test_a_kernel_goes_through_a_file_and_comes_out_the_same(
    home: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = stored()
    learned = {name: value + 0.5 for name, value in Plain().state_dict().items()}
    better = stored(Trained(learned, plain.kernel_id, "a_run", "epoch 3, layer, seed 0"))
    for kernel in (plain, better):
        code, out, _ = esper(capsys, "export", kernel.kernel_id, f"{kernel.kernel_id}.safetensors")
        assert code == 0
        assert out.startswith(f"wrote {kernel.kernel_id}.safetensors: {kernel.kernel_id} (offered for ")
    assert Path(f"{plain.kernel_id}.safetensors").read_bytes().find(os.fsencode(home)) == -1

    monkeypatch.setenv("ESPER_HOME", str(home / "ours"))  # with keys of its own
    files = [f"{kernel.kernel_id}.safetensors" for kernel in (plain, better)]
    code, out, err = esper(capsys, "import", *files)
    assert (code, out.splitlines()[-1]) == (0, "2 kernels imported, 0 already there, 0 files refused")
    assert "refused" not in err
    for theirs in (plain, better):
        (ours,) = [kernel for kernel in all_stored() if kernel.kernel_id == theirs.kernel_id]
        measured = ("compilation_time", "latency_ms", "latency_ratio", "created_at", "tags")
        measured += ("program_digest", "program_bytes")  # names in a program count what came before
        assert replace(ours, **{name: getattr(theirs, name) for name in measured}) == theirs
        assert set(ours.tags) == {*theirs.tags, "imported"}
        with build_library(compose([])) as library:
            assert library.fetch(ours.kernel_id).module(torch.randn(3, 8)).shape == (3, 6)
            assert [r.kernel_id for r in library.compilations() if r.kernel_id == ours.kernel_id] != []


@pytest.mark.usefixtures("shared")
def test_weights_of_a_program_are_taken_and_the_program_is_not(home: Path, capsys: Output) -> None:
    class Sleeper(Plain):
        """Computes what the blueprint says, unless an input is large."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            while bool(x.abs().sum() > 1e6):
                x = x * 1.0
            y: torch.Tensor = self.up(nn.functional.gelu(self.down(x)))
            return y

    program = scripted(Sleeper())
    Path("net.pt").write_bytes(program)
    code, out, _ = esper(capsys, "import", "net.pt", "--blueprint", "offered.yaml", "--shape", SHAPE)
    assert (code, out.splitlines()[-1]) == (0, "1 kernel imported, 0 already there, 0 files refused")
    (kernel,) = all_stored()
    assert kernel.decision == f"a TorchScript program, SHA-256 {hashlib.sha256(program).hexdigest()}"
    assert kernel.performance_score > 0
    with build_library(compose([])) as library:
        held = library.artefact(kernel.kernel_id)
        module = library.fetch(kernel.kernel_id).module
    assert b"while" not in held.program
    assert held.program != program
    module(torch.full((2, 8), 1e6))  # and does not sleep
    given = TorchScriptTarget().load(program)
    assert all(torch.equal(value, given.state_dict()[name]) for name, value in module.state_dict().items())


@pytest.mark.usefixtures("shared")
def test_what_is_refused_says_so_in_a_line_and_the_rest_goes_on(home: Path, capsys: Output) -> None:
    kernel = stored()
    esper(capsys, "export", kernel.kernel_id, "good.safetensors")
    Path("net.pt").write_bytes(good())
    Path("weights.safetensors").write_bytes(safetensors.torch.save({"a": torch.ones(1)}))
    Path("note.txt").write_text("no kernel")
    Path("folder").mkdir()
    os.mkfifo("pipe")
    names = ["gone", "folder", "pipe", "/dev/zero", "note.txt", "weights.safetensors", "net.pt"]
    code, out, err = esper(capsys, "import", *names, "good.safetensors")
    assert (code, out.splitlines()[-1]) == (6, "0 kernels imported, 1 already there, 7 files refused")
    said = dict(
        line.removeprefix("refused: ").split(": ", 1) for line in err.splitlines() if "refused" in line
    )
    assert list(said) == names
    assert said["gone"] == "it cannot be read: No such file or directory"
    assert said["folder"] == "it cannot be read: Is a directory"
    assert said["pipe"] == said["/dev/zero"] == "it is no plain file"
    assert said["note.txt"].startswith("it is no kernel file; make one with: esper kernels export")
    assert said["weights.safetensors"].startswith("its format is None, not 'esper-kernel-1'; weights alone")
    assert said["net.pt"].endswith("for its weights alone: --blueprint FILE --shape LAYOUT:IN:OUT")


def test_no_program_is_opened_where_calls_cannot_be_filtered(home: Path) -> None:
    Path("net.pt").write_bytes(good())
    asked = ("kernels", "import", "net.pt", "--blueprint", "offered.yaml", "--shape", SHAPE)
    done = forked.esper(*asked, before=forbid_filters)
    assert done.returncode == 6
    assert "refused: net.pt: parse: the kernel refuses to filter system calls" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "no file to import was named. esper kernels export ID FILE makes one"),
        (("net.pt", "--shape", SHAPE), "--blueprint and --shape go together"),
        (("net.pt", "--blueprint", "offered.yaml", "--shape", "8"), "--shape '8' is not LAYOUT:IN:OUT"),
        (("net.pt", "--blueprint", "none.yaml", "--shape", SHAPE), "none.yaml: no such file"),
    ],
)
def test_mistakes_are_told(args: tuple[str, ...], said: str, capsys: Output) -> None:
    code, _, err = esper(capsys, "import", *args)
    assert code in (2, 4)
    assert said in err


def forged(**changes: object) -> bytes:
    """A kernel file with other contents, its digest made to match."""
    (blueprint,) = load_blueprints(Path("offered.yaml"))
    artefact = build_pipeline(compose([])).compile(blueprint, SLOT)
    weights = safetensors.torch.load(artefact.weights) | changes.pop("weights", {})  # type: ignore[operator]
    weights = {name: value for name, value in weights.items() if value is not None}
    artefact = replace(artefact, weights=safetensors.torch.save(weights))
    if "blueprint" in changes:
        artefact = replace(artefact, blueprint=str(changes.pop("blueprint")))
    return write_kernel(replace(artefact, metadata=replace(artefact.metadata, **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": {"up.weight": torch.full((6, 2), float("nan"))}}, "'up.weight' is not finite"),
        ({"weights": {"up.weight": torch.ones(6, 2, dtype=torch.bool)}}, "is of bool, not float32"),
        ({"dtype": "float16"}, "is of float32, not float16"),
        ({"weights": {"up.weight": torch.ones(2, 6)}}, "build: size mismatch for up.weight"),
        ({"weights": {"up.weight": None}}, "build: Missing key.*up.weight"),
        ({"weights": {"x\x1b[2J": torch.ones(1)}}, r"build: Unexpected key.*x\?\[2J"),
        ({"input_shape": (0,)}, "its slot is"),
        ({"layout": "__class__"}, "its slot is"),
        ({"input_shape": (10**8,)}, "build: .*the budget is"),
        ({"run_id": "line\nline"}, "its run_id is not a few plain words"),
        ({"parent_kernel": "x" * 200}, "its parent_kernel is not a few plain words"),
        ({"blueprint": "{}"}, "version"),
        ({"blueprint": "[" * 100_000}, "blueprint"),
        ({"blueprint": ""}, "blueprint"),
        ({"layout": "channels"}, "parse: .*channels"),
    ],
)
def test_a_forged_kernel_file_is_refused(pool: WorkerPool, changes: dict[str, object], said: str) -> None:
    importer = Importer(build_pipeline(compose([])), pool)
    with pytest.raises(RefusedProgram) as refused:
        importer.kernel(forged(**changes))
    assert re.search(said, str(refused.value)), refused.value
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (b"junk", "what its worker told is no weights"),
        (b"nan", "its weight 'up.weight' is not finite"),
        (b"raise", r"^load\?\[2J: line$"),
    ],
)
def test_a_worker_that_was_taken_over_gains_nothing(
    pool: WorkerPool, monkeypatch: pytest.MonkeyPatch, ending: bytes, said: str
) -> None:
    monkeypatch.setattr(importing, "WeightsJob", Overtaken)
    importer = Importer(build_pipeline(compose([])), pool)
    (blueprint,) = load_blueprints(Path("offered.yaml"))
    with pytest.raises(RefusedProgram) as refused:
        importer.kernel(importing.ZIP + ending, (blueprint, SLOT))
    assert re.search(said, str(refused.value)), refused.value
    assert str(refused.value).isprintable()


def test_a_file_that_calls_itself_another_kernel_is_not_that_kernel(pool: WorkerPool) -> None:
    pipeline = build_pipeline(compose([]))
    data = forged(weights={"up.bias": torch.ones(6)})
    file = read_kernel(data)
    assert file.kernel_id == pipeline.kernel_id(file.blueprint, file.slot)
    _, outcome = Importer(pipeline, pool).kernel(data)
    assert outcome.artefact is not None
    trained = Trained(file.weights, "", "", "")
    assert outcome.artefact.metadata.kernel_id == pipeline.kernel_id(file.blueprint, file.slot, trained)
    assert outcome.artefact.metadata.kernel_id != file.kernel_id


def test_a_changed_file_is_damaged() -> None:
    data = bytearray(forged())
    data[-1] ^= 1
    with pytest.raises(RefusedProgram, match="its digest does not match"):
        read_kernel(bytes(data))
