"""Python expressions that build modules of ``torch.nn`` again.

The arguments of a constructor are read back from the attributes of the same name, which is how ``torch.nn``
keeps them; the few classes that keep them otherwise are listed in ``_ARGUMENTS``. Only classes that
``torch.nn`` itself exports are written, so the text never names anything a user could have chosen.
"""

from __future__ import annotations

import functools
import inspect
import math
import textwrap
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esper.errors import RunError

WIDTH = 100
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
_NAMESPACES: tuple[tuple[str, types.ModuleType], ...] = (
    ("torch", torch),
    ("F", F),
    ("torch.fft", torch.fft),
    ("torch.linalg", torch.linalg),
    ("torch.special", torch.special),
    ("math", math),
)
_REQUIRED = inspect.Parameter.empty
# Placement, which is settled after the module is built, and old names of Hardtanh's min_val and max_val.
_NOT_KEPT = frozenset({"device", "dtype", "process_group", "min_value", "max_value"})
# Spelled once by torch.nn and expanded to one number an axis.
_PER_AXIS = frozenset({"kernel_size", "stride", "padding", "dilation", "output_padding"})


def is_plain(module: nn.Module) -> bool:
    """Whether ``module`` is exactly a class of ``torch.nn`` that computes something by itself."""
    return getattr(nn, type(module).__name__, None) is type(module) and not isinstance(module, _CONTAINERS)


def built(module: nn.Module, path: str) -> str:
    """The expression that builds a module like ``module``, found at ``path``, in its type."""
    function, arguments = constructor(module, path)
    text = call(function, arguments, indent=len(path) + 16)
    tensors = [*module.parameters(), *module.buffers()]
    kinds = {tensor.dtype for tensor in tensors if tensor.is_floating_point() or tensor.is_complex()}
    if len(kinds) > 1:
        raise RunError(
            f"cannot export module {path!r}: its tensors are of several types, {', '.join(map(str, kinds))}",
            hint="convert the module to one of them with .to(dtype)",
        )
    return text if not kinds or kinds == {torch.float32} else f"{text}.to({kinds.pop()})"


def bare_tensor(name: str, value: Tensor) -> str:
    """The statement that makes room for a tensor which is a parameter or buffer by itself."""
    kind = "" if value.dtype == torch.float32 else f", dtype={value.dtype}"
    zeros = f"torch.zeros({', '.join(map(str, value.shape)) or '()'}{kind})"
    if isinstance(value, nn.Parameter):
        return f"self.{name} = nn.Parameter({zeros})"
    return f'self.register_buffer("{name}", {zeros})'


def constructor(module: nn.Module, path: str) -> tuple[str, list[str]]:
    """The class and the arguments, as text, that build a module like ``module``, found at ``path``.

    Arguments at their default are left out. Raises RunError where an argument cannot be read back.
    """
    if not is_plain(module):
        raise RunError(
            f"cannot export module {path!r}: {type(module).__name__} is no class of torch.nn",
            hint="write it with modules of torch.nn, or remove its parametrizations first",
        )
    positional: list[str] = []
    keyword: list[str] = []
    for name, (default, value) in _arguments(module, path).items():
        text = _module_or_literal(value, f"{path}.{name}")
        if default is _REQUIRED and not keyword:
            positional.append(text)
        elif default is _REQUIRED or not same(value, default):
            keyword.append(f"{name}={text}")
    return f"nn.{type(module).__name__}", positional + keyword


def literal(value: object, where: str) -> str:
    """``value`` as a Python expression; raises RunError for what has none."""
    match value:
        case None | bool() | int() | complex():
            text = repr(value)
        case types.EllipsisType():
            text = "..."
        case str():
            text = f'"{value}"' if value.isidentifier() else repr(value)
        case float():
            text = repr(value) if math.isfinite(value) else f'float("{value}")'
        case slice():
            text = f"slice({', '.join(literal(v, where) for v in (value.start, value.stop, value.step))})"
        case tuple():  # torch.Size too
            text = sequence("()", [literal(item, where) for item in value])
        case list():
            text = sequence("[]", [literal(item, where) for item in value])
        case torch.dtype() | torch.memory_format() | torch.layout():
            text = str(value)
        case _ if callable(value) and (name := function_name(value)):
            text = name
        case _:
            raise RunError(
                f"cannot export {where}: a value of type {type(value).__name__} has no place in plain source",
                hint="use numbers, strings and tuples there, and take devices from the input",
            )
    return text


def call(function: str, arguments: Iterable[str], indent: int = 0) -> str:
    """``function(arguments)``, with an argument a line where it would be too long."""
    arguments = list(arguments)
    line = f"{function}({', '.join(arguments)})"
    return line if indent + len(line) <= WIDTH and "\n" not in line else function + _lines("()", arguments)


