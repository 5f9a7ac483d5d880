"""The catalogue: files and folders, one bad file among good ones, and what fits."""

from __future__ import annotations

from pathlib import Path

from esper.karn.catalogue import fitting, load_catalogue
from esper.messages import Slot

TEXT = """\
version: 1
name: {name}
layouts: [{layout}]
nodes:
  - {{id: map, op: linear, inputs: [x], params: {{out: {out}}}}}
output: map
"""


def write(path: Path, name: str, layout: str = "features", out: str = "out") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(TEXT.format(name=name, layout=layout, out=out))
    return path


def test_files_and_folders_below(tmp_path: Path) -> None:
    write(tmp_path / "folder" / "b.yaml", "b")
    write(tmp_path / "folder" / "deep" / "c.yml", "c")
    (tmp_path / "folder" / "notes.txt").write_text("not read")
    single = write(tmp_path / "a.yaml", "a")
    catalogue = load_catalogue([tmp_path / "folder", str(single), single])
    assert [blueprint.name for blueprint in catalogue.blueprints] == ["a", "b", "c"]
    assert catalogue.errors == []


def test_bad_files_do_not_stop_the_others(tmp_path: Path) -> None:
    write(tmp_path / "1.yaml", "good")
    (tmp_path / "2.yaml").write_text("version: [")
    write(tmp_path / "3.yaml", "good", out="in")
    write(tmp_path / "4.yaml", "also")
    catalogue = load_catalogue([tmp_path, tmp_path / "none.yaml"])
    assert [blueprint.name for blueprint in catalogue.blueprints] == ["also", "good"]
    first, second, third = map(str, catalogue.errors)
    assert first.startswith(f"{tmp_path}/2.yaml:1: not YAML")
    assert f"{tmp_path}/3.yaml:1: good: another blueprint has that name: {tmp_path}/1.yaml:1: good" in second
    assert third == f"{tmp_path}/none.yaml: no such file"


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    assert "no blueprints in this folder" in str(load_catalogue([tmp_path]).errors[0])


def test_a_folder_that_links_to_itself_ends(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "a")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(load_catalogue([tmp_path]).blueprints) == 1


def test_fitting_follows_layout_and_shape(tmp_path: Path) -> None:
    write(tmp_path / "any.yaml", "any", "features, channels")
    write(tmp_path / "square.yaml", "square", "features", out="in")
    write(tmp_path / "image.yaml", "image", "channels")
    blueprints = load_catalogue([tmp_path]).blueprints

    def names(slot: Slot) -> list[str]:
        return [blueprint.name for blueprint in fitting(blueprints, slot)]

    assert names(Slot("features", 4, 4)) == ["any", "square"]
    assert names(Slot("tokens", 4, 5)) == ["any"]
    assert names(Slot("channels", 4, 5)) == ["any", "image"]
    assert names(Slot("channels", 4, 5, 2)) == []
