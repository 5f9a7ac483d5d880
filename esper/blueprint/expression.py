"""Sizes as arithmetic over a slot: ``ceil(in / 4)``, ``max(8, out // 2)``.

The whole language, read by the recursive descent below and by nothing else::

    sum     = product { ("+" | "-") product }
    product = factor { ("*" | "/" | "//") factor }
    factor  = "-" factor | NUMBER | NAME | FUNCTION "(" sum { "," sum } ")" | "(" sum ")"
    FUNCTION = "ceil" | "floor" | "min" | "max"

Arithmetic is exact (rational numbers), so a size is the same on every machine. Length, depth and the digits
of a number are bounded before anything is computed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fractions import Fraction
from functools import lru_cache
from typing import NoReturn

MAX_LENGTH = 160
MAX_DEPTH = 16
MAX_DIGITS = 12

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign>//|[-+*/(),]))", re.ASCII
)
_FUNCTIONS: dict[str, tuple[int, int, Callable[..., Fraction]]] = {
    "ceil": (1, 1, lambda value: Fraction(math.ceil(value))),
    "floor": (1, 1, lambda value: Fraction(math.floor(value))),
    "min": (2, 8, min),
    "max": (2, 8, max),
}
_OPERATORS: dict[str, tuple[int, Callable[[Fraction, Fraction], Fraction]]] = {
    "+": (1, lambda left, right: left + right),
    "-": (1, lambda left, right: left - right),
    "*": (2, lambda left, right: left * right),
    "/": (2, lambda left, right: left / right),
    "//": (2, lambda left, right: Fraction(left // right)),
}
FUNCTIONS = tuple(_FUNCTIONS)


class ExpressionError(ValueError):
    """An expression outside the grammar, or one without a value; ``hint`` is the next step."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Term:
    """A number, a name, or an operator or function (``head``) over ``args``."""

    head: str | Fraction
    args: tuple[Term, ...] = ()


def nearest(word: str, words: Mapping[str, object] | tuple[str, ...] | list[str]) -> str:
    """What to write instead of ``word``: the nearest of ``words``, or the list of them."""
    close = get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"one of: {', '.join(words)}"


class _Parser:
    """Recursive descent over the tokens of one expression, at most ``MAX_DEPTH`` levels deep."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[tuple[str, str]] = []
        self.position = 0
        at = 0
        end = len(text.rstrip())
        while at < end:
            match = _TOKEN.match(text, at)
            if match is None or match.lastgroup is None:
                self.fail(f"has an unexpected {text[at:].lstrip()[:1]!r}")
            self.tokens.append((match.lastgroup, match[match.lastgroup]))
            at = match.end()

    def fail(self, what: str) -> NoReturn:
        raise ExpressionError(
            f"the expression {self.text[:40]!r} {what}",
            f"write numbers, names, + - * / //, parentheses and {', '.join(FUNCTIONS)}",
        )

    def take(self, *signs: str) -> str | None:
        """The next token if it is one of ``signs``."""
        if self.position < len(self.tokens) and self.tokens[self.position][1] in signs:
            self.position += 1
            return self.tokens[self.position - 1][1]
        return None

    def expect(self, sign: str) -> None:
        if self.take(sign) is None:
            self.fail(f"lacks a {sign!r}")

    def sum(self, depth: int) -> Term:
        left = self.product(depth)
        while sign := self.take("+", "-"):
            left = Term(sign, (left, self.product(depth)))
        return left

    def product(self, depth: int) -> Term:
        left = self.factor(depth)
        while sign := self.take("*", "/", "//"):
            left = Term(sign, (left, self.factor(depth)))
        return left

    def factor(self, depth: int) -> Term:
        if depth >= MAX_DEPTH:
            self.fail(f"is nested deeper than {MAX_DEPTH} levels")
        if self.take("-"):
            return Term("-", (Term(Fraction(0)), self.factor(depth + 1)))
        if self.take("("):
            inner = self.sum(depth + 1)
            self.expect(")")
            return inner
        if self.position == len(self.tokens):
            self.fail("ends too early" if self.tokens else "is empty")
        kind, word = self.tokens[self.position]
        self.position += 1
        if kind == "number":
            return self.number(word)
        if kind != "name":
            self.fail(f"has an unexpected {word!r}")
        return self.call(word, depth) if self.take("(") else Term(word)

    def number(self, digits: str) -> Term:
        if len(digits) > MAX_DIGITS:
            self.fail(f"has a number of more than {MAX_DIGITS} digits")
        return Term(Fraction(digits))

    def call(self, name: str, depth: int) -> Term:
        if name not in _FUNCTIONS:
            raise ExpressionError(f"unknown function {name!r} in {self.text!r}", nearest(name, FUNCTIONS))
        args = [self.sum(depth + 1)]
        while self.take(","):
            args.append(self.sum(depth + 1))
        self.expect(")")
        least, most, _ = _FUNCTIONS[name]
        if not least <= len(args) <= most:
            self.fail(f"gives {name} {len(args)} values where it takes {least} to {most}")
        return Term(name, tuple(args))


@lru_cache(maxsize=4096)
def parse(text: str) -> Term:
    """The tree of ``text``; raises ``ExpressionError`` where it is not in the grammar."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"an expression of {len(text)} characters; at most {MAX_LENGTH} are read")
    parser = _Parser(text)
    tree = parser.sum(0)
    if parser.position != len(parser.tokens):
        parser.fail(f"has an unexpected {parser.tokens[parser.position][1]!r}")
    return tree


def names(term: Term) -> frozenset[str]:
    """The names that ``term`` refers to."""
    if isinstance(term.head, str) and not term.args:
        return frozenset({term.head})
    return frozenset().union(*(names(arg) for arg in term.args))


def evaluate(term: Term, values: Mapping[str, int]) -> Fraction:
    """The exact value of ``term``, whose names are all in ``values``."""
    if isinstance(term.head, Fraction):
        return term.head
    if not term.args:
        return Fraction(values[term.head])
    args = [evaluate(arg, values) for arg in term.args]
    if term.head in _FUNCTIONS:
        return _FUNCTIONS[term.head][2](*args)
    try:
        return _OPERATORS[term.head][1](*args)
    except ZeroDivisionError:
        raise ExpressionError(f"the expression {render(term)!r} divides by zero") from None


def render(term: Term) -> str:
    """``term`` in its one canonical spelling: no blanks, no parentheses that change nothing."""
    if isinstance(term.head, Fraction):
        return _decimal(term.head)
    if not term.args:
        return term.head
    if term.head in _FUNCTIONS:
        return f"{term.head}({','.join(render(arg) for arg in term.args)})"
    left, right = term.args
    if term.head == "-" and left == Term(Fraction(0)):
        return f"-{_operand(right, 3)}"
    binding = _OPERATORS[term.head][0]
    return f"{_operand(left, binding)}{term.head}{_operand(right, binding + 1)}"


def _operand(term: Term, binding: int) -> str:
    """``term`` in parentheses where it binds less tightly than ``binding``."""
    text = render(term)
    loose = isinstance(term.head, str) and term.head in _OPERATORS
    return f"({text})" if loose and _OPERATORS[str(term.head)][0] < binding else text


def _decimal(value: Fraction) -> str:
    """A literal as it is written: literals are decimal fractions, so their decimals end."""
    if value.denominator == 1:
        return str(value.numerator)
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
    scaled = str(int(value * 10**digits)).rjust(digits + 1, "0")
    return f"{scaled[:-digits]}.{scaled[-digits:]}"
