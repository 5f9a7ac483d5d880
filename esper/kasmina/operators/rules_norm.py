"""Rules of normalisation and attention."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from esper.kasmina.operators.calls import NUMBERS, SIZED, Axes, Axis, Call, Norm, Unruled, Writers, rule
from esper.kasmina.operators.labels import DATA, Dim, Variable, expand, free, pin
from esper.kasmina.operators.rules import bare, biased, merged
from esper.kasmina.operators.rules_pointwise import keeping, operand


@rule("batch_norm", "instance_norm")
def batch_norm(call: Call) -> Axes:
    """(N, C, *) with C weights, biases, running means and variances."""
    mean, variance, weight, bias = (
        call.get(i, name) for i, name in enumerate(("running_mean", "running_var", "weight", "bias"), 1)
    )
    given = operand(call)
    channel = given[1] if len(given) > 1 else given[0]
    for tensor, value in ((mean, 0.0), (variance, 1.0), (weight, 1.0), (bias, 0.0)):
        if tensor is not None:
            call.trace.unify(channel.dim, call.axes(tensor)[0].dim, call.where)
            call.fill(tensor, value)
    call.attribute("num_features", channel.dim)
    return keeping(given)


@rule("group_norm")
def group_norm(call: Call) -> Axes:
    """(N, C, *): the statistics of a group are over its channels, so whole groups grow."""
    given, groups = operand(call), call.get(1, "num_groups")
    weight, bias = call.get(2, "weight"), call.get(3, "bias")
    group = Variable(groups, hint="groups")
    each = Variable(call.result.shape[1] // groups, f"{call.where} takes statistics over it")
    call.trace.unify(given[1].dim, ((group, each),), call.where)
    for tensor, value in ((weight, 1.0), (bias, 0.0)):
        if tensor is not None:
            call.trace.unify(given[1].dim, call.axes(tensor)[0].dim, call.where)
            call.fill(tensor, value)
    call.attribute("num_groups", ((group,),))
    call.attribute("num_channels", given[1].dim)
    return keeping(given)


NUMBERS["group_norm"] = lambda args, kwargs: [args[1] if len(args) > 1 else kwargs["num_groups"]]
SIZED["group_norm"] = lambda _, labels: [_leading(labels[0][1].dim)]


def _leading(dim: Dim) -> Dim:
    first = expand(dim)[0]
    return ((first[0],),)


@rule("layer_norm", "rms_norm")
def layer_norm(call: Call) -> Axes:
    """The last dimension is normalised: new positions must not change its statistics."""
    given, shape = operand(call), call.get(1, "normalized_shape")
    weight, bias = call.get(2, "weight"), call.get(3, "bias")
    rms = call.name == "rms_norm"
    axis = given[-1]
    for tensor in (weight, None if rms else bias):
        if tensor is not None:
            for mine, theirs in zip(given[-tensor.ndim :], call.axes(tensor), strict=True):
                call.trace.unify(mine.dim, theirs.dim, call.where)
    writers = axis.zero if rms else axis.mean
    reason = _refusal(call, len(shape), weight, writers)
    if reason:
        for normalised in given[-len(shape) :]:
            pin(normalised.dim, reason)
        return keeping(given)
    assert writers is not None
    if bias is not None and not rms:
        call.fill(bias, 0.0)
    eps = call.get(3 if rms else 4, "eps", None if rms else 1e-5)
    eps = torch.finfo(call.result.dtype).eps if eps is None else eps
    path = call.trace.stack[-1][0]
    demand: Literal["mean", "zero"] = "zero" if rms else "mean"
    call.trace.norms.append(Norm(path, call.owner, demand, axis.dim, writers, eps))
    call.attribute("normalized_shape", axis.dim)
    return (*keeping(given[:-1]), Axis(axis.dim, zero=Writers()))


def _refusal(call: Call, dims: int, weight: Tensor | None, writers: Writers | None) -> str:
    """Why the width of a norm cannot grow; empty when it can."""
    if not free(operand(call)[-1].dim):
        return f"{call.where} takes statistics over it"
    if dims != 1:
        return f"{call.where} takes statistics over several dimensions"
    if weight is None or not isinstance(call.owner, nn.LayerNorm | nn.RMSNorm):
        return f"{call.where} takes statistics over it and has no weight and eps to make up for it"
    if call.owner.weight is not weight:
        return f"{call.where} takes statistics over it with a weight that is not its own"
    if writers is None:
        what = "zero" if call.name == "rms_norm" else "the mean of the others"
        why = f"its input is no plain sum of layers, whose new channels could be {what}"
        return f"{call.where} takes statistics over it, and {why}"
    return ""


@rule("scaled_dot_product_attention")
def attention(call: Call) -> Axes:
    """(..., L, E), (..., S, E), (..., S, V) to (..., L, V): leading dimensions are apart from one another."""
    names = ("query", "key", "value", "attn_mask")
    q, k, v, mask = (call.get(i, name) for i, name in enumerate(names))
    a, b, c = (call.axes(t) for t in (q, k, v))
    call.trace.unify(a[-1].dim, b[-1].dim, call.where)
    pin(a[-1].dim, f"{call.where} scales by it")
    pin(a[-2].dim, f"{call.where} treats it as positions")
    call.trace.unify(b[-2].dim, c[-2].dim, call.where)
    pin(b[-2].dim, f"{call.where} mixes it")
    if call.kwargs.get("enable_gqa") and q.shape[-3] != k.shape[-3]:
        for axes in (a, b, c):
            pin(axes[-3].dim, f"{call.where} shares keys between heads")
    masks = [call.axes(mask)[:-2]] if mask is not None else []
    out: list[Axis] = []
    for i in range(-call.result.ndim, -2):
        leading = [axes[i] for axes in (a, b, c) if len(axes) >= -i]
        leading += [axes[i + 2] for axes in masks if len(axes) >= -(i + 2)]
        out.append(merged(call, leading, call.result.shape[i]))
    if len(out) > 1:
        for variable in free(out[-1].dim)[:1]:
            variable.hint = variable.hint or "heads"
    return (*out, bare(a[-2]), Axis(c[-1].dim, c[-1].mean, c[-1].zero))


_ARGUMENTS = """
query key value embed_dim_to_check num_heads in_proj_weight in_proj_bias bias_k bias_v add_zero_attn
dropout_p out_proj_weight out_proj_bias training key_padding_mask need_weights attn_mask
use_separate_proj_weight q_proj_weight k_proj_weight v_proj_weight static_k static_v average_attn_weights
is_causal
"""
_MHA = _ARGUMENTS.split()


@rule("multi_head_attention_forward")
def multi_head_attention(call: Call) -> list[Axes]:
    """``nn.MultiheadAttention``: the inner width is that of the stream, heads times head size."""
    given: dict[str, Any] = dict(zip(_MHA, call.args, strict=False)) | call.kwargs
    owner = call.owner
    if not isinstance(owner, nn.MultiheadAttention) or given.get("static_k") is not None:
        raise Unruled
    query, out_rows = call.axes(given["query"]), call.axes(given["out_proj_weight"])
    heads = Variable(given["num_heads"], hint="heads")
    each = Variable(owner.head_dim, f"{call.where} scales by it")
    width: Dim = ((heads, each),)
    call.trace.unify(query[-1].dim, width, call.where)
    _inputs(call, given, query, heads, each)
    for name in ("bias_k", "bias_v"):
        if given.get(name) is not None:
            call.trace.unify(call.axes(given[name])[-1].dim, width, call.where)
    inner = Axis(width)
    call.read(inner, out_rows[1])
    out = biased(call, call.write(out_rows[0]), given["out_proj_bias"])
    call.trace.unify(out.dim, width, call.where)
    _sizes(call, owner, heads, width)
    weights = call.result[1]
    if weights is None:
        return [(*map(bare, query[:-1]), out)]
    labels = tuple(Axis(((Variable(size, DATA, data=True),),)) for size in weights.shape)
    call.trace.tainted[id(weights)] = (
        width,
        f"{call.where} gives its weights out, and they change with the heads",
    )
    return [(*map(bare, query[:-1]), out), labels]


def _inputs(call: Call, given: dict[str, Any], query: Axes, heads: Variable, each: Variable) -> None:
    """The projections of query, key and value into the heads."""
    streams = [query, call.axes(given["key"]), call.axes(given["value"])]
    three: Dim = ((Variable(3, DATA, data=True), heads, each),)
    if given.get("use_separate_proj_weight"):
        weights = [call.axes(given[f"{name}_proj_weight"]) for name in "qkv"]
        for rows in weights:
            call.trace.unify(rows[0].dim, ((heads, each),), call.where)
    else:
        rows = call.axes(given["in_proj_weight"])
        call.trace.unify(rows[0].dim, three, call.where)
        weights = [rows] * 3
    for stream, rows in zip(streams, weights, strict=True):
        call.read(stream[-1], rows[1])
        call.write(rows[0])
    if given["in_proj_bias"] is not None:
        call.trace.unify(call.axes(given["in_proj_bias"])[0].dim, three, call.where)


def _sizes(call: Call, owner: nn.MultiheadAttention, heads: Variable, width: Dim) -> None:
    call.attribute("num_heads", ((heads,),))
    call.attribute("embed_dim", width)
    for name, key in (("kdim", "key"), ("vdim", "value")):
        call.attribute(name, call.axes(_argument(call, key))[-1].dim)
    for name in ("in_features", "out_features"):
        call.attribute(name, width, owner.out_proj)


def _argument(call: Call, name: str) -> Tensor:
    value = call.get(_MHA.index(name), name)
    assert isinstance(value, Tensor)
    return value
