"""The forward of a layer whose seeds run: kernels on their chunks, masked where they fail, blended in.

Nothing here reads a value from the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from esper.errors import GraftError
from esper.kasmina.counters import Place
from esper.kasmina.seed import Seed
from esper.messages import SeedState, Site

if TYPE_CHECKING:
    from esper.kasmina.layer import SeededLayer


def apply_seeds(layer: SeededLayer, output: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """``output`` of the host with running seeds blended in and, when observing, health gathered."""
    host_output = output[0] if isinstance(output, tuple) else output
    blended = host_output
    if layer.running:
        _check_rank(layer, host_output)
        blended = _blend(layer, first_tensor(args, kwargs), host_output)
    if layer.observing:
        layer.health.observe(blended, layer.geometry.axis, layer.probe.loss_scale)
    if blended is host_output:
        return output
    if not isinstance(output, tuple):
        return blended
    rest = (blended, *output[1:])
    return type(output)(*rest) if hasattr(output, "_fields") else rest


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
    """The tensor that a layer was called with: the first among positional, then keyword arguments.

    Raises:
        GraftError: there is none.
    """
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            return value
    raise GraftError("a seeded layer was called without a tensor", hint="exclude this layer when wrapping")


def sum_per_feature(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    """Sum over all axes but ``axis``, in float32 at least, so that half precision does not overflow."""
    dtype = torch.promote_types(tensor.dtype, torch.float32)
    axes = [i for i in range(tensor.ndim) if i != axis % tensor.ndim]
    return tensor.sum(axes, dtype=dtype) if axes else tensor.to(dtype)


def _check_rank(layer: SeededLayer, y: torch.Tensor) -> None:
    expected = {"tokens": 3, "channels": 4}.get(layer.layout, y.ndim)
    if y.is_nested or y.ndim != expected:
        found = "a nested tensor" if y.is_nested else f"{y.ndim} axes"
        raise GraftError(
            f"{layer.name}: the layer gave {found}, its seeds know {layer.layout} of {expected} axes",
            hint="wrap the network with an example input of the shape it is trained on",
        )


def _blend(layer: SeededLayer, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    targets = y.split_with_sizes(layer.out_sizes, layer.geometry.axis)
    sources: dict[Site, tuple[torch.Tensor, ...]] = {}
    members: list[Seed] = []
    outputs: list[torch.Tensor] = []
    for index in tuple(layer.running):
        seed = layer.seed_list[index]
        isolated = seed.state is SeedState.TRAINING
        if isolated and not (layer.training and torch.is_grad_enabled()):
            continue  # it would change nothing and learn nothing
        if seed.site not in sources:
            sources[seed.site] = _sources(layer, seed.site, x if seed.site == "parallel" else y)
        source = sources[seed.site][index]
        k = _run(layer, seed, source.detach() if isolated else source, targets[index])
        if k is not None:
            members.append(seed)
            outputs.append(k)
    if not members:
        return y
    blended: torch.Tensor = _Blend.apply(  # type: ignore[no-untyped-call]  # torch's
        y, layer, members, *outputs
    )
    return blended


def _sources(layer: SeededLayer, site: Site, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The chunks of ``tensor``; a non-finite gradient of the kernels stops before it enters ``tensor``."""
    sizes = layer.in_sizes if site == "parallel" else layer.out_sizes
    chunks = tensor.split_with_sizes(sizes, layer.geometry.axis)
    node = chunks[0].grad_fn
    if node is not None:
        place: Place = "parallel input" if site == "parallel" else "series input"

        def guard(inputs: tuple[torch.Tensor | None, ...], _: object) -> tuple[torch.Tensor | None, ...]:
            return tuple(None if g is None else _finite(layer, g, place) for g in inputs)

        node.register_hook(guard)
    return chunks


def _finite(layer: SeededLayer, gradient: torch.Tensor, place: Place) -> torch.Tensor:
    """``gradient`` with zeros where it is not finite, and its sums noted; as it is where that is expected."""
    if layer.probe.overflow_expected:
        return gradient
    layer.probe.add(place, sum_per_feature(gradient, layer.geometry.axis))
    return torch.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)


