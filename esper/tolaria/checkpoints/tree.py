"""State as a JSON document and named tensors, and back: nothing in a checkpoint is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

_TENSOR: Final = "$tensor"
_TUPLE: Final = "$tuple"
_DICT: Final = "$dict"


def split(state: Any) -> tuple[Any, dict[str, Tensor]]:
    """``state`` as a JSON document, and the tensors in it under the path at which each stands.

    State consists of dicts, lists, tuples, str, int, float, bool, None and tensors; ``TypeError`` names
    the path of anything else.
    """
    tensors: dict[str, Tensor] = {}
    return _document(state, "", tensors), tensors


def join(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The state that ``split`` took apart."""
    if isinstance(document, list):
        return [join(each, tensors) for each in document]
    if not isinstance(document, dict):
        return document
    if _TENSOR in document:
        return tensors[document[_TENSOR]]
    if _TUPLE in document:
        return tuple(join(each, tensors) for each in document[_TUPLE])
    if _DICT in document:
        return {join(key, tensors): join(value, tensors) for key, value in document[_DICT]}
    return {key: join(value, tensors) for key, value in document.items()}


def to_json(document: Any) -> bytes:
    """The document as JSON in which every float stands to its last bit."""
    return json.dumps(document, separators=(",", ":"), allow_nan=True).encode()


def _document(state: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(state, Tensor):
        tensors[path] = state.detach()
        return {_TENSOR: path}
    if state is None or type(state) in (str, int, float, bool):
        return state
    if type(state) is list:
        return [_document(each, _at(path, n), tensors) for n, each in enumerate(state)]
    if isinstance(state, tuple):
        return {_TUPLE: [_document(each, _at(path, n), tensors) for n, each in enumerate(state)]}
    if isinstance(state, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in state):
            return {key: _document(value, _at(path, key), tensors) for key, value in state.items()}
        pairs = [[_key(key, path), _document(value, _at(path, key), tensors)] for key, value in state.items()]
        return {_DICT: pairs}
    if isinstance(state, str):  # of an enumeration, which is its value
        return str.__str__(state)
    raise TypeError(f"{path or 'the state'} is {type(state).__name__}, which no checkpoint holds")


def _key(key: Any, path: str) -> Any:
    if isinstance(key, tuple):
        return {_TUPLE: [_key(each, path) for each in key]}
    if type(key) in (str, int):
        return key
    raise TypeError(f"{path or 'the state'} has a key of {type(key).__name__}, which no checkpoint holds")


def _at(path: str, step: object) -> str:
    return f"{path}/{step}" if path else str(step)
