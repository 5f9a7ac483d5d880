"""``esper kernels``: tags, retiring, garbage and exchange, over real libraries."""

import json
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import forked
import pytest
from urza_support import artefact, never_load

from esper.security import Envelope, FileKeys, StoredKeys
from esper.urza import KernelLibrary, open_library
from esper_cli import app, kernels, kernels_upkeep

Output = pytest.CaptureFixture[str]


def opened(path: Path, keys: Path) -> KernelLibrary:
    return open_library(f"sqlite:///{path}", never_load, envelope=Envelope(StoredKeys(FileKeys(str(keys)))))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    with opened(tmp_path / "kernels.db", tmp_path / "keys.json") as library:
        library.put(artefact("aa11", tags=("linear", "mlp")))
        library.put(artefact("aa22", tags=("linear",)))
        library.put(artefact("bb33", tags=("conv",), created_at="2020-01-01T00:00:00+00:00"))
    return tmp_path


def esper(capsys: Output, *args: str) -> tuple[int, str, str]:
    code = app.run(["kernels", *args])
    out, err = capsys.readouterr()
    return code, out, err


def tags(home: Path, name: str) -> tuple[str, ...]:
    with opened(home / "kernels.db", home / "keys.json") as library:
        return library.get(f"kernel_{name}").tags


def test_tags_are_given_and_taken(home: Path, capsys: Output) -> None:
    assert esper(capsys, "tag", "aa11", "aa22", "--tag", "good", "--tag", "linear")[0] == 0
    assert tags(home, "aa11") == ("linear", "mlp", "good")
    assert tags(home, "aa22") == ("linear", "good")
    code, out, _ = esper(capsys, "untag", "aa11", "--tag", "mlp", "--tag", "never")
    assert (code, out.split()) == (0, ["kernel_aa11", "linear", "good"])
    assert tags(home, "aa11") == ("linear", "good")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("tag", "aa11"), "no tag was named. Name one with: --tag TAG"),
        (("tag", "--tag", "good"), "no kernel was named. List them with: esper kernels ls"),
        (("tag", "aa11", "--tag", ""), "a tag has 1 to 100 characters, none of them a space, unlike ''"),
        (("tag", "aa11", "--tag", "a b"), "none of them a space, unlike 'a b'"),
        (("tag", "aa11", "--tag", "a\x1b[2J"), "none of them a space, unlike 'a"),
        (("tag", "aa11", "--tag", "x" * 101), "a tag has 1 to 100 characters"),
        (
            ("pull", "--from", "sqlite:///no/lib.db"),
            "there is no kernel library at no/lib.db",
        ),
        (("untag", "zz", "--tag", "good"), "no kernel 'zz' in the library"),
        (("push", "aa11", "--to", "sqlite:///x.db", "--tag", "mlp"), "give kernels' ids or --tag, not both"),
        (("push", "--to", "sqlite:///x.db", "--keys", "no.json"), "--keys: there is no file no.json"),
        (("push", "--to", "mysql://x"), "the kernel library cannot be kept in 'mysql'"),
        (("harvest", "nothing"), "no run"),
    ],
)
def test_what_cannot_be_done_is_one_line(args: tuple[str, ...], said: str, capsys: Output) -> None:
    code, out, err = esper(capsys, *args)
    assert code != 0
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert not Path("no").exists()


def test_a_retired_kernel_is_offered_to_nobody_until_it_is_brought_back(home: Path, capsys: Output) -> None:
    def found() -> set[str]:
        with opened(home / "kernels.db", home / "keys.json") as library:
            return {k.name for k in library.find(library.get("kernel_aa11").slot)}

    assert esper(capsys, "retire", "aa11")[:2] == (0, "retired kernel_aa11 (aa11 for features 8->8)\n")
    assert found() == {"aa22", "bb33"}
    assert esper(capsys, "retire", "aa11", "--undo")[0] == 0
    assert found() == {"aa11", "aa22", "bb33"}


