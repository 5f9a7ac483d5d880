"""Composing over conf/, experiments/ and the user's own files; what is wrong, in one line."""

from pathlib import Path
from typing import Any

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from esper.errors import ConfigError
from esper_cli import config, folders
from esper_cli.config_errors import nearest

FILES = {
    "pyproject.toml": "",
    "conf/config.yaml": (
        "defaults: [_self_, model: mlp, tolaria: default, tolaria/order: plain]\n"
        "experiment: null\nseed: 0\nruns: runs\n"
    ),
    "conf/model/mlp.yaml": "width: 8\nname: mlp\n",
    "conf/model/resnet.yaml": "_target_: mine.Net\nwidth: 8\nblocks: [1, 1]\nextra: {}\n",
    "conf/tolaria/default.yaml": "epochs: 10\nlr: 0.1\nshuffle: true\nlimit: null\ndevice: auto\n",
    "conf/tolaria/order/plain.yaml": "step: 1\n",
    "experiments/small.yaml": (
        "# @package _global_\ndefaults:\n  - override /model: resnet\ntolaria:\n  epochs: 2\n"
    ),
    "experiments/study/one.yaml": "# @package _global_\nseed: 11\n",
    "experiments/study/README.md": "# not a config\n",
    "user/experiments/mine.yaml": "# @package _global_\ndefaults:\n  - small\nseed: 5\n",
    "user/experiments/typo.yaml": "# @package _global_\ntolaria:\n  epoch: 3\n",
    "user/experiments/broken.yaml": "# @package _global_\nseed: 2\ntolaria: [1,\n",
    "user/conf/model/wide.yaml": "width: 512\n",
    "user/conf/model/mlp.yaml": "width: 666\n",
}


NO_HYDRA = [f"hydra/{part}_logging=none" for part in ("job", "hydra")]


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(folders, "_PACKAGE", tmp_path / "esper_cli")
    monkeypatch.chdir(tmp_path / "user")
    return tmp_path


def refused(*overrides: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config.compose(overrides)
    assert "\n" not in caught.value.message
    return caught.value


def test_the_defaults_compose_and_name_no_experiment() -> None:
    cfg = config.compose([])
    assert (cfg.tolaria.epochs, cfg.model.name, cfg.experiment) == (10, "mlp", None)
    assert "hydra" not in cfg


def test_an_experiment_is_read_from_its_own_folder_and_names_itself() -> None:
    cfg = config.compose(["+experiment=small", "model.width=4"])
    assert (cfg.tolaria.epochs, cfg.model.width, cfg.experiment) == (2, 4, "small")


def test_a_users_experiment_builds_on_a_shipped_one() -> None:
    cfg = config.compose(["+experiment=mine"])
    assert (cfg.seed, cfg.tolaria.epochs, cfg.experiment) == (5, 2, "mine")


def test_a_users_experiment_wins_over_a_shipped_one_of_that_name(checkout: Path) -> None:
    (checkout / "user/experiments/small.yaml").write_text("# @package _global_\nseed: 99\n")
    assert config.compose(["+experiment=small"]).seed == 99


def test_an_experiment_of_a_study_has_a_folder_in_its_name() -> None:
    assert config.compose(["+experiment=study/one"]).seed == 11


def test_experiments_are_listed_without_what_is_no_experiment() -> None:
    assert config.experiments() == ["broken", "mine", "small", "typo"]


def test_a_users_conf_adds_options_and_replaces_none() -> None:
    assert config.compose(["model=wide"]).model.width == 512
    assert config.compose([]).model.width == 8


@pytest.mark.parametrize(
    ("override", "message", "hint"),
    [
        ("+experiment=smal", "unknown experiment 'smal'", "did you mean small?"),
        ("+experiment=qqqq", "unknown experiment 'qqqq'", "there is: broken, mine, small, typo"),
        ("model=resnt", "unknown model 'resnt'", "did you mean resnet?"),
        ("tolaria.epoch=3", "unknown key 'tolaria.epoch'", "did you mean tolaria.epochs"),
        ("epochs=3", "unknown key 'epochs'", "did you mean tolaria.epochs?"),
        ("experiment=small", "'experiment' has no default to replace", "write +experiment=small"),
        (
            "tolaria={epoch: 3}",
            "what is given for 'tolaria' holds a key",
            "set its keys as tolaria.KEY=VALUE",
        ),
        ("~nothing", "unknown key 'nothing'", "see every key with"),
        ("seed=1,2", "'seed=1,2' names several values", "add --multirun"),
        ("seed=range(1,3)", "'seed=range(1,3)' is a sweep", "add --multirun"),
        ("seed=[1", "cannot read the override 'seed=[1'", "write overrides as key=value"),
        ("seed", "cannot read the override 'seed'", "write overrides as key=value"),
        ("small", "'small' is no override", "did you mean +experiment=small?"),
        ("+experiement=small", "unknown key 'experiement'", "did you mean experiment?"),
        ("+tolaria.epcohs=3", "unknown key 'tolaria.epcohs'", "did you mean tolaria.epochs?"),
        ("tolaria.order=plain", "tolaria.order is chosen as a whole", "write tolaria/order=plain"),
        ("runtime=3", "unknown key 'runtime'", "see every key with"),
        ("+experiment=typo", "unknown key 'tolaria.epoch'", "did you mean tolaria.epochs?"),
    ],
)
def test_what_is_unknown_is_named_with_the_nearest(override: str, message: str, hint: str) -> None:
    error = refused(override)
    assert message in error.message
    assert error.hint is not None
    assert hint in error.hint


@pytest.mark.parametrize("override", ["~model", "+experiment=bare"])
def test_a_group_that_was_taken_away_must_be_given(override: str, checkout: Path) -> None:
    bare = checkout / "user/experiments/bare.yaml"
    bare.write_text("# @package _global_\ndefaults:\n  - override /model: null\n")
    assert refused(override).message == "model must be given"


def test_a_key_that_was_taken_away_must_be_given_unless_an_object_has_a_default(checkout: Path) -> None:
    assert refused("~tolaria.epochs").message == "tolaria.epochs must be given"
    (checkout / "conf/model/mlp.yaml").write_text("_target_: made.Elsewhere\nwidth: 8\nname: mlp\n")
    assert "width" not in config.compose(["~model.width"]).model


def test_a_key_below_a_list_is_one_line() -> None:
    assert "invalid literal" in refused("model=resnet", "model.blocks.x=1").message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("tolaria.epochs=abc", "tolaria.epochs must be a whole number, not 'abc'"),
        ("tolaria.epochs=1.5", "tolaria.epochs must be a whole number, not 1.5"),
        ("tolaria.epochs=true", "tolaria.epochs must be a whole number, not True"),
        ("tolaria.epochs=null", "tolaria.epochs must be a whole number, not null"),
        ("model.name=null", "model.name must be text, not null"),
        ("tolaria.lr=fast", "tolaria.lr must be a number, not 'fast'"),
        ("tolaria.shuffle=1", "tolaria.shuffle must be true or false, not 1"),
        ("tolaria=3", "Config group override must be a string or a list. Got int (given: tolaria=3)"),
    ],
)
def test_a_value_of_another_type_than_the_default_is_refused(override: str, expected: str) -> None:
    assert expected in refused(override).message


