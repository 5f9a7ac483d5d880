"""Export of a grown network as plain Python source and safetensors, to be used without Esper.

``model.py`` holds a class ``Network`` of ``torch.nn`` modules and a function ``load``; ``model.safetensors``
holds its weights. The pair is loaded by a fresh interpreter in which Esper cannot be imported, and compared
with the network that it came from, before it takes the place of an earlier export.
"""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from esper.errors import RunError, StorageError
from esper.kasmina.layer import seeded_layers
from esper.tolaria.export.plain import GrownChunk, GrownLayer, plain_copy
from esper.tolaria.export.source import NetworkSource, network_source
from esper.tolaria.export.tracing import Entry, trace

SOURCE = "model.py"
WEIGHTS = "model.safetensors"

_TEMPLATE = '''\
"""{title}

Load it with torch and safetensors, from the folder of this file::

    from model import load

    network = load()  # in evaluation mode; network.train() to train on
    output = network(x)  # x is {input}, N of any size

{notes}"""

from __future__ import annotations

{imports}

class Network(nn.Module):
    """From x, {input}, to {output}."""

    def __init__(self) -> None:
        super().__init__()
{initialisation}

    def forward(self, x: Tensor) -> {returns}:
{forward}


def load(path: str | Path | None = None, device: str | torch.device = "cpu") -> Network:
    """The network with the weights of ``path`` ({weights} beside this file), in evaluation mode."""
    network = Network()
    load_model(network, path or Path(__file__).with_name("{weights}"))
    return network.to(device).eval()
'''

_CHECK = """\
import sys

class NoEsper:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("esper", "esper_cli"):
            raise ImportError(name + " must not be needed")

sys.meta_path.insert(0, NoEsper())
sys.path.insert(0, sys.argv[1])
device, threads = sys.argv[2], int(sys.argv[3])

import torch
from safetensors.torch import load_file, save_file
import model

torch.set_num_threads(threads)
x = load_file("x.safetensors")["x"].to(device)
with torch.no_grad():
    found = model.load(device=device)(x)
outputs = found if isinstance(found, (tuple, list)) else [found]
save_file({str(i): y.cpu().contiguous() for i, y in enumerate(outputs)}, "y.safetensors")
"""


@dataclass(frozen=True)
class ExportReport:
    """Where the export is, and the largest absolute difference of its outputs from the network's own."""

    source: Path
    weights: Path
    max_difference: float
    parameters: int


def export_network(
    model: nn.Module,
    kernels: Mapping[tuple[str, int], nn.Module],
    example: Tensor,
    folder: Path,
    *,
    notes: str = "",
) -> ExportReport:
    """Write ``model`` into ``folder`` as source and weights that need torch and safetensors only.

    ``kernels`` holds, by layer name and number of the seed, an eager module for each seed whose kernel is in
    use; its weights are taken from the seed. A kernel still on trial is exported at its present alpha. On
    ``example``, a batch (N, ...) on the device of the model, the outputs of both are compared in evaluation
    mode. ``notes`` goes into the docstring of the source: say there what the input means and how it was
    normalised.

    Raises RunError, naming the module, for what plain source cannot express, or if the outputs differ by
    more than the square root of the type's precision, relative to the largest output; StorageError if the
    folder cannot be written. An earlier export in ``folder`` stays as it was until the new one has passed.
    """
    plain, grown = plain_copy(model, kernels)
    root = Entry(plain)
    graph = trace(root, example)
    layers = [name for name, module in plain.named_modules() if isinstance(module, GrownLayer)]
    source = network_source(graph, root, lambda path: _short(path, layers))
    expected = _outputs(model, example)
    text = _text(model, source, example, expected, _growth(grown, notes))
    parameters = sum(value.numel() for value in source.state.values() if isinstance(value, nn.Parameter))
    # Separate copies: safetensors refuses views of one memory.
    state = {name: value.detach().cpu().clone().contiguous() for name, value in source.state.items()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, SOURCE):  # what would stop the second from being replaced, before the first is
            if (folder / name).is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(folder / name))
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as scratch:
            _write(Path(scratch) / SOURCE, text.encode())
            _write(Path(scratch) / WEIGHTS, save(state))
            difference = _difference(expected, _reloaded(Path(scratch), example))
            for name in (WEIGHTS, SOURCE):
                (Path(scratch) / name).replace(folder / name)
    except OSError as error:
        raise StorageError.from_os(error, folder, "cannot write the export to") from error
    return ExportReport(folder / SOURCE, folder / WEIGHTS, difference, parameters)


def _short(path: str, layers: Sequence[str]) -> str:
    """Path of a module in the source: that of the original network, without the ``host`` of grown layers."""
    path = path.removeprefix("network.")
    for layer in sorted(layers, key=len, reverse=True):  # the innermost first
        prefix = f"{layer}.host" if layer else "host"
        if path == prefix or path.startswith(f"{prefix}."):
            path = f"{layer}{path.removeprefix(prefix)}"
    return path.removeprefix(".") or "network"


