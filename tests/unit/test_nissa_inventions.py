"""What was invented beside a run, read back and counted."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from nissa_support import RunWriter
from prometheus_client.parser import text_string_to_metric_families

from esper.messages import InventionRecord, Slot
from esper.nissa.metrics import RunCollector, render
from esper.nissa.run_view import RunView

RUN = "20261125-035039-resnet-cc1a"
MADE = InventionRecord(
    graph_id="graph_1",
    blueprint_id="blueprint_1",
    blueprint_name="child",
    slot=Slot("channels", 8, 16, stride=2),
    layer_kind="block",
    origin="crossover",
    parents=("blueprint_a", "blueprint_b"),
    reason="two that were kept",
    predicted_impact=0.02,
    uncertainty=float("inf"),
    run_id=RUN,
    at="2026-11-25T00:00:00+00:00",
    kernel_id="kernel_1",
)
FAILED = replace(MADE, graph_id="graph_2", predicted_impact=None, kernel_id=None, failure="build: too large")
OLDER = replace(MADE, graph_id="graph_3", run_id="another run", kernel_id="kernel_3")


def view(folder: Path, *, end: str | None = None) -> RunView:
    with RunWriter(folder, RUN) as journal:
        journal.started()
        for record in (MADE, FAILED):
            journal.write("invention", record=asdict(record))
        journal.write("invention", record={"graph_id": "no more than that"})
        for record in (OLDER, MADE):  # tried now; one of them is known already
            journal.write("lineage", record=asdict(record))
        if end is not None:
            journal.write("inventing_ended", reason=end)
    return RunView(journal.path.parent).refresh()


def test_inventions_are_read_back_field_for_field_each_once(tmp_path: Path) -> None:
    found = view(tmp_path, end="exit code -9")
    assert list(found.inventions.values()) == [MADE, FAILED, OLDER]
    assert found.damaged == 1
    assert found.inventing_error == "exit code -9"


def test_only_what_was_made_beside_the_run_is_counted(tmp_path: Path) -> None:
    text, _ = render(RunCollector([view(tmp_path)], []))
    counts = {
        (sample.labels["origin"], sample.labels["status"]): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name == "esper_inventions_total"
    }
    assert counts == {("crossover", "compiled"): 1, ("crossover", "failed"): 1}
