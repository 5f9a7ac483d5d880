"""What a compiled kernel may be made of. Anything else, known or new, is refused.

PyTorch has ops that read and write files (``aten::save``, ``aten::from_file``), print, start threads, talk to
profilers and other machines, and lets archives run code of their own while they are loaded. A list of what
is bad would have to grow with it; this one grows with the blueprint language only, and a test holds the two
together.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

_CONTROL = """
    Constant GetAttr If Loop ListConstruct ListUnpack TupleConstruct TupleUnpack RaiseException Uninitialized
    unchecked_cast NumToTensor min max dtype device
"""
_NUMBERS = """
    __and__ __contains__ __getitem__ __is__ __isnot__ __not__ __or__ Bool Float Int IntImplicit ScalarImplicit
    append ceil dim eq floor floordiv format ge gt item le len list lt ne numel remainder size sqrt
"""
_ARITHMETIC = """
    abs add add_ addmm amax amin bmm clamp cos cumsum div div_ einsum erf exp log log1p logsumexp matmul mean
    mm mul mul_ neg norm pow reciprocal rsqrt sin softplus square std sub sub_ sum tanh tanh_ var where
"""
_LAYERS = """
    _convolution avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d batch_norm conv1d conv2d
    convolution dropout dropout_ elu feature_dropout gelu group_norm hardswish hardsigmoid layer_norm
    leaky_relu linear log_softmax max_pool1d max_pool2d mish native_layer_norm relu relu_ rms_norm
    scaled_dot_product_attention sigmoid sigmoid_ silu silu_ softmax
"""
_SHAPES = """
    cat chunk constant_pad_nd contiguous detach expand expand_as fft_fft fft_fftn fft_ifft fft_irfft fft_rfft
    flatten flip movedim narrow pad permute pixel_shuffle pixel_unshuffle real repeat reshape roll select
    slice split squeeze stack t to transpose tril triu unbind unflatten unsqueeze view view_as type_as
    ones_like zeros_like
"""
ALLOWED = frozenset(f"prim::{name}" for name in _CONTROL.split()) | frozenset(
    f"aten::{name}" for name in (_NUMBERS + _ARITHMETIC + _LAYERS + _SHAPES).split()
)
"""Kinds of nodes, as a graph that calls no other method or function names them."""

_SIZES = frozenset({operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod, operator.neg})
"""What exported graphs do with sizes, besides asking for them."""

_DATA = frozenset(
    f"{kind}Type"
    for kind in ("Bool", "Dict", "Float", "Int", "List", "None", "Optional", "String", "Tensor", "Tuple")
)
"""Kinds of types that attributes may have, besides the modules themselves."""


def foreign_parts(program: nn.Module) -> list[str]:
    """What in ``program`` no kernel may hold, sorted: ops of all its methods, hooks, and types of attributes.

    An object of a class is such a part, and so is a method that loading an archive runs, whatever it does.
    """
    if not isinstance(program, torch.jit.ScriptModule):
        return [f"a {type(program).__name__}, which is no script module"]
    modules: list[Any] = [module._c for module in program.modules()]
    own = {str(module._type()) for module in modules}
    found = {name for name, kind in _types(program._c._type()).items() if kind not in _DATA} - own
    for module in modules:
        hooks = (*module._get_forward_hooks(), *module._get_forward_pre_hooks())
        found |= {f"hook {hook.name}" for hook in hooks}
        for name in module._method_names():
            if name in ("__setstate__", "__getstate__"):
                found.add(name)
            graph = module._get_method(name).graph.copy()
            torch._C._jit_pass_inline(graph)
            found |= _kinds(graph) - ALLOWED
    return sorted(found)


def foreign_ops(program: fx.GraphModule) -> list[str]:
    """What in the graph of an exported ``program`` no kernel may hold, sorted: other ops, and other calls.

    Such a graph has no hooks, classes or methods.
    """
    found = set()
    for node in program.graph.nodes:
        if node.op == "call_function":
            op = getattr(getattr(node.target, "_schema", None), "name", "")
            if op not in ALLOWED and op != "aten::sym_size" and node.target not in _SIZES:
                found.add(op or str(node.target))
        elif node.op not in ("placeholder", "output"):
            found.add(f"{node.op} {node.target}")
    return sorted(found)


def _types(held: Any) -> dict[str, str]:
    """The types that ``held`` is made of, at any depth, with their kinds."""
    found: dict[str, str] = {}
    waiting = [held]
    while waiting:
        for inner in waiting.pop().containedTypes():
            if str(inner) not in found:
                found[str(inner)] = inner.kind()
                waiting.append(inner)
    return found


def _kinds(block: Any) -> set[str]:
    """The kinds of the nodes in a graph or block, and in the blocks below it."""
    kinds: set[str] = set()
    for node in block.nodes():
        kinds.add(node.kind())
        for inner in node.blocks():
            kinds |= _kinds(inner)
    return kinds
