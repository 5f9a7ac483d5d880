"""Alert rules and the dashboard, judged by Prometheus's and Grafana's own tools and beside a real run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from servers.redis import free_port
from waiting import LONG, until

from esper.assembly.server_check import check_server
from esper_cli.app import run
from esper_cli.config import compose

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "esper.json").read_text())
NAME = re.compile(r"\besper_[a-z_]+")

PLUGINS_OWN = re.compile(r"/annotations/list\[\d\]/(step|titleFormat|textFormat|tagKeys|useValueForTime)$")
"""What Grafana's types leave to the data source: the fields of an annotation asked of Prometheus."""


MAY_BE_SILENT = {
    *("Adaptations", "Rollbacks", "Alerts", "Kernel faults", "Seconds to recover", "Circuit of a tier"),
    *("Cache hit rate by tier", "Inventions", "How far sinks are behind"),
    *("Compile queue", "How long the oldest waits"),
}
"""Panels and annotations that have nothing to show of a run that has ended well before the first scrape."""

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="Prometheus is not installed")


def expressions() -> dict[str, str]:
    """Every expression of the dashboard by where it stands, its variables filled in as Grafana would."""
    asked = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }
    asked |= {note["name"]: note["expr"] for note in DASHBOARD["annotations"]["list"]}
    return {place: e.replace("$run", ".+").replace("$__rate_interval", "1m") for place, e in asked.items()}


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The runs folder of a short real run."""
    folder = tmp_path_factory.mktemp("monitored")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        few = f"karn.paths=[{ROOT / 'blueprints' / 'low_rank.yaml'}]"
        smoke = ["train", "+experiment=smoke", "-q", "tolaria.epochs=8"]
        assert run([*smoke, "nissa/sinks=[jsonl]", few]) == 0
        yield folder / "runs"


@contextmanager
def process(*command: str | Path, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as made:
        try:
            yield made
        finally:
            made.terminate()
            made.communicate(timeout=LONG)


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[str]:
    """The URL of ``esper serve-metrics`` over them."""
    command = [sys.executable, "-m", "esper_cli", "serve-metrics", "--port", "0"]
    with process(*command, cwd=runs.parent) as serving:
        assert serving.stdout is not None
        said = ""
        for line in serving.stdout:
            said += line
            if found := re.search(r"https?://\S+", line):
                break
        else:
            raise AssertionError(said)
        yield found.group()


def test_what_is_commented_out_for_other_machines_is_valid_too(tmp_path: Path) -> None:
    text = (PROMETHEUS / "prometheus.yaml").read_text()
    told = re.sub(r"^( *)# (?=[ \w]+:|- )", r"\1", text, flags=re.MULTILINE)
    assert told.count("#") < text.count("#")
    (tmp_path / "told.yaml").write_text(told)
    promtool("check", "config", "--syntax-only", tmp_path / "told.yaml")
    (scraped,) = yaml.safe_load(told)["scrape_configs"]
    assert scraped["scheme"] == "https"
    assert {"authorization", "tls_config"} <= set(scraped)
    assert yaml.safe_load(told)["alerting"]


def test_the_rules_are_valid_and_each_is_tested() -> None:
    promtool("check", "config", PROMETHEUS / "prometheus.yaml")
    promtool("test", "rules", PROMETHEUS / "alerts_test.yaml")
    fired = {
        case["alertname"]
        for test in yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in RULES}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_says_what_to_look_at_and_the_next_command(
    rule: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule["annotations"]) == {"summary", "look_at", "next"}
    arguments = rule["annotations"]["next"].replace("{{ $labels.run }}", "latest").split()
    assert arguments[0] == "esper"
    assert run([*arguments[1:], "--help"]) == 0
    capsys.readouterr()
    assert rule["alert"] in (ROOT / "docs" / "monitoring.md").read_text()


def test_each_command_of_the_docs_has_its_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "docs" / "monitoring.md").read_text()
    commands = set(re.findall(r"`(esper [^`]+)`|^\$ (esper [^>&\n]+)", text, re.MULTILINE))
    assert len(commands) >= 8
    for command in (one or other for one, other in commands):
        assert run([*command.split()[1:], "--help"]) == 0, command
        shown = capsys.readouterr().out
        assert all(word in shown for word in re.findall(r"--[a-z-]+", command)), command


def test_every_metric_that_is_asked_for_is_one_of_a_real_run(server: str) -> None:
    exposed = set(
        re.findall(r"^(?:# TYPE )?(esper_[a-z_]+)", httpx.get(f"{server}/metrics").text, re.MULTILINE)
    )
    summary = {f"esper_recovery_seconds_{part}" for part in ("sum", "count")}
    assert summary <= exposed
    asked = set(NAME.findall(" ".join([*(rule["expr"] for rule in RULES), *expressions().values()])))
    assert asked <= exposed
    assert len(asked) > 20


def test_esper_doctor_reads_the_same_metrics(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ESPER_TOKEN", raising=False)
    found = check_server(compose([f"nissa.port={httpx.URL(server).port}"]))
    assert re.fullmatch(rf"{server} answers in \d+ ms; \d\d metrics in \d+ series, of 1 run", found)


def test_the_dashboard_is_what_grafanas_own_types_read() -> None:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    read = json.loads(json.dumps(Dashboard.from_json(DASHBOARD), cls=JSONEncoder))
    changed = [place for place in _changes(DASHBOARD, read) if not PLUGINS_OWN.search(place)]
    assert changed == []


def _changes(ours: Any, theirs: Any, place: str = "") -> Iterator[str]:
    """Where what Grafana's types kept of the dashboard differs from it; what they add is their default."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            yield from _changes(value, theirs.get(key), f"{place}/{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from _changes(*pair, f"{place}[{index}]")
    elif ours != theirs:
        yield place


