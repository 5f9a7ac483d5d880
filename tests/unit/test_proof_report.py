import pytest

from esper.proof.growth import analyse
from esper.proof.report import markdown
from esper.proof.results import Result


def result(arm, seed, accuracy):
    return Result(arm, seed, (), "runs/x", accuracy, 0.5, 1e9, 2.0, 100, None, (0.5,))


def results(**arms):
    return [
        result(arm.replace("_w", "-"), s, a / 100) for arm, row in arms.items() for s, a in enumerate(row)
    ]


BASE = {"small": [80, 81, 82], "large": [90, 91, 92], "large_flops": [88, 90, 89]}


def test_the_verdict_can_come_out_against_growth():
    rows = results(grown=[84.0, 85.1, 85.9], small_flops=[85.0, 86.0, 87.0], sweep_w12=[89, 90, 91], **BASE)
    found = analyse(rows)
    first = found["verdict"][0]
    assert first == "grown is worse than small given the same FLOPs by 1.0 points [0.8, 1.2]"
    assert found["best_static"] == "sweep-12"
    assert "share of the gap from small to large (+10.0 points) that is closed: 40%" in found["verdict"][-1]


def test_it_says_when_nothing_can_be_told():
    rows = results(grown=[84.0, 85.0, 86.0], small_flops=[80, 86, 90], **{**BASE, "large": [80, 85, 80]})
    found = analyse(rows)
    assert "cannot tell, the interval includes zero" in found["verdict"][0]
    assert found["gap_closed"] is None
    assert "cannot tell" in found["verdict"][-1]


def test_runs_are_paired_by_seed_whatever_their_order():
    rows = results(grown=[81.0, 85.0, 95.0], small_flops=[80, 84, 94], **BASE)
    difference = analyse(reversed(rows))["differences"]["small_flops"]
    assert (difference["low"], difference["high"]) == (pytest.approx(1), pytest.approx(1))


def test_a_result_survives_json():
    one = result("grown", 3, 0.8)
    assert Result.from_json(one.to_json()) == one


def test_the_report_holds_every_arm_the_verdict_and_the_command():
    found = analyse(results(grown=[84.0, 85.1, 85.9], small_flops=[85.0, 86.0, 87.0], **BASE))
    more = {
        "experiment": "e",
        "mode": "growth",
        "seeds": [0, 2],
        "command": "esper prove +experiment=e",
        "versions": {"torch": "2"},
    }
    text = markdown({**found, **more})
    assert "Grown is worse than small given the same FLOPs" in text
    assert text.count("large, grown's FLOPs") == 3  # arms, differences, best
    assert "esper prove +experiment=e" in text