def sequence(brackets: str, items: Sequence[str]) -> str:
    """A list or tuple, with an item a line where it would be too long."""
    comma = "," if brackets == "()" and len(items) == 1 else ""
    line = f"{brackets[0]}{', '.join(items)}{comma}{brackets[1]}"
    return line if len(line) <= WIDTH - 12 and "\n" not in line else _lines(brackets, items)


def _lines(brackets: str, items: Iterable[str]) -> str:
    inner = "".join(textwrap.indent(f"{item},\n", " " * 4) for item in items)
    return f"{brackets[0]}\n{inner}{brackets[1]}"


def function_name(function: Callable[..., Any]) -> str | None:
    """How ``function`` is called in public, such as ``F.gelu`` or ``torch.fft.rfft``; None if it is not."""
    try:
        return _functions().get(function)
    except TypeError:  # unhashable
        return None


@functools.cache
def _functions() -> Mapping[Callable[..., Any], str]:
    names: dict[Callable[..., Any], str] = {}
    callables = (types.FunctionType, types.BuiltinFunctionType)
    for prefix, namespace in _NAMESPACES:
        for name, value in vars(namespace).items():
            if isinstance(value, callables) and not name.startswith("_"):
                names.setdefault(value, f"{prefix}.{name}")
    return names


def _arguments(module: nn.Module, path: str) -> dict[str, tuple[object, object]]:
    """Default and value of each argument that counts, by name, in order."""
    kind = type(module)
    given = next((read(module) for base, read in _ARGUMENTS.items() if isinstance(module, base)), {})
    found: dict[str, tuple[object, object]] = {}
    for name, parameter in _signature(kind).items():
        if name in given:
            value = given[name]
        elif name == "bias":
            # Without weights there is no bias either, and the default says so for every version of torch.
            value = getattr(module, "bias", None) is not None or getattr(module, "weight", 0) is None
        elif hasattr(module, name):
            value = getattr(module, name)
        else:
            raise RunError(
                f"cannot export module {path!r}: {kind.__name__} does not keep its argument {name!r}",
                hint="write that part with simpler modules of torch.nn",
            )
        if isinstance(value, tuple) and value and (len(value) == 1 or name in _PER_AXIS):
            value = value[0] if len(set(value)) == 1 else value
        found[name] = (parameter.default, value)
    return found


def _signature(kind: type[nn.Module]) -> dict[str, inspect.Parameter]:
    """The parameters of the constructor that shape the module."""
    parameters = dict(inspect.signature(kind).parameters)
    if issubclass(kind, nn.RNNBase):  # declared as (*args, **kwargs) there
        parameters = dict(inspect.signature(nn.RNNBase).parameters)
        del parameters["mode"]
        if kind is nn.RNN:
            default = inspect.Parameter("nonlinearity", inspect.Parameter.KEYWORD_ONLY, default="tanh")
            parameters["nonlinearity"] = default
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: parameter
        for name, parameter in parameters.items()
        if parameter.kind not in variadic and not name.startswith("_") and name not in _NOT_KEPT
    }


def _module_or_literal(value: object, where: str) -> str:
    if isinstance(value, nn.Module):
        name, arguments = constructor(value, where)
        return f"{name}({', '.join(arguments)})"
    return literal(value, where)


def same(value: object, default: object) -> bool:
    """Whether ``value`` is what leaving the argument out gives."""
    return type(value) is type(default) and value == default


def _rnn(module: Any) -> dict[str, object]:
    return {"num_layers": module.num_layers, "bias": module.bias}


def _attention(module: Any) -> dict[str, object]:
    return {
        "bias": module.in_proj_bias is not None,
        "add_bias_kv": module.bias_k is not None,
        "kdim": None if module.kdim == module.embed_dim else module.kdim,
        "vdim": None if module.vdim == module.embed_dim else module.vdim,
    }


def _transformer_layer(module: Any) -> dict[str, object]:
    return {
        "d_model": module.self_attn.embed_dim,
        "nhead": module.self_attn.num_heads,
        "dim_feedforward": module.linear1.out_features,
        "dropout": module.dropout.p,
        "layer_norm_eps": module.norm1.eps,
        "batch_first": module.self_attn.batch_first,
        "bias": module.linear1.bias is not None,
    }


def _transformer_encoder(module: Any) -> dict[str, object]:
    return {"encoder_layer": module.layers[0]}


_ARGUMENTS: Mapping[type[nn.Module], Callable[[Any], dict[str, object]]] = {
    nn.RNNBase: _rnn,
    nn.MultiheadAttention: _attention,
    nn.TransformerEncoderLayer: _transformer_layer,
    nn.TransformerEncoder: _transformer_encoder,
}