def test_panels_have_room_and_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    for panel in DASHBOARD["panels"]:
        x, y, w, h = (panel["gridPos"][key] for key in "xywh")
        cells = {(column, line) for column in range(x, x + w) for line in range(y, y + h)}
        assert not cells & taken, panel["title"]
        assert x + w <= 24
        taken |= cells


def test_prometheus_scrapes_judges_and_answers_every_panel(server: str, tmp_path: Path) -> None:
    """The configuration that ships, with another port and less patience."""
    text = (PROMETHEUS / "prometheus.yaml").read_text()
    text = text.replace("127.0.0.1:9464", httpx.URL(server).netloc.decode()).replace(": 15s", ": 1s")
    (tmp_path / "prometheus.yaml").write_text(text.replace("scrape_timeout: 10s", "scrape_timeout: 1s"))
    (tmp_path / "alerts.yaml").write_text((PROMETHEUS / "alerts.yaml").read_text())
    address = f"127.0.0.1:{free_port()}"
    flags = ["--config.file=prometheus.yaml", "--storage.tsdb.path=data", f"--web.listen-address={address}"]
    with (
        process("prometheus", *flags, cwd=tmp_path),
        httpx.Client(base_url=f"http://{address}/api/v1") as client,
    ):

        def ask(expression: str) -> list[Any]:
            answer = client.get("query", params={"query": expression}).json()
            assert answer["status"] == "success", (expression, answer)
            return list(answer["data"]["result"])

        def silent() -> set[str]:
            return {place.rsplit(" ", 1)[0] for place, asked in expressions().items() if not ask(asked)}

        def states() -> dict[str, tuple[str, str]]:
            groups = client.get("rules").json()["data"]["groups"]
            return {rule["name"]: (rule["health"], rule["state"]) for g in groups for rule in g["rules"]}

        # A scrape that a busy machine misses silences panels and alerts; the next one is as good.
        until(lambda: _is_ready(address) and ask("count_over_time(esper_run_info[1m]) > 2"))
        until(lambda: silent() <= MAY_BE_SILENT, silent)
        until(lambda: states() == {rule["alert"]: ("ok", "inactive") for rule in RULES}, states)
        assert until(lambda: ask(expressions()["Runs A"]))[0]["metric"]["state"] == "finished"


def _is_ready(address: str) -> bool:
    try:
        return httpx.get(f"http://{address}/-/ready").status_code == 200
    except httpx.TransportError:
        return False
