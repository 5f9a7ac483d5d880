"""Run a network on an example without leaving a trace, and name its parts as if no layer were wrapped."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from esper.errors import GraftError
from esper.kasmina.layer import SeededLayer
from esper.kasmina.probing import call_with

DROPOUTS = frozenset(
    {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"}
)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The modules by their first name; wrappers are looked through, seeds are left out."""
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def visit(module: nn.Module, name: str) -> None:
        while isinstance(module, SeededLayer):
            module = module.host
        if id(module) in seen:
            return
        seen.add(id(module))
        found[name] = module
        if isinstance(module, torch.jit.ScriptModule):
            return  # it runs out of sight
        for key, child in module._modules.items():
            if child is not None:
                visit(child, f"{name}.{key}" if name else key)

    visit(model, "")
    return found


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their first name, without the names of wrappers; each tensor once."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, module in named_modules(model).items():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # it runs out of sight and gives its tensors a new object each time
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{name}.{key}" if name else key] = tensor
    return found


def name_of(function: Any) -> str:
    """The plain name of an overridden function: 'add' for ``torch.add``, ``Tensor.__iadd__``, ``add_``."""
    name = getattr(function, "__name__", type(function).__name__)
    if name == "__get__":
        return str(getattr(function.__self__, "__name__", name))
    return name.strip("_")


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor inside nested lists, tuples, mappings and records."""
    found: list[Tensor] = []
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, nn.Module | type) and not callable(leaf):
            found += [t for t in vars(leaf).values() if isinstance(t, Tensor)]
    return found


class NoDropout(TorchFunctionMode):
    """Dropout with nothing dropped, so that two shapes can be compared in train mode."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = name_of(func)
        if name in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            args, kwargs = args[:4], kwargs | {"dropout_p": 0.0} | _named(args, 5, "is_causal")
        elif name == "multi_head_attention_forward":
            args = (*args[:10], 0.0, *args[11:])
        return func(*args, **kwargs)


def _named(args: tuple[Any, ...], position: int, name: str) -> dict[str, Any]:
    return {name: args[position]} if len(args) > position else {}


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor, Tensor]]:
    for module in model.modules():
        if not isinstance(module, torch.jit.ScriptModule):
            for key, buffer in module._buffers.items():
                if buffer is not None:
                    yield module, key, buffer, buffer.detach().clone()


@contextmanager
def undisturbed(model: nn.Module, *, training: bool, kernels: bool = False) -> Iterator[None]:
    """The given mode, no gradients, no fused paths, no observation; all is put back after.

    Kernels are off, unless ``kernels``: one that fails then is off for good, as it would be in training.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = list(_buffers(model))
    layers = [m for m in model.modules() if isinstance(m, SeededLayer)]
    observing = [(layer, layer.observing) for layer in layers]
    running = [] if kernels else [(layer, list(layer.running)) for layer in layers]
    fused = torch.backends.mha.get_fastpath_enabled()
    devices = {t.device for t in (*model.parameters(), *model.buffers()) if t.device.type == "cuda"}
    torch.backends.mha.set_fastpath_enabled(False)  # it reads the layers' weights and never calls them
    try:
        model.train(training)
        for layer in layers:
            layer.observing = False
        for layer, _ in running:
            layer.running.clear()
        with torch.random.fork_rng(devices=sorted(devices, key=str)), torch.no_grad():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for layer, observed in observing:
            layer.observing = observed
        for layer, ran in running:
            layer.running[:] = ran
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, key, buffer, before in buffers:
                module._buffers[key] = buffer
                if buffer.shape != before.shape or not _same(buffer, before):
                    buffer.copy_(before)


def _same(a: Tensor, b: Tensor) -> bool:
    if not a.is_floating_point():
        return torch.equal(a, b)
    return torch.equal(a.isnan(), b.isnan()) and torch.equal(a.nan_to_num(), b.nan_to_num())


def run(model: nn.Module, example: Any, *, training: bool) -> list[Tensor]:
    """The tensors of the network's output, without dropout; the network is left as it was.

    Raises:
        GraftError: the example does not run through the network.
    """
    given = own(example)
    try:
        with undisturbed(model, training=training), NoDropout():
            output = call_with(model, given)
    except GraftError:
        raise
    except Exception as error:
        mode = "train" if training else "eval"
        raise does_not_run(error, mode) from error
    return [tensor.detach().clone() for tensor in tensors_in(output)]


def own(example: Any) -> Any:
    """A copy of the example, so that a network that works in place does not change it."""
    return pytree.tree_map(lambda v: v.detach().clone() if isinstance(v, Tensor) else v, example)


def does_not_run(error: Exception, mode: str) -> GraftError:
    """The error of an example that does not run."""
    lines = str(error).strip().splitlines() or [""]
    return GraftError(
        f"the example does not run through the network in {mode} mode: {type(error).__name__}: {lines[0]}",
        hint="give two samples or more, of the shape and type that the network is trained on",
    )


_TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


def difference(before: list[Tensor], after: list[Tensor]) -> str:
    """How two outputs differ by more than rounding; empty when they do not."""
    if [t.shape for t in before] != [t.shape for t in after]:
        return f"shapes {[tuple(t.shape) for t in after]} instead of {[tuple(t.shape) for t in before]}"
    for a, b in zip(before, after, strict=True):
        if not a.is_floating_point():
            continue  # indices may swap between equal values
        scale = torch.nan_to_num(a).abs().max() if a.numel() else torch.tensor(0.0)
        worst = torch.nan_to_num(a - b).abs().max() if a.numel() else torch.tensor(0.0)
        if worst > _TOLERANCES.get(a.dtype, 1e-2) * scale or not torch.equal(a.isfinite(), b.isfinite()):
            return f"outputs by {float(worst):.3g} where the largest is {float(scale):.3g}"
    return ""


@functools.cache
def plain_name(name: str) -> str:
    """``name``, or a word for the network itself."""
    return name or "the network"
