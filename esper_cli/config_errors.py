"""What Hydra, OmegaConf and YAML complain about, said in one line with the nearest right names."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, ListConfig, OmegaConf, ValueNode
from yaml import MarkedYAMLError

from esper.errors import ConfigError

SHOW_KEYS = "see every key with: esper train --cfg job"


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of ``known`` that look like ``name``, the most similar first.

    Names that end alike count as near: ``epochs`` finds ``tolaria.epochs``.
    """
    names = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.75)
    last = name.rpartition(".")[2]
    tails = {candidate: candidate.rpartition(".")[2] for candidate in names}
    similar = difflib.get_close_matches(last, list(tails.values()), n=3, cutoff=0.75)
    by_tail = [c for s in dict.fromkeys(similar) for c, tail in tails.items() if tail == s]
    return list(dict.fromkeys([*close, *by_tail]))[:3]


def keys(cfg: DictConfig) -> Iterator[str]:
    """The dotted path of every key, inner ones included; interpolations are not resolved."""
    return (path for path, _ in _nodes(cfg))


def _nodes(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key in map(str, cfg):
        path, node = f"{prefix}{key}", cfg._get_node(key)
        yield path, node
        if isinstance(node, DictConfig) and not (node._is_none() or node._is_missing()):
            yield from _nodes(node, f"{path}.")


def unknown(kind: str, name: str, known: Iterable[str], otherwise: str, where: str = "") -> ConfigError:
    """The error for ``name``, which is no ``kind``: the nearest of ``known``, or the hint ``otherwise``."""
    close = nearest(name, known)
    hint = f"did you mean {' or '.join(close)}?" if close else otherwise
    return ConfigError(f"unknown {kind} {name!r}{where}", hint=hint)


def explain(
    error: Exception, overrides: Sequence[str], known: Iterable[str], experiments: Iterable[str] = ()
) -> ConfigError:
    """The one-line error for what composing a configuration with ``overrides`` raised.

    ``known`` holds the keys and groups that an override may name, ``experiments`` those that there are.
    """
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _missing(str(error.missing_cfg_file), error.options or (), text)
    if isinstance(error, OverrideParseException):
        if error.override in experiments:
            hint = f"did you mean +experiment={error.override}?"
            return ConfigError(f"{error.override!r} is no override", hint=hint)
        return ConfigError(
            f"cannot read the override {error.override!r}: {_reason(error.message)}",
            hint="write overrides as key=value, lists as key=[a,b], and quote what holds a comma or a space",
        )
    if match := re.match(r"Could not (?:override|delete from config\.) '([^']+)'", text):
        return _not_there(match[1], text, known)
    if match := re.match(r"Ambiguous value for argument '([^']+)'", text):
        return ConfigError(
            f"{match[1]!r} names several values",
            hint="add --multirun to sweep over them, or write key=[a,b] for a list",
        )
    if match := re.match(r"Sweep parameters '([^']+)' requires --multirun", text):
        return ConfigError(f"{match[1]!r} is a sweep", hint="add --multirun to run it")
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return ConfigError(
            f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: {error.problem}",
            hint="correct the YAML of that file",
        )
    given = f" (given: {' '.join(overrides)})" if overrides else ""
    return ConfigError(f"the configuration cannot be composed: {_reason(text)}{given}", hint=SHOW_KEYS)


def _missing(path: str, options: Sequence[str], text: str) -> ConfigError:
    group, _, name = path.rpartition("/")
    where = match[1] if (match := re.match(r"In '([^']+)'", text)) else "config"
    place = "" if where in ("config", "hydra/config") else f", which {where} asks for"
    if group == "hydra/launcher" and name not in options:
        return ConfigError(
            f"no launcher {name!r} is installed",
            hint="joblib comes with: pip install 'esper-morph[sweeps]'",
        )
    options = options or _files_of(group, text)
    listed = f"there is: {', '.join(sorted(options))}" if options else f"there is no group {group!r}"
    return unknown(group or "config", name, options, listed, place)


def _files_of(group: str, text: str) -> list[str]:
    """The files of a group: Hydra lists none where several of them may be chosen, only where it looked."""
    roots = re.findall(r"path=file://(.+)$", text, re.MULTILINE)
    return sorted({path.stem for root in roots for path in Path(root, group).glob("*.yaml")})


def _not_there(name: str, text: str, known: Iterable[str]) -> ConfigError:
    if addition := re.search(r"To append to your default list use (\S+)", text):
        return ConfigError(f"{name!r} has no default to replace", hint=f"write {addition[1]}")
    known = list(known)
    if name in known:
        return ConfigError(
            f"what is given for {name!r} holds a key that is not there",
            hint=f"set its keys as {name}.KEY=VALUE",
        )
    ours = [key for key in known if key.startswith("hydra") == name.startswith("hydra")]
    if f"{name.rpartition('.')[0]}._target_" in known:  # what is made of it may take more than is listed
        close = nearest(name, ours)
        hint = f"did you mean {' or '.join(close)}? If not, " if close else ""
        return ConfigError(f"unknown key {name!r}", hint=f"{hint}add an argument as +{name}=VALUE")
    return unknown("key", name, ours, SHOW_KEYS)


def _reason(text: str) -> str:
    """A message of several lines as one, without the pointers into Hydra's manual and internals."""
    lines = (line.strip() for line in text.splitlines())
    kept = [
        line
        for line in lines
        if line and not line.startswith(("See https://", "Error parsing override", "object_type="))
    ]
    return "; ".join(kept)


def check(cfg: DictConfig, base: DictConfig, added: Sequence[str], groups: Iterable[str] = ()) -> None:
    """Hold ``cfg`` against ``base``, the same choice of groups without any value overridden.

    Catches what composing lets through: a misspelt key in an experiment file, a value of another type than
    the default, a key that was deleted. A key is free where ``base`` has ``null`` or an empty mapping. Those
    in ``added``, which the user gave with ``+``, are free where another value refers to them, and in what is
    made of a ``_target_``, which may lack keys too. ``groups`` are those of which an option is chosen.

    Raises:
        ConfigError: naming the first key that is wrong.
    """
    known = dict(_nodes(base))
    present = dict(_nodes(cfg))
    for path, node in present.items():
        if _is_the_same(node, known.get(path)):
            continue
        if any(_is_at_or_below(path, key) and _is_read(cfg, base, key) for key in added):
            continue
        parent = (
            OmegaConf.select(base, path.rpartition(".")[0], throw_on_missing=False) if "." in path else base
        )
        if not isinstance(parent, DictConfig) or not parent:
            continue
        if path not in known:
            raise unknown("key", path, known, SHOW_KEYS)
        value = _value(cfg, path)
        if isinstance(value, str) and (group := path.replace(".", "/")) in groups:
            raise ConfigError(f"{path} is chosen as a whole", hint=f"write {group}={value}")
        _check_type(path, value, _value(base, path))
    for path in known:
        if path not in present and not _is_an_argument(base, path):
            raise ConfigError(f"{path} must be given", hint=SHOW_KEYS)


def _is_the_same(node: Any, default: Any) -> bool:
    """Whether it is plainly the default, which most are: to look a value up by its path takes long."""
    if not isinstance(node, ValueNode) or not isinstance(default, ValueNode) or node._is_interpolation():
        return False
    return type(node._value()) is type(default._value()) and node._value() == default._value()


def _is_at_or_below(path: str, key: str) -> bool:
    return path == key or path.startswith(f"{key}.")


def _is_read(cfg: DictConfig, base: DictConfig, key: str) -> bool:
    """Whether anybody asks for ``key``, of which ``base`` knows nothing."""
    return _is_an_argument(base, key) or any(
        f"${{{key}}}" in str(node._value())
        for _, node in _nodes(cfg)
        if isinstance(node, ValueNode) and node._is_interpolation()
    )


def _is_an_argument(base: DictConfig, path: str) -> bool:
    """Whether ``path`` lies in what describes an object, which knows its own defaults."""
    while path := path.rpartition(".")[0]:
        if OmegaConf.select(base, f"{path}._target_", throw_on_missing=False) is not None:
            return True
    return False


def _check_type(path: str, value: object, default: object) -> None:
    if default is None or (isinstance(default, str) and value is not None):
        return  # a default of text says too little: "auto" may stand beside a number
    expected, fits = _expected(value, default)
    if not fits:
        shown = "" if OmegaConf.is_config(default) else f"its default is {default}"
        given = "null" if value is None else repr(value)
        raise ConfigError(f"{path} must be {expected}, not {given}", hint=shown or SHOW_KEYS)


def _expected(value: object, default: object) -> tuple[str, bool]:
    """What a value in the place of ``default`` must be, in words, and whether ``value`` is."""
    if isinstance(default, bool):
        return "true or false", isinstance(value, bool)
    if isinstance(default, int):
        return "a whole number", isinstance(value, int) and not isinstance(value, bool)
    if isinstance(default, float):
        return "a number", isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(default, DictConfig):
        return "a mapping", isinstance(value, DictConfig)
    if isinstance(default, str):
        return "text", value is not None
    return "a list", isinstance(value, ListConfig)


def _value(cfg: DictConfig, path: str) -> object:
    return OmegaConf.select(cfg, path, throw_on_missing=False)
