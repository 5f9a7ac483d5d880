"""What no run can be made of: one error that names the key, and no folder left behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from esper.assembly.training import build_training
from esper.errors import BlueprintError, ConfigError, EsperError
from esper_cli.config import compose

BAD_BLUEPRINT = "version: 1\nname: bad\n"


@pytest.mark.parametrize(
    ("override", "kind", "said"),
    [
        ("seed=4294967296", ConfigError, "seed must be at most 4294967295, not 4294967296"),
        ("tolaria.epochs=0", ConfigError, "tolaria.epochs must be at least 1, not 0"),
        ("tolaria.learning_rate=nan", ConfigError, "tolaria.learning_rate must be at least 0, not nan"),
        ("tolaria.threads=0", ConfigError, "tolaria.threads must be between 1 and 1024, not 0"),
        ("tolaria.threads=100000", ConfigError, "tolaria.threads must be between 1 and 1024, not 100000"),
        ("tolaria.schedule.final=-1", ConfigError, "final must be between 0 and 1, not -1"),
        ("tolaria.optimizer._target_=torch.optim.Nope", ConfigError, "No module named 'torch.optim.Nope'"),
        ("urza.memory_bytes=-1", ConfigError, "urza.memory_bytes must be at least 0, not -1"),
        ("allow_targets=[]", ConfigError, "not among allow_targets"),
        ("tezzeret.device=nowhere", ConfigError, "tezzeret.device=nowhere: "),
        ("tamiyo.min_confidence=2", ConfigError, "min_confidence must be between 0 and 1, not 2"),
        ("tamiyo.max_trials_at_once=0", ConfigError, "max_trials_at_once must be at least 1"),
        ("tamiyo.prior_weight=0", ConfigError, "prior_weight must be above 0"),
        ("karn.paths=[nowhere]", BlueprintError, "karn.paths: there is no nowhere"),
        ("karn.paths=[bad.yaml]", BlueprintError, "bad.yaml"),
    ],
)
def test_it_is_refused_and_leaves_nothing_behind(
    override: str, kind: type[EsperError], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(BAD_BLUEPRINT)
    cfg = compose(["+experiment=smoke", "urza=memory", override])
    with pytest.raises(kind) as refused:
        build_training(cfg)
    assert said in refused.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]
