"""``esper doctor`` over real servers, there and not there."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

import forked
import pytest
from forbidding import forbid_filters
from servers.postgres import PASSWORD
from servers.redis import RedisServer, be_patient, free_port
from urza_support import artefact

from esper.assembly import checks
from esper.assembly.storage import build_library
from esper_cli import app
from esper_cli.config import compose

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path


def findings(capsys: Output, *overrides: str) -> tuple[int, dict[str, dict[str, object]]]:
    code = app.run(["doctor", "--json", "+experiment=smoke", *overrides])
    found = json.loads(capsys.readouterr().out)
    return code, {finding["part"]: finding for finding in found}


def test_a_fresh_machine_is_well_and_nothing_is_made(home: Path, capsys: Output) -> None:
    code, found = findings(capsys, f"nissa.port={free_port()}")
    assert code == 0
    assert str(found["metrics server"]["detail"]).endswith("it is started by: esper serve-metrics")
    assert all(finding["good"] for finding in found.values())
    parts = ["python", "runs folder", "keys", "kernel library", "compile workers", "metrics server"]
    assert list(found) == [*parts, "data and network"]
    assert str(found["compile workers"]["detail"]).startswith("their system calls are filtered")
    assert str(found["kernel library"]["detail"]).startswith("none yet in ")
    assert list(home.iterdir()) == []


def test_the_full_stack_is_well_while_it_runs_and_said_to_be_ill_when_not(
    postgres_url: str, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    be_patient(monkeypatch)
    monkeypatch.setenv("ESPER_POSTGRES_URL", postgres_url)
    monkeypatch.setenv("ESPER_REDIS_URL", redis_server.url)
    code, found = findings(capsys, "urza=full")
    assert code == 0
    assert str(found["kernel library"]["detail"]).startswith("no kernels yet, answers in ")
    with build_library(compose(["urza=full"])) as library:
        library.put(artefact("a"))
    code, found = findings(capsys, "urza=full")
    assert (code, found["redis"]["good"]) == (0, True)
    assert "has kernels" in str(found["kernel library"]["detail"])
    with redis_server.client() as client:
        assert not list(client.scan_iter("*doctor*"))

    written = quote(PASSWORD, safe="")
    nowhere = postgres_url.rpartition("@")[0] + f"@127.0.0.1:{free_port()}/kernels"
    monkeypatch.setenv("ESPER_POSTGRES_URL", nowhere)
    monkeypatch.setenv("ESPER_REDIS_URL", f"redis://:{quote(PASSWORD, safe='')}@127.0.0.1:{free_port()}")
    assert app.run(["doctor", "+experiment=smoke", "urza=full"]) == 1
    said = capsys.readouterr().out
    assert said.count("To do: check that the server runs") == 2
    assert not any(word in said for word in (PASSWORD, written))
    assert "Traceback" not in said


def test_a_broker_without_workers_and_one_that_is_gone_are_told(
    own_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.setenv("ESPER_BROKER_URL", own_redis.url)
    code, found = findings(capsys, "tezzeret/engine=celery")
    assert (code, found["compile queue"]["good"]) == (1, False)
    assert (
        found["compile queue"]["detail"] == "0 wait, 0 are being compiled by 0 workers: nothing is compiled"
    )
    assert found["compile queue"]["hint"] == "start one: esper worker tezzeret/engine=celery"
    own_redis.kill()
    code, found = findings(capsys, "tezzeret/engine=celery")
    assert (code, found["compile queue"]["good"]) == (1, False)
    assert "did not answer" in str(found["compile queue"]["detail"])


def test_keys_that_are_gone_a_device_and_a_layer_that_are_not_there(home: Path, capsys: Output) -> None:
    with build_library(compose([])) as library:
        library.put(artefact("a"))
    (home / "home" / "keys.json").replace(home / "copy.json")
    code, found = findings(capsys, "tolaria.device=nonsense", "kasmina.include=[nowhere]")
    assert code == 1
    bad = {part for part, finding in found.items() if not finding["good"]}
    assert bad == {"python", "kernel library", "data and network"}
    assert all(found[part]["hint"] for part in bad)


def test_a_disk_that_is_nearly_full_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr(checks, "ENOUGH_BYTES", 2**62)
    code, found = findings(capsys)
    assert code == 1
    assert str(found["runs folder"]["detail"]).endswith(" GB are free for runs")


def examine_unfiltered() -> None:
    """Print what is found of compile workers, with none and with two, where calls cannot be filtered."""
    forbid_filters()
    for workers in (0, 2):
        for finding in checks.examine(compose([f"tezzeret.workers={workers}", "tezzeret.nice=0"])):
            if finding.part == "compile workers":
                print(finding.good, finding.detail, finding.hint, sep="|")


def test_where_calls_cannot_be_filtered_that_is_told(home: Path) -> None:
    done = forked.call(examine_unfiltered)
    assert done.returncode == 0, done.stderr
    without, with_workers = (line.split("|") for line in done.stdout.splitlines())
    refused = "no filter of system calls (the kernel refuses to filter system calls: Operation not permitted)"
    assert without[:2] == ["True", f"{refused}, so no TorchScript program is imported"]
    assert with_workers[0] == "False"
    assert with_workers[1].endswith("and workers run under resource limits alone")
    assert "tezzeret.workers=0" in with_workers[2]