def _along(vector: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """``vector`` (features,) shaped so that it broadcasts along ``axis`` of ``like``."""
    return vector if axis == -1 else vector.view(-1, *[1] * (like.ndim - 1 - axis))


def _run(layer: SeededLayer, seed: Seed, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor | None:
    """The kernel's output, of the shape and dtype of ``y``, or None after a fault."""
    kernel = seed.kernel
    assert kernel is not None
    swap = layer.geometry.time_first
    x = x.transpose(0, 1) if swap else x
    try:
        if layer.observing:
            with layer.health.timed(seed.index, x.device):
                k = kernel(x)
        else:
            k = kernel(x)
    except Exception as error:
        layer.fail(seed, "raised", describe(error))
        return None
    if not isinstance(k, torch.Tensor):
        layer.fail(seed, "shape", f"returned {type(k).__name__}, not a tensor")
        return None
    k = k.transpose(0, 1) if swap and k.ndim == 3 else k
    if k.shape != y.shape:
        layer.fail(seed, "shape", f"returned {tuple(k.shape)} where {tuple(y.shape)} belongs")
        return None
    if k.dtype == y.dtype:
        return k
    if k.is_floating_point() and torch.is_autocast_enabled(y.device.type):
        return k.to(y.dtype)
    layer.fail(seed, "dtype", f"returned {k.dtype} where {y.dtype} belongs")
    return None


def describe(error: BaseException) -> str:
    """``error`` in one line: its type and the last line of its message, as scripts put theirs last."""
    kind, lines = type(error).__name__, str(error).strip().splitlines()
    return f"{kind}: {lines[-1].strip().removeprefix(f'{kind}: ')}" if lines else kind


class _Part(NamedTuple):
    """One kernel's part in a blend, fixed at forward because its seed may change before backward."""

    seed_idx: int
    lerp: bool
    isolated: bool


class _Blend(torch.autograd.Function):
    """Blend the kernels' outputs into ``y``, a kernel that is not finite left out, in one pass for the layer.

    Values, by chunk: ``y + a*k``, ``y + a*(k-y)``, and ``y`` for idle and isolated seeds, for alpha 0 and
    where anything in ``k`` is not finite. Gradients: of ``k`` it is ``a*g``, of ``y`` it is ``g`` or
    ``(1-a)*g``. An isolated (TRAINING) kernel gets ``g`` as if it were added in full. With lerp it will stand
    in the place of ``y``, so it also gets ``(k-y)/rows``, the gradient of half the squared distance to ``y``,
    averaged over rows: it learns to give what the host gives, corrected down the loss gradient.

    Failing kernels are left out by a weight of 0 after their non-finite values were replaced, which costs a
    fifth of selecting with a mask.
    """

    @staticmethod
    def forward(
        ctx: Any, y: torch.Tensor, layer: SeededLayer, members: list[Seed], *outputs: torch.Tensor
    ) -> torch.Tensor:
        axis, count = layer.geometry.axis, len(layer.out_sizes)
        parts = [_Part(s.index, s.blend == "lerp", s.state is SeedState.TRAINING) for s in members]
        joined = _join(y, layer, parts, outputs)
        per_feature = sum_per_feature(joined, axis)
        layer.probe.add("output", per_feature)
        layer.probe.add("host", y.sum(dtype=per_feature.dtype))
        index = layer.chunk_index(y.device)
        sums = per_feature.new_zeros(count).index_add_(0, index, per_feature)
        unfit = sums - sums  # 0, or not a number where a sum is not finite
        alphas = {part.seed_idx: s.weight(unfit.dtype) for s, part in zip(members, parts, strict=True)}
        if isolated := [part.seed_idx for part in parts if part.isolated]:
            one = unfit.new_ones(())
            gains = _fit({**alphas, **dict.fromkeys(isolated, one)}, unfit)
            weights = _fit({i: alpha for i, alpha in alphas.items() if i not in isolated}, unfit)
        else:
            weights = gains = _fit(alphas, unfit)
        joined = torch.nan_to_num_(joined, nan=0.0, posinf=0.0, neginf=0.0)
        ctx.layer, ctx.parts = layer, parts
        ctx.save_for_backward(gains, *(_chunk(joined, layer, p) for p in parts if p.isolated and p.lerp))
        return torch.addcmul(y, joined, _along(weights.to(y.dtype).index_select(0, index), y, axis))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
        layer, parts = ctx.layer, ctx.parts
        gains, *distances = ctx.saved_tensors
        axis = layer.geometry.axis
        if not layer.probe.overflow_expected:
            layer.probe.add("host", g.sum(dtype=torch.promote_types(g.dtype, torch.float32)))
        chunks, by_seed = g.split_with_sizes(layer.out_sizes, axis), gains.unbind()
        g_y = g.clone() if any(part.lerp and not part.isolated for part in parts) else g
        g_kernels = []
        for part in parts:
            gain = by_seed[part.seed_idx]
            chunk = chunks[part.seed_idx] * gain
            if part.lerp and part.isolated:
                distance = distances.pop(0)
                rows = distance.numel() // distance.shape[axis]
                chunk = torch.addcmul(chunk, distance, gain.to(g.dtype), value=layer.probe.loss_scale / rows)
            elif part.lerp:
                _chunk(g_y, layer, part).sub_(chunk)
            g_kernels.append(chunk)
        return g_y, None, None, *g_kernels


def _fit(weights: dict[int, torch.Tensor], unfit: torch.Tensor) -> torch.Tensor:
    """The weights by seed, 0 where there is none and where ``unfit`` is not a number: (seeds,)."""
    zero = unfit.new_zeros(())
    stacked = torch.stack([weights.get(i, zero) for i in range(len(unfit))])
    return stacked.add_(unfit).nan_to_num_(nan=0.0)


def _join(
    y: torch.Tensor, layer: SeededLayer, parts: list[_Part], outputs: tuple[torch.Tensor, ...]
) -> torch.Tensor:
    """What the kernels add at alpha 1, side by side in the shape of ``y``, zero where no kernel runs."""
    axis = layer.geometry.axis
    if len(parts) == len(layer.out_sizes) and not any(part.lerp for part in parts):
        return torch.cat(outputs, axis)
    targets = y.split_with_sizes(layer.out_sizes, axis)
    pieces: list[torch.Tensor | None] = [None] * len(targets)
    for part, k in zip(parts, outputs, strict=True):
        pieces[part.seed_idx] = k - targets[part.seed_idx] if part.lerp else k
    filled = [torch.zeros_like(t) if p is None else p for p, t in zip(pieces, targets, strict=True)]
    return torch.cat(filled, axis)


def _chunk(tensor: torch.Tensor, layer: SeededLayer, part: _Part) -> torch.Tensor:
    return tensor.split_with_sizes(layer.out_sizes, layer.geometry.axis)[part.seed_idx]
