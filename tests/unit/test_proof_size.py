import pytest

from esper.proof.results import Result
from esper.proof.size import analyse


def results(grown_parameters=400, **means):
    """Two seeds an arm, half a point apart; width w has 100 w parameters."""
    rows = []
    for arm, mean in {"grown": 90.0, **means}.items():
        width = None if arm == "grown" else int(arm.removeprefix("w"))
        name = "grown" if width is None else f"width-{width}"
        parameters = grown_parameters if width is None else 100 * width
        for seed, shift in enumerate((-0.25, 0.25)):
            reached = (mean + shift) / 100
            rows.append(Result(name, seed, (), "runs/x", reached, 0.5, 1e9, 1.0, parameters, width, ()))
    return rows


def test_enough_is_the_smallest_width_near_the_best_one():
    found = analyse(results(w2=85.0, w4=89.9, w8=90.0, w16=90.05))
    assert (found["best"], found["enough"]) == (16, 4)
    assert found["grown_width"] == pytest.approx(4)
    assert found["verdict"][0] == "the smallest width within 0.2 points of the best (16, 90.0 %) is 4"
    assert found["verdict"][1] == "grown ends as large as width 4.0, 1.00 times that: the right size"
    assert "may be better still" in found["verdict"][-1]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [(479, "the right size"), (500, "larger than needed"), (320, "too small"), (340, "the right size")],
)
def test_the_size_can_come_out_wrong_either_way(parameters, words):
    found = analyse(results(grown_parameters=parameters, w2=85.0, w4=90.0, w8=90.1, w16=89.0))
    assert found["verdict"][1].endswith(words)
    assert "may be better still" not in found["verdict"][-1]


def test_a_grown_network_that_is_worse_is_said_to_be():
    found = analyse(results(w2=85.0, w4=95.0))
    assert found["verdict"][2] == "grown is worse than width 4, the best by 5.0 points [5.0, 5.0]"
