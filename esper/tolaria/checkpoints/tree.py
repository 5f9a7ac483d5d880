"""State as a JSON document and named tensors, and back: nothing in a checkpoint is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from torch import Tensor

from esper.tolaria.append_only import AppendOnly

_TENSOR: Final = "$tensor"
_TUPLE: Final = "$tuple"
_DICT: Final = "$dict"
_PAST: Final = "$past"
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})


class Parts(NamedTuple):
    """A state taken apart: a JSON document, and its tensors and what only grows by the paths in it."""

    document: Any
    tensors: dict[str, Tensor]
    past: dict[str, AppendOnly[Any]]


def split(state: Any) -> Parts:
    """Take ``state`` apart, which takes no longer the longer its past is.

    State consists of dicts, lists, tuples, str, int, float, bool, None, tensors, and append-only sequences of
    dataclasses; ``TypeError`` names the path of anything else.
    """
    parts = Parts({}, {}, {})
    return parts._replace(document=_document(state, "", parts))


def plain(items: Iterable[Any]) -> list[Any]:
    """Dataclasses as JSON documents of their fields."""
    return [_document(asdict(item), "", Parts({}, {}, {})) for item in items]


def join(document: Any, tensors: Mapping[str, Tensor], past: Mapping[str, AppendOnly[Any]] | None) -> Any:
    """The state that ``split`` took apart; ValueError where ``past`` is another, with None it is empty."""
    if isinstance(document, list):
        return [join(each, tensors, past) for each in document]
    if not isinstance(document, dict):
        return document
    if _TENSOR in document:
        return tensors[document[_TENSOR]]
    if _PAST in document:
        path, length = document[_PAST]
        found = AppendOnly[Any]() if past is None else past.get(path, AppendOnly[Any]())
        if past is not None and len(found) != length:
            raise ValueError(f"{path} has {len(found)} items, not {length}")
        return found
    if _TUPLE in document:
        return tuple(join(each, tensors, past) for each in document[_TUPLE])
    if _DICT in document:
        pairs = document[_DICT]
        return {join(key, tensors, past): join(value, tensors, past) for key, value in pairs}
    return {key: join(value, tensors, past) for key, value in document.items()}


def to_json(document: Any) -> bytes:
    """The document as JSON in which every float stands to its last bit."""
    return json.dumps(document, separators=(",", ":"), allow_nan=True).encode()


def _document(state: Any, path: str, parts: Parts) -> Any:
    if type(state) in _PLAIN:
        return state
    if isinstance(state, Tensor):
        parts.tensors[path] = state.detach()
        return {_TENSOR: path}
    if isinstance(state, AppendOnly):
        parts.past[path] = state
        return {_PAST: [path, len(state)]}
    if type(state) is list:
        return _items(state, path, parts)
    if isinstance(state, tuple):
        return {_TUPLE: _items(state, path, parts)}
    if isinstance(state, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in state):
            return {key: _document(value, _at(path, key), parts) for key, value in state.items()}
        pairs = [[_key(key, path), _document(value, _at(path, key), parts)] for key, value in state.items()]
        return {_DICT: pairs}
    if isinstance(state, str):  # of an enumeration, which is its value
        return str.__str__(state)
    raise TypeError(f"{path or 'the state'} is {type(state).__name__}, which no checkpoint holds")


def _items(state: Iterable[Any], path: str, parts: Parts) -> list[Any]:
    """Their documents; of a generator's state, which is a thousand numbers, no path is made."""
    return [
        each if type(each) in _PLAIN else _document(each, _at(path, n), parts) for n, each in enumerate(state)
    ]


def _key(key: Any, path: str) -> Any:
    if isinstance(key, tuple):
        return {_TUPLE: [_key(each, path) for each in key]}
    if type(key) in (str, int):
        return key
    raise TypeError(f"{path or 'the state'} has a key of {type(key).__name__}, which no checkpoint holds")


def _at(path: str, step: object) -> str:
    return f"{path}/{step}" if path else str(step)
