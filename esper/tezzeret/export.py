"""torch.export: a graph of aten ops, saved as a .pt2 archive. The only file that calls torch.export.

A program is exported in training mode. What eval mode does differently is rewritten in a second graph over
the same weights: batch norm and dropout carry their mode as an argument, and the count of batches is not
taken. Validation compares both modes with the eager network.
"""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any, ClassVar

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram

from esper.tezzeret.allowed import foreign_ops
from esper.tezzeret.archive import without_sources
from esper.tezzeret.builder import plan_of
from esper.tezzeret.examples import example

_MODE_AT = {torch.ops.aten.batch_norm.default: 5, torch.ops.aten.dropout.default: 2}
"""Which argument of an op says that it is training."""

_SIZE = (3, 6)
"""Batch and extent of the example: neither may be 1, which would be taken for a constant."""


class ExportedKernel(nn.Module):
    """Parameters and buffers under the names of the eager network, and a graph for each mode.

    Each program has a class of its own, so that copies share what never changes.
    """

    exported: ClassVar[ExportedProgram]
    rank: ClassVar[int]

    def forward(self, x: Tensor) -> Tensor:
        """The output for ``x``, whose leading axes are made one where the graph has but one."""
        run = self.train_graph if self.training else self.eval_graph
        if self.rank != 2 or x.dim() == 2:
            return run(x)
        y = run(x.reshape(-1, x.shape[-1]))
        return y.reshape(*x.shape[:-1], y.shape[-1])

    def train_graph(self, x: Tensor) -> Tensor:
        """The output in training mode."""
        raise NotImplementedError

    def eval_graph(self, x: Tensor) -> Tensor:
        """The output in eval mode."""
        raise NotImplementedError


class ExportTarget:
    """Compiles with torch.export. Programs keep their parameters and both modes, so they train after loading.

    Layouts stay as they are: archives of weights in other strides make torch warn.
    """

    name = "export"

    def compile(self, module: nn.Module) -> nn.Module:
        """The program of ``module``, a network of ``esper.tezzeret.builder``, sharing its parameters.

        Batch, time and space stay free, and so do further leading axes of features. Raises ``RuntimeError``
        for what torch cannot export so, and where the program would be fixed to one dtype.
        """
        slot = plan_of(module).slot
        x = example(slot, *_SIZE).to(next(module.parameters(), torch.empty(0)))
        if slot.layout == "features":
            x = x.flatten(0, 1)
        axes = (0, 2, 3) if slot.layout == "channels" else range(x.dim() - 1)
        free = dict.fromkeys(axes, Dim.DYNAMIC)
        training = module.training
        module.train()
        try:
            exported = torch.export.export(module, (x,), dynamic_shapes=(free,))
        finally:
            module.train(training)
        for node in exported.graph.nodes:
            node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}  # else it names source files
        return _kernel(exported)

    def optimise(self, program: nn.Module, device: torch.device) -> tuple[str, ...]:  # noqa: ARG002
        """Nothing: no change was found that helps and that an archive keeps."""
        return ()

    def check(self, program: nn.Module) -> None:
        """Raises ``RuntimeError`` unless every op of ``program`` is one that a kernel may use."""
        if not isinstance(program, ExportedKernel):
            raise RuntimeError(f"a {type(program).__name__} is no exported program")
        if found := foreign_ops(program.exported.graph_module):
            raise RuntimeError(f"the program holds what no kernel may: {', '.join(found)}")

    def save(self, program: nn.Module) -> bytes:
        """``program`` as a .pt2 archive with the weights it has now; it names no file of this machine."""
        if not isinstance(program, ExportedKernel):
            raise RuntimeError(f"a {type(program).__name__} is no exported program")
        old = program.exported
        exported = ExportedProgram(
            root=old.graph_module,
            graph=old.graph,
            graph_signature=old.graph_signature,
            state_dict={**dict(program.named_parameters()), **dict(program.named_buffers())},
            range_constraints=old.range_constraints,
            module_call_graph=old.module_call_graph,
            constants=old.constants,
            verifiers=old.verifiers,
        )
        buffer = io.BytesIO()
        torch.export.save(exported, buffer)
        return without_sources(buffer.getvalue())

    def load(self, program: bytes, device: torch.device | str = "cpu") -> nn.Module:
        """A fresh trainable module from ``program``, in training mode.

        torch unpickles what an archive says is pickled. Nothing of ours is, and an archive that says so is
        refused, but torch reads zip files in its own way: give it only bytes whose digest was checked.
        """
        if reason := _no_plain_archive(program):
            raise RuntimeError(f"no exported program: {reason}")
        return _kernel(torch.export.load(io.BytesIO(program))).to(device)


def _no_plain_archive(program: bytes) -> str | None:
    """Why ``program`` is no archive of the current format that holds data alone; None if it is."""
    try:
        with zipfile.ZipFile(io.BytesIO(program)) as archive:
            if archive.read("archive/archive_format") != b"pt2":
                return "it is of another format"
            for entry in archive.infolist():
                if entry.filename.endswith((".pt", ".pkl")) and entry.file_size:
                    return f"its entry {entry.filename} is pickled"
                if entry.filename.endswith("_config.json") and _says_pickled(archive.read(entry)):
                    return f"its entry {entry.filename} names something pickled"
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        return str(error) or type(error).__name__
    return None


def _says_pickled(config: bytes) -> bool:
    return any(each["use_pickle"] for each in json.loads(config)["config"].values())


def _kernel(exported: ExportedProgram) -> ExportedKernel:
    root = exported.module(check_guards=False)
    training = _plain(root.graph)
    methods: dict[str, Any] = {
        "train_graph": type(fx.GraphModule(root, training)).forward,
        "eval_graph": type(fx.GraphModule(root, _for_eval(training))).forward,
        "exported": exported,
        "rank": next(node for node in training.nodes if node.op == "placeholder").meta["val"].dim(),
    }
    kernel: ExportedKernel = type("ExportedKernel", (ExportedKernel,), methods)()
    for name, child in root.named_children():
        kernel.add_module(name, child)
    return kernel


def _plain(graph: fx.Graph) -> fx.Graph:
    """``graph`` as a function of one tensor, which gives one, without what torch checks at each call."""
    plain = fx.Graph()
    (output,) = plain.graph_copy(graph, {}, return_output_node=True)[0]  # type: ignore[index,misc]
    plain.output(output)
    for node in plain.nodes:
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            raise RuntimeError(
                "an op changes the dtype, as fourier does, and export would fix the program to one dtype"
            )
    return plain


def _for_eval(graph: fx.Graph) -> fx.Graph:
    """``graph`` as it is in eval mode: ops do not train, and no buffer is written by the graph itself."""
    made = fx.Graph()
    made.output(made.graph_copy(graph, {}))
    for node in list(made.nodes):
        if node.target in _MODE_AT:
            node.update_arg(_MODE_AT[node.target], False)
        elif node.target is torch.ops.aten.add_.Tensor and node.args[0].op == "get_attr":
            made.erase_node(node)
    return made