def _outputs(model: nn.Module, example: Tensor) -> list[Tensor]:
    """What ``model`` gives in evaluation mode, unobserved; the mode of each module is put back."""
    modes = {module: module.training for module in model.modules()}
    observed = [layer for layer in seeded_layers(model).values() if layer.observing]
    model.eval()
    for layer in observed:
        layer.observing = False
    try:
        with torch.no_grad():
            found = model(example)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer in observed:
            layer.observing = True
    outputs = list(found) if isinstance(found, tuple | list) else [found]
    if not all(isinstance(output, Tensor) for output in outputs):
        raise RunError(
            "cannot export the network: its output is neither a tensor nor a sequence of tensors",
            hint="return tensors from its forward",
        )
    return [output.cpu() for output in outputs]


def _text(
    model: nn.Module, source: NetworkSource, example: Tensor, expected: Sequence[Tensor], notes: str
) -> str:
    title = f"{_prose(type(model).__name__)}, exported from Esper."
    body = "\n".join((*source.initialisation, *source.forward))
    imports = ["from pathlib import Path", "", "import torch", "import torch.nn.functional as F"]
    imports += ["from safetensors.torch import load_model", "from torch import Tensor, nn", ""]
    if re.search(r"\bmath\.", body):
        imports.insert(0, "import math")
    if not re.search(r"\bF\.", body):
        imports.remove("import torch.nn.functional as F")
    text = _TEMPLATE.format(
        title=title,
        notes=_prose(f"{notes}\n" if notes else ""),
        input=_described(example),
        output=", ".join(map(_described, expected)),
        imports="\n".join(imports),
        initialisation=_indented(source.initialisation),
        returns="Tensor" if len(expected) == 1 else "tuple[Tensor, ...]",
        forward=_indented(source.forward),
        weights=WEIGHTS,
    )
    compile(text, SOURCE, "exec")  # whatever was emitted is at least Python
    return text


def _growth(grown: Mapping[str, Sequence[GrownChunk]], notes: str) -> str:
    """``notes``, and a line for each kernel in use."""
    lines = []
    for layer, chunks in grown.items():
        for chunk in chunks:
            read = "input" if chunk.site == "parallel" else "output"
            kernel = f"{chunk.kernel_id}({read}[{chunk.first}:{chunk.last}])"
            own = f"output[{chunk.start}:{chunk.stop}]"
            grows = f"+= {kernel}" if chunk.alpha == 1 else f"+= {chunk.alpha:g} * {kernel}"
            mixes = f"= lerp({own}, {kernel}, {chunk.alpha:g})"
            lines.append(
                f"- {layer}, seed {chunk.seed_idx}: {own} {grows if chunk.blend == 'residual' else mixes}"
            )
    wrapped = [textwrap.fill(line, 100, subsequent_indent="  ") for line in lines]
    parts = [notes.strip(), "\n".join(["Grown parts, ranges by feature:", *wrapped]) if wrapped else ""]
    return "\n\n".join(part for part in parts if part)


def _prose(text: str) -> str:
    """``text`` as it may stand in a docstring: nothing in it can end the string."""
    printable = "".join(letter if letter.isprintable() or letter == "\n" else " " for letter in text)
    return printable.replace("\\", "\\\\").replace('"', "'")


def _described(x: Tensor) -> str:
    """Type and shape, such as ``float32 (N, 1, 28, 28)``."""
    sizes = ", ".join(["N", *map(str, x.shape[1:])])
    return f"{str(x.dtype).removeprefix('torch.')} ({sizes}{',' if x.dim() == 1 else ''})"


def _indented(lines: Iterable[str]) -> str:
    return textwrap.indent("\n".join(lines) or "pass", " " * 8)


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _reloaded(folder: Path, example: Tensor) -> list[Tensor]:
    """What the export in ``folder`` gives for ``example`` in a new interpreter without Esper."""
    _write(folder / "x.safetensors", save({"x": example.detach().cpu().contiguous()}))
    command = [sys.executable, "-P", "-c", _CHECK, str(folder), str(example.device)]
    result = subprocess.run(
        [*command, str(torch.get_num_threads())], cwd=folder, capture_output=True, text=True, check=False
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"exit code {result.returncode}"])[-1]
        raise RunError(
            f"the export does not load without Esper: {reason}",
            hint="report this together with the network; nothing was written",
        )
    found: dict[str, Any] = load_file(folder / "y.safetensors")
    return [found[str(i)] for i in range(len(found))]


def _difference(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest absolute difference; raises RunError where it is more than rounding."""
    shapes = [(y.shape, y.dtype) for y in expected], [(y.shape, y.dtype) for y in found]
    if shapes[0] != shapes[1]:
        raise _differs(f"the shapes of the outputs differ, {shapes[0]} and {shapes[1]}")
    worst = 0.0
    for y, z in zip(expected, found, strict=True):
        exact = not y.is_floating_point()
        difference = float((y.double() - z.double()).abs().max()) if y.numel() else 0.0
        allowed = 0.0 if exact else torch.finfo(y.dtype).eps ** 0.5 * max(1.0, float(y.abs().max()))
        if not difference <= allowed:  # not a number, too
            raise _differs(f"an output differs by {difference:g}, more than {allowed:.1g}")
        worst = max(worst, difference)
    return worst


def _differs(how: str) -> RunError:
    return RunError(
        f"the export does not compute what the network does: {how}",
        hint="look for parts that depend on more than the input; nothing was written",
    )
