"""What one's own data set or network lacks is one line that says what it gave and what is wanted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from esper.assembly.configured import configured
from esper.assembly.contract import check_data, check_kernels, check_module, check_network
from esper.assembly.kernels import build_pipeline, rebuilder
from esper.blueprint import load_blueprints
from esper.data import DataSplits, Split
from esper.errors import ConfigError, DataError
from esper.kasmina import wrap
from esper.messages import Slot
from esper.tolaria.evaluation import count_flops
from esper_cli.config import compose


def split(y: Tensor) -> Split:
    return Split(torch.zeros(len(y), 6), y)


GOOD = split(torch.tensor([0, 1, 2, 2]))
DATA = DataSplits("mine", 3, GOOD, GOOD, GOOD)


class Gives(nn.Module):
    """A network whose output is what ``of`` makes of its logits."""

    def __init__(self, of: Any, *, inputs: int = 6, classes: int = 3) -> None:
        super().__init__()
        self.of, self.layer = of, nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Any:
        return self.of(self.layer(x))


def test_what_fits_is_taken() -> None:
    check_data(DATA)
    check_module(Gives(lambda y: y))
    check_network(Gives(lambda y: y), DATA)
    tokens = Split(torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 5, dtype=torch.long))
    texts = replace(DATA, train=tokens, held_out=tokens, test=tokens, vocabulary=3)
    check_data(texts)
    check_network(nn.Embedding(3, 3), texts)


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.tensor([0, 1, 3]), "test: labels are from 0 to 3, and 3 classes are counted from 0 to 2"),
        (torch.tensor([0, -100]), "labels are from -100 to 0"),
        (torch.tensor([0, 1], dtype=torch.int32), "labels are int32 of (2,), not a class for each sample"),
        (torch.rand(4, 1), "labels are float32 of (4, 1), not a class"),
        (torch.zeros(0, dtype=torch.long), "0 samples and 0 labels"),
    ],
)
def test_labels_that_are_no_classes_are_refused(y: Tensor, said: str) -> None:
    with pytest.raises(DataError) as refused:
        check_data(replace(DATA, test=split(y)))
    assert said in refused.value.message


def test_samples_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(DataError, match="4 samples and 3 labels"):
        check_data(replace(DATA, train=Split(torch.zeros(4, 6), torch.tensor([0, 1, 2]))))
    with pytest.raises(DataError, match=r"held_out: samples of \(5,\), and those of train are of \(6,\)"):
        check_data(replace(DATA, held_out=Split(torch.zeros(4, 5), GOOD.y)))
    with pytest.raises(ConfigError, match=r"gave float32 of \(2,\), not an esper.data.DataSplits"):
        check_data(torch.zeros(2))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Gives(lambda y: {"logits": y}), "gives a dict for float32 of (2, 6), not logits of (2, 3)"),
        (Gives(lambda y: (y, y)), "gives a tuple for"),
        (Gives(lambda y: y.argmax(-1)), "gives int64 of (2,) for"),
        (
            Gives(lambda y: y, classes=2),
            "gives float32 of (2, 2) for float32 of (2, 6), not logits of (2, 3)",
        ),
        (Gives(lambda y: y, inputs=7), "does not take float32 of (2, 6): RuntimeError: "),
        (Gives(lambda y: y).double(), "does not take float32 of (2, 6): RuntimeError: "),
        (nn.Bilinear(6, 6, 3), "missing 1 required positional argument"),
        (Gives(lambda y: y).requires_grad_(False), "no parameter of Gives can be trained"),
    ],
)
def test_a_network_that_gives_no_logits_is_refused(model: nn.Module, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_network(model, DATA)
    assert said in refused.value.message


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(ConfigError, match="gave a function, not a torch"):
        check_module(test_what_fits_is_taken)


def test_a_module_that_python_does_not_find_is_told_with_what_to_do() -> None:
    cfg = compose(["+experiment=smoke", "model._target_=mynets.Net", "allow_targets=[mynets.]"])
    with pytest.raises(ConfigError, match="No module named 'mynets'") as refused:
        configured(cfg, "model")
    assert (
        refused.value.hint
        == "if mynets is a file or folder of this directory, begin the command with PYTHONPATH=."
    )


def test_kernels_of_another_type_than_the_layers_are_refused_at_once() -> None:
    model = Gives(lambda y: y).double()
    wrap(model, GOOD.x.double(), seeds=1)
    check_kernels(model, "float64")
    with pytest.raises(ConfigError, match="are float64, and kernels are compiled for float32") as refused:
        check_kernels(model, "float32")
    assert refused.value.hint == "set tezzeret.dtype=float64"


def test_a_kernel_of_doubles_comes_back_from_a_checkpoint_as_one() -> None:
    pipeline = build_pipeline(compose(["tezzeret.dtype=float64"]))
    (blueprint,) = load_blueprints(Path(__file__).parents[2] / "blueprints" / "low_rank.yaml")
    kernel = rebuilder(pipeline)(blueprint.canonical_json(), Slot("features", 8, 8), "torchscript")
    assert kernel(torch.zeros(2, 8, dtype=torch.float64)).dtype is torch.float64


def test_flops_of_a_parametrised_weight_are_counted() -> None:
    plain = Gives(lambda y: y)
    normed = nn.utils.parametrizations.weight_norm(Gives(lambda y: y).layer)
    assert count_flops(normed, GOOD.x, GOOD.y) == count_flops(plain, GOOD.x, GOOD.y)