@pytest.mark.parametrize(
    "override", ["tolaria.lr=1", "tolaria.limit=7", "tolaria.limit=null", "tolaria.device=0"]
)
def test_what_a_default_leaves_open_is_accepted(override: str) -> None:
    config.compose([override])


def test_a_key_added_with_plus_is_accepted_where_somebody_asks_for_it() -> None:
    cfg = config.compose(["model=resnet", "+model.depth=3", "+model.extra.more=1", "+n=7", "seed=${n}"])
    assert (cfg.model.depth, cfg.seed) == (3, 7)


def test_what_an_object_is_made_of_may_be_more_than_is_listed() -> None:
    error = refused("model=resnet", "model.depth=3")
    assert error.hint == "did you mean model.width? If not, add an argument as +model.depth=VALUE"


def test_a_broken_file_is_named_with_its_line(checkout: Path) -> None:
    error = refused("+experiment=broken")
    assert str(checkout / "user/experiments/broken.yaml") in error.message
    assert "line 4" in error.message


def test_a_saved_configuration_takes_overrides_of_its_own_keys(tmp_path: Path) -> None:
    saved = tmp_path / "runs/one/config.yaml"
    saved.parent.mkdir(parents=True)
    saved.write_text("experiment: small\nseed: 3\ntolaria: {epochs: 4}\n")
    assert config.compose_from(saved, ["tolaria.epochs=9"]) == {
        "experiment": "small",
        "seed": 3,
        "tolaria": {"epochs": 9},
    }
    with pytest.raises(ConfigError, match=r"tolaria\.epochs must be a whole number"):
        config.compose_from(saved, ["tolaria.epochs=x"])
    with pytest.raises(ConfigError, match=r"unknown key 'tolaria\.epoch'"):
        config.compose_from(saved, ["tolaria.epoch=1"])


def test_an_installation_without_conf_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "_PACKAGE", tmp_path / "elsewhere" / "esper_cli")
    with pytest.raises(ConfigError, match="no folder 'conf'"):
        config.compose([])


def test_a_wheel_is_read_from_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = tmp_path / "site-packages/esper_cli/share/conf"
    share.mkdir(parents=True)
    (tmp_path / "site-packages/conf").mkdir()  # another distribution's
    monkeypatch.setattr(folders, "_PACKAGE", tmp_path / "site-packages/esper_cli")
    assert folders.shipped("conf") == share


def test_nearest_knows_an_inner_key_by_its_last_name() -> None:
    assert nearest("epoch", ["seed", "tolaria.epochs", "model.width"]) == ["tolaria.epochs"]
    assert nearest("zzz", ["seed"]) == []


def test_one_run_composes_what_it_was_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    composed: list[list[str]] = []
    load = ConfigLoaderImpl.load_configuration

    def counted(self: ConfigLoaderImpl, name: str, overrides: list[str], *rest: Any, **options: Any) -> Any:
        composed.append(overrides)
        return load(self, name, overrides, *rest, **options)

    monkeypatch.setattr(ConfigLoaderImpl, "load_configuration", counted)
    trained: list[int] = []
    config.run(lambda cfg: trained.append(config.job_config(cfg).seed), [], ["+experiment=mine", *NO_HYDRA])
    assert trained == [5]
    # The second is what it is held against.
    assert composed == [
        ["+experiment=mine", *NO_HYDRA],
        ["tolaria/order=plain", "tolaria=default", "model=resnet"],
    ]


def test_an_experiment_that_says_that_it_is_a_sweep_is_one(checkout: Path) -> None:
    text = "# @package _global_\nhydra: {mode: MULTIRUN, sweeper: {params: {seed: '3,4'}}}\n"
    (checkout / "user/experiments/sweep.yaml").write_text(text)
    trained: list[int] = []
    config.run(lambda cfg: trained.append(cfg.seed), [], ["+experiment=sweep", *NO_HYDRA])
    assert trained == [3, 4]
