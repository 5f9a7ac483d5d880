"""Deepen: put a new block, which starts as the identity, after any module of a network.

The block goes where the fewest names change::

    the module is an nn.Sequential            into it, as its last child
    it is the last child of an nn.Sequential  beside it, as a further child
    anything else                             around it: nn.Sequential(host=the module, grown=the block)

In the first two cases no parameter of the network gets another name; in the third those of the module gain
``.host``. Wrapped layers count as what they wrap and keep the name that they were wrapped under.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from esper.errors import GraftError
from esper.kasmina.operators.identity import bare_copy, identity_copy, residual_block
from esper.kasmina.operators.operator import Growth, replays
from esper.kasmina.operators.places import Place, find_place, unwrapped
from esper.kasmina.operators.running import does_not_run, own, run, tensors_in, undisturbed
from esper.kasmina.probing import call_with
from esper.messages import Layout

Like = Literal["residual", "copy"]
"""A fresh residual block, or a copy of the module whose branches end in zero."""

Site = Literal["inside", "beside", "around"]
"""Where the block stands: in the target, after it in its parent, or around it with it."""

_ONE_DIMENSIONAL = (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.MaxPool1d, nn.AvgPool1d)


def deepen(
    model: nn.Module,
    target: str,
    *,
    example: Any,
    generator: torch.Generator | None = None,
    like: Like = "residual",
    hidden: int | None = None,
) -> Growth:
    """Put a block after the module ``target`` of ``model``, in place, without changing any output's bit.

    Args:
        model: any network; it may hold seeded layers. What follows ``target`` sees (N, C, H, W), or features
            along the last axis of (N, F) or (N, T, F).
        target: the name of the module, as it was before layers were wrapped.
        example: a tensor, a tuple of positional or a dict of keyword arguments of ``model``.
        generator: draws the weights of the block; torch's own by default.
        like: "residual" for ``esper.kasmina.operators.identity.residual_block``; "copy" for a copy of the
            module (of the last child, if it is an ``nn.Sequential``), which must be a residual block that
            gives its own output back once its branches end in zero.
        hidden: features inside a residual block; as many as it takes in unless given.

    Raises:
        GraftError: there is no such module, the example does not run through it, its output is not one
            tensor of these layouts, no copy is the identity, the network cannot call a block there, or
            ``like`` is another word. The model is bit for bit as it was then.
    """
    if like not in get_args(Like):
        raise GraftError(f"{target}: no block is like {like!r}", hint=f"one of: {', '.join(get_args(Like))}")
    place = find_place(model, target)
    if like == "copy" and isinstance(place.module, nn.Sequential) and len(place.module):
        target = f"{target}.{next(reversed(place.module._modules))}"
        place = find_place(model, target)
    before = _outputs(model, example)
    calls = _calls(model, example, place, target)
    layout = _layout(place, calls, target)
    features = calls[0].shape[1 if layout == "channels" else -1]
    inner = features if hidden is None else hidden
    if inner < 1:
        raise GraftError(f"{target}: a block of {inner} hidden features", hint="it needs one at least")
    block: nn.Module | None
    if like == "copy":
        block = identity_copy(unwrapped(place.module), calls)
        if block is None:
            raise GraftError(
                f"{target}: a copy of this {type(unwrapped(place.module)).__name__} is never the identity",
                hint="use like='residual', or a residual block that keeps its shape",
            )
        made: dict[str, Any] = {}
    else:
        block = residual_block(layout, features, inner, calls[0], generator)
        made = {"layout": layout, "features": features, "hidden": inner}
    block.train(place.module.training)
    return _install(model, target, block, {"like": like, **made}, _Check(example, before, len(calls)))


@replays("deepen")
def replay_deepen(model: nn.Module, record: Mapping[str, Any], *, example: Any) -> Growth:
    """Make the recorded block again; its values are to be loaded.

    Raises:
        GraftError: ``model`` is not the network, grown as far, that the record is from.
    """
    target, like = record["target"], record["like"]
    place = find_place(model, target)
    if like == "copy":
        block = bare_copy(place.module)
    else:
        calls = _calls(model, example, place, target)
        generator = torch.Generator().manual_seed(0)
        block = residual_block(record["layout"], record["features"], record["hidden"], calls[0], generator)
    block.train(place.module.training)
    made = {key: value for key, value in record.items() if key not in ("operator", "target", "site", "key")}
    return _put(model, target, block, record["site"], made, key=record["key"])


def _install(
    model: nn.Module, target: str, block: nn.Module, made: Mapping[str, Any], check: _Check
) -> Growth:
    """Put ``block`` at the first site where the network calls it and gives what it gave before."""
    reasons: list[str] = []
    for site, key in _sites(find_place(model, target)):
        growth = _put(model, target, block, site, made, key=key)
        try:
            reason = check.refusal(model, block)
        except BaseException:
            growth.undo()
            raise
        if not reason:
            return growth
        growth.undo()
        reasons.append(reason)
    raise GraftError(
        f"{target}: no block can follow it: {reasons[-1]}",
        hint="deepen the module around it, or one inside it",
    )


def _sites(place: Place) -> list[tuple[Site, str]]:
    """Where a block can stand and its key there, best first."""
    sites: list[tuple[Site, str]] = []
    if isinstance(place.module, nn.Sequential):
        sites.append(("inside", _free_key(place.module)))
    last = next(reversed(place.parent._modules), None)
    if isinstance(place.parent, nn.Sequential | nn.ModuleList) and last == place.key:
        sites.append(("beside", _free_key(place.parent)))
    return [*sites, ("around", "grown")]


def _free_key(parent: nn.Module) -> str:
    """The next number where all children have numbers, else a word that is not taken."""
    if all(key.isdecimal() for key in parent._modules):
        return str(max((int(key) for key in parent._modules), default=-1) + 1)
    words = ("grown", *(f"grown{i}" for i in range(2, len(parent._modules) + 3)))
    return next(word for word in words if not hasattr(parent, word))


def _put(
    model: nn.Module, target: str, block: nn.Module, site: Site, made: Mapping[str, Any], *, key: str
) -> Growth:
    """Put ``block`` at ``site`` of ``target`` under ``key``."""
    place = find_place(model, target)
    if (site, key) not in _sites(place):
        raise GraftError(
            f"{target} is no place for a block {site} it under the name {key!r}",
            hint="replay the growths of a network on a fresh one of the same kind, in order",
        )
    parent = {"inside": place.module, "beside": place.parent}.get(site)
    holder = nn.Sequential(OrderedDict(host=place.module)) if parent is None else parent
    holder.training = place.module.training if parent is None else holder.training
    holder._modules[key] = block
    if parent is None:
        place.parent._modules[place.key] = holder

    def undo() -> None:
        around = parent is not None or place.parent._modules.get(place.key) is holder
        if not around or next(reversed(holder._modules.values())) is not block:
            raise GraftError(
                f"deepen of {target}: the block is not the last one any more",
                hint="undo the later growth first",
            )
        if parent is None:
            place.parent._modules[place.key] = place.module
        else:
            del holder._modules[key]

    record = {**made, "site": site, "key": key}
    return Growth("deepen", target, undo=undo, record=record, added=tuple(block.parameters()))


@dataclass(frozen=True, slots=True)
class _Check:
    """What the network gave before, and how often the block must be called."""

    example: Any
    outputs: list[list[Tensor]]
    calls: int

    def refusal(self, model: nn.Module, block: nn.Module) -> str:
        """Why the network with ``block`` in it will not do; empty when it will."""
        count = 0

        def note(*_: object) -> None:
            nonlocal count
            count += 1

        handle = block.register_forward_pre_hook(note)
        try:
            with undisturbed(model, training=False):
                call_with(model, own(self.example))
            handle.remove()
            after = _outputs(model, self.example)
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            return f"the network raises {type(error).__name__}: {lines[0]}"
        finally:
            handle.remove()
        if count != self.calls:
            return f"the network calls it {count} times, not {self.calls}"
        same = [len(a) == len(b) and all(map(_equal, a, b)) for a, b in zip(self.outputs, after, strict=True)]
        return "" if all(same) else "the network gives something else with it"


def _outputs(model: nn.Module, example: Any) -> list[list[Tensor]]:
    """What the network gives in train and in eval mode, dropout left out, and on its fused path in eval."""
    fused = torch.backends.mha.get_fastpath_enabled()
    outputs = [run(model, example, training=training) for training in (True, False)]
    with undisturbed(model, training=False):
        torch.backends.mha.set_fastpath_enabled(fused)
        outputs.append([t.detach().clone() for t in tensors_in(call_with(model, own(example)))])
    return outputs


def _equal(a: Tensor, b: Tensor) -> bool:
    if torch.equal(a, b):
        return True
    floating = a.is_floating_point() and a.shape == b.shape
    return floating and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)


def _calls(model: nn.Module, example: Any, place: Place, target: str) -> list[Tensor]:
    """What the module gives in each of its calls.

    Raises:
        GraftError: the example does not run or does not pass through it, or it gives more than one tensor.
    """
    given: list[Any] = []
    handle = place.module.register_forward_hook(lambda _, __, output: given.append(output))
    try:
        with undisturbed(model, training=False):
            call_with(model, own(example))
    except Exception as error:
        raise does_not_run(error, "eval") from error
    finally:
        handle.remove()
    if not given:
        raise GraftError(f"{target} is never called by the example input", hint="deepen the module around it")
    for output in given:
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.is_nested:
            raise GraftError(
                f"{target} gives a {type(output).__name__}, not one floating tensor",
                hint="deepen a module inside it, or the one around it",
            )
    return [output.detach().clone(memory_format=torch.preserve_format) for output in given]


def _layout(place: Place, calls: list[Tensor], target: str) -> Layout:
    """The layout of all calls.

    Raises:
        GraftError: they have none that a block is made for, or not one number of features.
    """
    first, inner = calls[0], unwrapped(place.module)
    ndim = first.ndim
    known = 2 <= ndim <= 4 and not (ndim == 3 and isinstance(inner, _ONE_DIMENSIONAL))
    axis = 1 if ndim == 4 else -1
    if not known or any(y.ndim != ndim or y.shape[axis] != first.shape[axis] for y in calls):
        shapes = ", ".join(str(tuple(y.shape)) for y in calls)
        raise GraftError(
            f"{target} gives {shapes}: no block is made for that",
            hint="deepen a module that gives (N, C, H, W), (N, F) or (N, T, F)",
        )
    layouts: dict[int, Layout] = {2: "features", 3: "tokens", 4: "channels"}
    return layouts[ndim]
