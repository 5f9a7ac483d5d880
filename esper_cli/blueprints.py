"""``esper blueprints``: list, show, check, draw and begin blueprints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.table import Table

from esper.errors import BlueprintError, ConfigError, StorageError
from esper.messages import Layout, Slot
from esper_cli.compile import parse_shape
from esper_cli.completion import complete_names, complete_overrides, complete_paths
from esper_cli.terminal import console, count, counted, error_line, is_wide, print_json, print_lines, table

if TYPE_CHECKING:
    from esper.blueprint import Blueprint
    from esper.karn.catalogue import Catalogue

app = typer.Typer(no_args_is_help=True, help="List, show, check, draw and begin blueprints.")

LAYOUTS = ("features", "tokens", "channels")


def _names() -> list[str]:
    return [blueprint.name for blueprint in _catalogue((), ()).blueprints]


def complete_files(incomplete: str) -> list[str]:
    """Folders, and the blueprint files among the rest."""
    from esper.blueprint import SUFFIXES

    return complete_paths(incomplete, SUFFIXES)


def _complete_files_or_names(incomplete: str) -> list[str]:
    return [*complete_files(incomplete), *complete_names(_names)(incomplete)]


def _complete_files_or_overrides(incomplete: str) -> list[str]:
    return [*complete_files(incomplete), *complete_overrides(incomplete)]


For = Annotated[
    list[str] | None,
    typer.Option(
        "--for",
        metavar="LAYOUT:IN:OUT[:STRIDE]",
        help="Tell sizes and cost in this slot, such as channels:16:32:2; may be repeated.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NameOrFile = Annotated[
    str,
    typer.Argument(
        metavar="NAME|FILE",
        help="A blueprint of the catalogue, or a file.",
        autocompletion=_complete_files_or_names,
    ),
]


@app.command("ls", epilog="Example: esper blueprints ls --for channels:16:32:2")
def list_blueprints(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATHS|KEY=VALUE",
            help="Files, and folders of them; those of karn.paths unless given; overrides.",
            autocompletion=_complete_files_or_overrides,
            show_default=False,
        ),
    ] = None,
    for_: For = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only those with this tag; repeated: with all.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List blueprints; with --for, what they would cost there, counted before anything is allocated.

    FLOPs are those of one pass over a batch of two, 8 long or 8 x 8 large, as budgets count them.
    """
    words = paths or []
    overrides = [word for word in words if "=" in word and not Path(word).exists()]
    slots = _slots(for_)
    catalogue = _catalogue([Path(word) for word in words if word not in overrides], overrides)
    chosen = [b for b in catalogue.blueprints if {*(tag or ())} <= {*b.tags}]
    records = [{**_summary(blueprint), "for": _costs(blueprint, slots)} for blueprint in chosen]
    if as_json:
        print_json({"blueprints": records, "errors": [str(error) for error in catalogue.errors]})
    else:
        print_lines(_costs_table(records) if slots else _table(records))
        for slot in slots:
            fit = sum("parameters" in place for record in records for place in record["for"]
                      if place["slot"] == str(slot))  # fmt: skip
            print_lines(f"{fit} of {len(records)} fit {slot}")
        for error in catalogue.errors:
            print_lines(error_line(error), stderr=True)
    if catalogue.errors:
        raise typer.Exit(BlueprintError.exit_code)


@app.command("show", epilog="Example: esper blueprints show squeeze_excite --for channels:16:16")
def show_blueprint(name: NameOrFile, for_: For = None, as_json: AsJson = False) -> None:
    """Show a blueprint: its ids, its sizes in a slot, and the document itself in canonical form."""
    import yaml

    shown = []
    for blueprint in _find(name):
        document = blueprint.model_dump(mode="json")
        shown.append({**_summary(blueprint), "for": _costs(blueprint, _slots(for_)), "blueprint": document})
    if as_json:
        print_json(shown[0] if len(shown) == 1 else shown)
        return
    for record in shown:
        rows = table(("", ""))
        rows.show_header = False
        for fact in ("name", "file", "blueprint_id", "graph_id"):
            if record[fact]:
                rows.add_row(fact.removesuffix("_id"), str(record[fact]))
        for place in record["for"]:
            rows.add_row(f"for {place['slot']}", _place(place))
        text = yaml.safe_dump(record["blueprint"], sort_keys=False, default_flow_style=None, width=78)
        print_lines(rows, "", text.rstrip())


@app.command("lint", epilog="Example: esper blueprints lint blueprints/")
def lint_blueprints(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATHS", help="Files, and folders of them.", autocompletion=complete_files),
    ],
    for_: For = None,
    as_json: AsJson = False,
) -> None:
    """Name every mistake in blueprint files, with file, line, node and the nearest valid word.

    What is odd but allowed is a warning. With an error the exit code is 4.
    """
    from esper.blueprint.lint import Linter
    from esper.karn.catalogue import blueprint_files

    linter = Linter(_slots(for_))
    found, files = [], dict.fromkeys(file for path in paths for file in blueprint_files(Path(path)))
    for file in files:
        found += linter.read(file)
    errors = sum(finding.severity == "error" for finding in found)
    counts = (len(files), errors, len(found) - errors)
    if as_json:
        print_json([asdict(finding) for finding in found])
    else:
        for finding in found:
            hint = f" ({finding.hint})" if finding.hint else ""
            print_lines(f"{finding.severity}: {finding}{hint}")
        print_lines(", ".join(map(counted, counts, ("file", "error", "warning"))))
    if errors:
        raise typer.Exit(BlueprintError.exit_code)


