"""Long lists: what is written without Rich looks as what Rich prints."""

import json

import pytest

from esper_cli import terminal
from esper_cli.rows import LongTable

COLUMNS = ("id", "name", "score", "tags")
FIRST = [
    ("kernel_0000", "the widest of names", "1.00", "linear norm residual squeeze attention gated"),
    ("kernel_0001", "short", "0.5", ""),
]
LATER = [
    ("kernel_0002", "", "0.25", "one two"),
    ("kernel_0003", "核のなまえ", "-1.00", "宽字符 標籤 and a_word_of_letters, and more words"),
    ("kernel_0004", "code\x1b[31m", "0", "linear norm residual squeeze attention gated blended fossilized"),
]


def printed(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Its lines, without the rule below the header, which is as long as what is known by then."""
    lines = (line.rstrip() for line in capsys.readouterr().out.splitlines())
    return [line for line in lines if set(line) != {"─"}]


@pytest.mark.parametrize("columns", [None, "200", "80", "60", "24"])
def test_later_parts_look_as_in_one_table(
    columns: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS", raising=False)
    else:
        monkeypatch.setenv("COLUMNS", columns)
    whole = terminal.table(COLUMNS, right=["score"], whole=["id", "name"])
    for row in (*FIRST, *LATER):
        whole.add_row(*row)
    terminal.print_lines(whole)
    expected = printed(capsys)
    parts = LongTable(COLUMNS, right=["score"], whole=["id", "name"])
    for part in (FIRST, LATER[:1], LATER[1:]):
        parts.print(part)
    assert printed(capsys) == expected


def test_a_later_word_that_is_too_long_is_broken_and_not_cut(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    parts = LongTable(COLUMNS, right=["score"], whole=["id", "name"])
    parts.print(FIRST)
    printed(capsys)
    parts.print([("kernel_0002", "", "1.00", "one " + "核" * 25)])
    lines = printed(capsys)
    assert [line[41:] for line in lines] == ["one", "核" * 9, "核" * 9, "核" * 7]


def test_columns_grow_with_what_comes_later(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    parts = LongTable(COLUMNS, right=["score"], whole=["id", "name"])
    for name in ("a", "a longer one", "b"):
        parts.print([("kernel_0000", name, "1.00", "tag")])
    assert printed(capsys)[1:] == [
        "kernel_0000  a      1.00  tag",
        "kernel_0000  a longer one   1.00  tag",
        "kernel_0000  b              1.00  tag",
    ]


def test_json_is_spelled_as_the_library_does(capsys: pytest.CaptureFixture[str]) -> None:
    data = {
        "text": 'é"\n\x1b核', "numbers": [0, -3, 1e-9, 1e22, 2.0], "words": (True, False, None),
        "empty": [{}, [], ""], "inner": {"a": [{"b": 1}, [2]]},
    }  # fmt: skip
    terminal.print_json(data)
    assert capsys.readouterr().out == json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    terminal.print_json_list(item for item in [data, data])
    assert capsys.readouterr().out == json.dumps([data, data], indent=2, ensure_ascii=False) + "\n"
    terminal.print_json_list([])
    assert capsys.readouterr().out == "[]\n"
    with pytest.raises(ValueError, match="not JSON compliant"):
        terminal.print_json([float("inf")])
