"""Size expressions: exact values, one spelling, nothing outside the grammar."""

from __future__ import annotations

import pytest

from esper.blueprint import expression
from esper.blueprint.expression import ExpressionError

SLOT = {"in": 30, "out": 16, "stride": 2}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7),
        ("ceil(in / 4)", 8),
        ("floor(in/4)", 7),
        ("in // 4 * 4", 28),
        ("in - out - 1", 13),
        ("in / 4 * 4", 30),  # exact: no rounding on the way
        ("0.1 * 30", 3),
        ("-in + 40", 10),
        ("max(8, min(in, out, 12))", 12),
        ("2 * (in + out) // 3", 30),
        ("ceil(1 / 3 * 3)", 1),
    ],
)
def test_value_is_exact(text: str, value: int) -> None:
    assert expression.evaluate(expression.parse(text), SLOT) == value


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        (" ceil( in/ 4 ) ", "ceil(in/4)"),
        ("((in))", "in"),
        ("(in * 2) + 1", "in*2+1"),
        ("in - (out - 1)", "in-(out-1)"),
        ("2 * (in + 1)", "2*(in+1)"),
        ("04.50", "4.5"),
        ("-(in + 1)", "-(in+1)"),
    ],
)
def test_spelling_is_canonical(text: str, spelling: str) -> None:
    tree = expression.parse(text)
    assert expression.render(tree) == spelling
    assert expression.parse(spelling) == tree


@pytest.mark.parametrize(
    "text",
    [
        "",
        "in +",
        "in in",
        "(in",
        "in)",
        "2 ** 9",
        "in % 2",
        "in.real",
        "__import__('os')",
        "ceil()",
        "ceil(1, 2)",
        "min(1)",
        "log(2)",
        "1e9",
        "1234567890123",
        "\u0456n",  # a Cyrillic letter
        "\u0663",  # an Arabic digit
        "in" + " + 1" * 60,
        "(" * 40 + "1" + ")" * 40,
        "-" * 40 + "1",
    ],
)
def test_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        expression.parse(text)


def test_unknown_function_names_the_nearest() -> None:
    with pytest.raises(ExpressionError) as caught:
        expression.parse("ciel(in / 4)")
    assert caught.value.hint == "did you mean 'ceil'?"


def test_division_by_zero_is_an_expression_error() -> None:
    with pytest.raises(ExpressionError, match="divides by zero"):
        expression.evaluate(expression.parse("1 // (in - 30)"), SLOT)
