"""The ops of the language as a table in Markdown; ``python -m esper.blueprint.reference`` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from esper.blueprint.ops import LAYOUTS, OPS, Flag, Op, Parameter, Size


def op_table() -> str:
    """A row an op: what it computes, its inputs and parameters, and the layouts that it works on."""
    head = ["op", "what it computes", "inputs", "parameters", *LAYOUTS]
    rows = [_row(head), _row(["---"] * len(head)), *(_row(list(_cells(op))) for op in OPS.values())]
    return "\n".join(rows) + "\n"


def _cells(op: Op) -> Iterator[str]:
    least, most = op.inputs
    yield f"`{op.name}`"
    yield op.summary
    yield str(least) if least == most else f"{least} to {most}"
    yield "; ".join(_told(name, parameter) for name, parameter in op.parameters.items())
    for layout in LAYOUTS:
        yield "yes" if layout in op.layouts else ""


def _told(name: str, parameter: Parameter) -> str:
    """``name``, its bounds and its default; without one it must be written."""
    if isinstance(parameter, Flag):
        bounds = "true or false"
    elif isinstance(parameter, Size):
        bounds = f"{parameter.low} to {parameter.high}"
    else:
        bounds = f"{parameter.low:g} to {parameter.high:g}, a decimal"
    default = "" if parameter.default is None else f" (else {str(parameter.default).lower()})"
    return f"`{name}`: {bounds}{default}"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(op_table(), end="")
