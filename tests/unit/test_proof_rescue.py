import pytest

from esper.proof.report import markdown
from esper.proof.rescue import analyse
from esper.proof.results import Result

CURVE = ((1e8, 0.5), (2e8, 0.8))


def results(**arms):
    rows = {"base": [80.0, 81.0, 82.0], "train_on": [81.0, 82.0, 83.0], "large": [70.0, 72.0, 71.0], **arms}
    return [
        Result(arm, seed, (), "runs/x", a / 100, 0.5, 1e9, 2.0, 100, None, (), CURVE)
        for arm, row in rows.items()
        for seed, a in enumerate(row)
    ]


def test_the_verdict_can_come_out_against_growth():
    said = analyse(results(grown=[80.0, 81.1, 81.9]))["verdict"]
    assert said[0] == "grown is worse than training on for the same FLOPs by 1.0 points [0.8, 1.2]"
    assert said[1].startswith("grown is better than starting the larger network from scratch")
    assert said[2].startswith("grown against the base that it started from: cannot tell")
    assert said[3].startswith("training on is better than the base by 1.0 points")
    assert said[4] == "highest mean accuracy: trained on, 82.0 %"


def test_flops_of_the_base_are_told_apart():
    found = analyse(results(grown=[85.0, 86.0, 87.5]))
    assert [(arm["arm"], arm["training_flops"]) for arm in found["arms"]] == [
        ("base", 0.0),
        ("train_on", 1e9),
        ("grown", 1e9),
        ("large", 1e9),
    ]
    assert found["base_flops"] == pytest.approx(1e9)
    more = {"experiment": "e", "mode": "rescue", "seeds": [0, 2], "command": "esper prove", "versions": {}}
    text = markdown({**found, **more})
    assert "| arm | accuracy, % | loss | further FLOPs |" in text
    assert "The base took 1e+09 FLOPs before." in text
    assert "- Grown is better than training on for the same FLOPs" in text


def test_a_curve_survives_json():
    (one, *_) = results(grown=[1.0, 2.0, 3.0])
    assert Result.from_json(one.to_json()) == one