@app.command("draw", epilog="Example: esper blueprints draw squeeze_excite --svg squeeze_excite.svg")
def draw_blueprint(
    name: NameOrFile,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write an SVG picture instead.")] = None,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="LAYOUT:IN:OUT[:STRIDE]", help="Tell the sizes in this slot, too."),
    ] = None,
) -> None:
    """Draw the graph of a blueprint in the terminal, from its input x down to its output."""
    from esper.blueprint import plan
    from esper.blueprint.drawing import draw
    from esper.blueprint.picture import picture

    slot = parse_shape(for_, "--for") if for_ else None
    blueprints = _find(name)
    plans = [plan(blueprint, slot) if slot else None for blueprint in blueprints]
    if svg is not None:
        if len(blueprints) > 1:
            raise ConfigError(
                f"{name} holds {len(blueprints)} blueprints; a picture shows one", hint="name one of them"
            )
        try:
            svg.write_text(picture(blueprints[0], plans[0]), encoding="utf-8")
        except OSError as error:
            raise StorageError.from_os(error, svg, "cannot write") from None
        print_lines(f"wrote {svg}")
        return
    out = console()
    width = min(out.width, 80) if not out.is_terminal else out.width
    for blueprint, planned in zip(blueprints, plans, strict=True):
        print_lines(*draw(blueprint, planned, width=width, unicode=not out.options.ascii_only))


@app.command("new", epilog="Example: esper blueprints new my_block --layout channels")
def new_blueprint(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, and that of its file.")],
    layout: Annotated[
        str, typer.Option(help="features, tokens or channels.", autocompletion=lambda: list(LAYOUTS))
    ] = "features",
    folder: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write it.")] = Path(),
) -> None:
    """Write NAME.yaml, a small valid blueprint with comments to begin from; nothing is overwritten."""
    from esper.blueprint.template import template

    if layout not in LAYOUTS:
        raise ConfigError(f"--layout takes {', '.join(LAYOUTS)}, not {layout!r}")
    text = template(name, cast("Layout", layout))
    path = folder / f"{name}.yaml"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise StorageError(f"{path} is there already", hint="choose another name") from None
    except OSError as error:
        raise StorageError.from_os(error, path, "cannot write") from None
    print_lines(f"wrote {path}", f"next: esper blueprints draw {path}")


def _catalogue(paths: Sequence[Path], overrides: Sequence[str]) -> Catalogue:
    """The blueprints in ``paths``, or those that the configuration names."""
    from esper.karn.catalogue import load_catalogue

    if not paths:
        from esper_cli.config import compose

        paths = [Path(path) for path in compose(list(overrides)).karn.paths]
    return load_catalogue(paths)


def _find(name: str) -> list[Blueprint]:
    """The blueprints of a file, or the one of that name in the catalogue."""
    from esper.blueprint import SUFFIXES, load_blueprints
    from esper.blueprint.expression import nearest

    if name.endswith(SUFFIXES) or Path(name).exists():
        return load_blueprints(Path(name))
    known = {blueprint.name: blueprint for blueprint in _catalogue((), ()).blueprints}
    if name not in known:
        raise BlueprintError(f"there is no blueprint {name!r}", hint=nearest(name, known))
    return [known[name]]


def _slots(texts: Iterable[str] | None) -> list[Slot]:
    return list(dict.fromkeys(parse_shape(text, "--for") for text in texts or ()))


def _summary(blueprint: Blueprint) -> dict[str, Any]:
    return {
        "name": blueprint.name,
        "title": blueprint.title,
        "blueprint_id": blueprint.blueprint_id,
        "graph_id": blueprint.graph_id,
        "layouts": list(blueprint.layouts),
        "tags": list(blueprint.tags),
        "nodes": len(blueprint.nodes),
        "file": blueprint.file,
    }


def _costs(blueprint: Blueprint, slots: Iterable[Slot]) -> list[dict[str, Any]]:
    """For each slot the sizes and the cost there, or why the blueprint does not fit."""
    places: list[dict[str, Any]] = []
    for slot in slots:
        from esper.blueprint import plan
        from esper.tezzeret.builder import cost

        try:
            planned = plan(blueprint, slot)
        except BlueprintError as error:
            places.append({"slot": str(slot), "reason": error.message})
        else:
            places.append({"slot": str(slot), "sizes": dict(planned.sizes), **asdict(cost(planned))})
    return places


def _place(place: dict[str, Any]) -> str:
    if "reason" in place:
        return f"does not fit: {place['reason']}"
    sizes = ", ".join(f"{name} = {size}" for name, size in place["sizes"].items())
    return f"{place['parameters']:,} parameters, {count(place['flops'])} FLOPs; {sizes}"


def _table(records: Iterable[dict[str, Any]]) -> Table:
    wide = is_wide()
    columns = ("blueprint", "layouts", "nodes", "tags", *(("title",) if wide else ()))
    rows = table(columns, right=("nodes",), whole=("blueprint",))
    for record in records:
        layouts, tags = (" ".join(record[field]) for field in ("layouts", "tags"))
        title = (record["title"],) if wide else ()
        rows.add_row(record["name"], layouts, str(record["nodes"]), tags, *title)
    return rows


def _costs_table(records: Iterable[dict[str, Any]]) -> Table:
    wide = is_wide()
    columns = ("blueprint", "for", "nodes", "params", "FLOPs", *(("layouts",) if wide else ()), "tags")
    rows = table(columns, right=("nodes", "params", "FLOPs"), whole=("blueprint", "for"))
    for record in records:
        for place in record["for"]:
            if "parameters" in place:
                counts = (record["nodes"], count(place["parameters"]), count(place["flops"]))
                layouts = (" ".join(record["layouts"]),) if wide else ()
                cells = (record["name"], place["slot"], *map(str, counts), *layouts)
                rows.add_row(*cells, " ".join(record["tags"]))
    return rows