def test_garbage_is_named_before_it_goes(home: Path, capsys: Output) -> None:
    esper(capsys, "retire", "aa22", "bb33")
    code, out, _ = esper(capsys, "gc", "--retired-days", "30", "--dry-run", "--json")
    would = json.loads(out)
    assert (code, would["kernels"], len(would["blobs"])) == (0, ["kernel_bb33"], 1)
    assert tags(home, "bb33") == ("conv",)
    code, out, _ = esper(capsys, "gc", "--retired-days", "30")
    assert out.splitlines()[0] == "removed kernel_bb33"
    assert f"1 kernel and 1 blob of {would['bytes']:,} bytes went" in out
    assert esper(capsys, "show", "bb33")[0] == 6


@pytest.mark.parametrize("own_keys", [False, True])
def test_kernels_go_to_another_library_and_back(home: Path, own_keys: bool, capsys: Output) -> None:
    team, keys = home / "team" / "kernels.db", home / ("team.json" if own_keys else "keys.json")
    with opened(team, keys) as library:
        library.put(artefact("theirs"))  # which makes its keys
    with_keys = ("--keys", str(keys)) if own_keys else ()
    there = (f"sqlite:///{team}", *with_keys)
    code, out, err = esper(capsys, "push", "--to", *there, "--tag", "linear")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "2 kernels copied, 0 already there"
    assert esper(capsys, "push", "--to", *there)[1].endswith("1 kernel copied, 2 already there\n")
    with opened(team, keys) as library:
        for name in ("aa11", "aa22", "bb33"):
            library.verify(f"kernel_{name}")
    assert esper(capsys, "rm", "aa11", "--yes")[0] == 0
    code, out, _ = esper(capsys, "pull", "aa11", "--from", *there, "--json")
    assert json.loads(out) == [{"kernel_id": "kernel_aa11", "copied": True, "refused": None}]
    assert tags(home, "aa11") == ("linear", "mlp")


def test_a_corrupt_kernel_does_not_spread_and_holds_up_no_other(home: Path, capsys: Output) -> None:
    with opened(home / "kernels.db", home / "keys.json") as library:
        digest = library.get("kernel_aa22").program_digest
    with closing(sqlite3.connect(home / "kernels.db")) as connection, connection:
        connection.execute("UPDATE blobs SET data = zeroblob(200) WHERE digest = ?", (digest,))
    code, out, err = esper(capsys, "push", "--to", "sqlite:///team.db")
    assert (code, out.splitlines()[-1]) == (6, "2 kernels copied, 0 already there, 1 refused")
    assert err.startswith("refused: kernel 'kernel_aa22' is corrupt: its program is not what was sealed")
    code, out, err = esper(capsys, "push", "--to", "sqlite:///team.db", "--json")
    assert (code, err) == (6, "")
    assert {each["kernel_id"]: bool(each["refused"]) for each in json.loads(out)} == {
        "kernel_aa11": False,
        "kernel_aa22": True,
        "kernel_bb33": False,
    }


def interrupt_at_the_second() -> None:
    """Have this process send itself a Ctrl-C when it has told of two."""
    tell, told = kernels_upkeep.print_lines, []

    def and_stop(*lines: str, **options: bool) -> None:
        tell(*lines, **options)
        told.extend(lines)
        if len(told) == 2:
            signal.raise_signal(signal.SIGINT)

    kernels_upkeep.print_lines = and_stop
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_ctrl_c_says_how_many_were_copied_and_the_same_command_goes_on(
    home: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(home / "kernels.db", home / "keys.json") as library:
        for number in range(7):
            library.put(artefact(f"more{number}"))
    push = ("push", "--to", "sqlite:///team.db")
    done = forked.esper("kernels", *push, before=interrupt_at_the_second)
    assert done.returncode == 130
    assert done.stderr.startswith("stopped: 2 kernels copied, 0 already there; what is copied is whole")
    assert len(done.stderr.splitlines()) == 1
    monkeypatch.setattr(kernels, "PAGE", 4)
    code, out, _ = esper(capsys, *push)
    assert code == 0
    assert out.splitlines()[-1] == "8 kernels copied, 2 already there"
    assert esper(capsys, "verify", "--all")[1] == "10 of 10 kernels are intact\n"
