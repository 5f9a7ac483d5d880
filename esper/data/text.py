"""The text that ships, cut into windows in which each character is to be predicted from those before it."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from esper.data.shipped import FILES, unreadable
from esper.data.splits import DataSplits, Split, checked_seed
from esper.errors import ConfigError

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz.,;:!?'\"-"
"""The characters of the text; a character's token is its place here."""

STRETCH = 4096
"""Characters of the text that stay together in one split."""

_CHARACTERS = 1_143_512
_TEST_SHARE = 5  # one stretch in so many is set aside
_TEST_SEED = 1813
_NONE = 255

_TOKENS = np.full(256, _NONE, dtype=np.uint8)
_TOKENS[np.frombuffer(ALPHABET.encode("ascii"), dtype=np.uint8)] = np.arange(len(ALPHABET))


class Sizes(NamedTuple):
    """Windows of each split."""

    samples: int
    held_out: int
    test: int


def load_text(
    *,
    length: int = 32,
    samples: int = 8000,
    held_out: int = 1000,
    test: int = 2000,
    split_seed: int = 0,
) -> DataSplits:
    """Two novels of Jane Austen, to predict the next of 37 characters at each of ``length`` positions.

    *Pride and Prejudice* (1813) and *Persuasion* (1818), 1.1 million characters, lower case;
    ``scripts/make_austen_text.py`` made the file. ``samples`` windows are trained on. See :func:`cut`.
    """
    tokens = _read(FILES / "austen.txt.gz")
    return cut(f"austen-{length}", tokens, length, Sizes(samples, held_out, test), split_seed)


def encode(text: str) -> npt.NDArray[np.uint8]:
    """The tokens of ``text``, (len(text),); raises ValueError at a character outside ``ALPHABET``."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    tokens: npt.NDArray[np.uint8] = _TOKENS[np.minimum(codes, len(_TOKENS) - 1)]
    outside = np.flatnonzero(tokens == _NONE)
    if len(outside):
        where = int(outside[0])
        raise ValueError(f"character {where} is {text[where]!r}, which is not in the alphabet")
    return tokens


def decode(tokens: npt.ArrayLike) -> str:
    """The text of a row of tokens: the inverse of :func:`encode`."""
    return "".join(ALPHABET[token] for token in np.asarray(tokens).tolist())


def cut(name: str, tokens: npt.NDArray[np.integer], length: int, sizes: Sizes, split_seed: int) -> DataSplits:
    """Windows of ``tokens``, a text of five stretches or more, in three disjoint splits.

    ``x`` is int64 (N, length), and ``y`` int64 (N, length) the token after each. The text is cut into
    stretches of ``STRETCH`` characters, each of which lies in one split; windows lie side by side in a
    stretch and never reach out of it. One stretch in five is set aside for the test, always the same ones:
    what was tuned on one split was never tested on with another. ``split_seed`` chooses among the rest. A
    larger split of the same kind holds the smaller one, in the same order.

    Raises ConfigError for a length that no stretch holds and for more windows than there are.
    """
    if not 1 <= length < STRETCH:
        raise ConfigError(f"data.length is {length}", hint=f"set it between 1 and {STRETCH - 1}")
    checked_seed(split_seed)
    stretches = tokens[: len(tokens) // STRETCH * STRETCH].reshape(-1, STRETCH)
    # RandomState, as for the cuts of images: its stream never changes.
    order = np.random.RandomState(_TEST_SEED).permutation(len(stretches))
    reserved = len(order) // _TEST_SHARE
    pool = np.random.RandomState(split_seed).permutation(np.sort(order[reserved:]))
    each = (STRETCH - 1) // length
    _check("test", sizes.test, reserved * each, length)
    _check("held_out", sizes.held_out, (len(pool) - 1) * each, length)
    judged = -(-sizes.held_out // each)
    _check("samples", sizes.samples, (len(pool) - judged) * each, length)
    return DataSplits(
        name,
        len(ALPHABET),
        # From the other end, so that what is trained on does not depend on the size of the held-out split.
        train=_windows(stretches[pool[::-1]], length, sizes.samples),
        held_out=_windows(stretches[pool], length, sizes.held_out),
        test=_windows(stretches[order[:reserved]], length, sizes.test),
        vocabulary=len(ALPHABET),
    )


def _windows(stretches: npt.NDArray[np.integer], length: int, count: int) -> Split:
    """The first ``count`` windows of ``stretches`` (S, STRETCH), and the tokens that follow."""
    used = (STRETCH - 1) // length * length
    x, y = (
        stretches[:, first : first + used].reshape(-1, length)[:count].astype(np.int64) for first in (0, 1)
    )
    return Split(torch.from_numpy(x), torch.from_numpy(y))


def _check(key: str, count: int, available: int, length: int) -> None:
    if not 1 <= count <= available:
        raise ConfigError(
            f"data.{key} is {count}, but the text has {available} windows of {length} for it",
            hint=f"set data.{key} between 1 and {available}",
        )


def _read(path: Path) -> npt.NDArray[np.uint8]:
    try:
        with gzip.open(path) as stream:
            tokens = encode(stream.read(_CHARACTERS + 1).decode("ascii"))
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise unreadable(path, error) from error
    if len(tokens) != _CHARACTERS:
        found = f"{len(tokens):,}" if len(tokens) < _CHARACTERS else "more"
        raise unreadable(path, f"expected {_CHARACTERS:,} characters, found {found}")
    return tokens
