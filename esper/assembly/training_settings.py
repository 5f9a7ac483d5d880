"""What a configuration says of a training: checked, and as the settings that its parts take."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from esper.assembly.configured import configured, settings
from esper.assembly.numerics import compile_of, precision_of
from esper.errors import ConfigError
from esper.tamiyo.emergency import EmergencyPolicy
from esper.tolaria.checkpoints import Retention
from esper.tolaria.trainer import TrainerSettings
from esper.tolaria.trial import TrialPlan


def check_bounds(cfg: DictConfig) -> None:
    """Refuse settings that no run can be made of; the parts that are instantiated check their own."""
    init = OmegaConf.select(cfg, "tolaria.trial.init")
    if init not in ("default", "gradmax"):
        raise ConfigError(f"tolaria.trial.init must be default or gradmax, not {init}")
    precision_of(cfg), compile_of(cfg)
    bounds = {
        "tolaria.epochs": (1, math.inf),
        "tolaria.flops": (1, math.inf),
        "tolaria.learning_rate": (0, math.inf),
        "tolaria.observe_every": (1, math.inf),
        "tolaria.keep_checkpoints": (1, math.inf),
        "tolaria.keep_best": (0, math.inf),
        "tolaria.keep_every": (0, math.inf),
        "tolaria.checkpoint_every": (1, math.inf),
        "tolaria.max_grad_norm": (0, math.inf),
        "tolaria.processes": (1, math.inf),
        "tolaria.restarts": (0, math.inf),
        "tolaria.accumulate": (1, math.inf),
        "tolaria.ema": (0, 1),
        "tolaria.trial.training": (0, math.inf),
        "tolaria.trial.blending": (0, math.inf),
        "tolaria.trial.holding": (0, math.inf),
        "tolaria.trial.embargo": (0, math.inf),
        "tolaria.trial.kernel_lr_scale": (0, math.inf),
        "seed": (0, 2**32 - 1),  # what every generator takes
    }
    for key, (least, most) in bounds.items():
        value = OmegaConf.select(cfg, key)
        if value is None or (least <= value <= most and value != math.inf):
            continue
        if value > most < math.inf:
            raise ConfigError(f"{key} must be at most {most}, not {value}")
        raise ConfigError(f"{key} must be at least {least}, not {value}")  # not a number, too


def build_optimizer(cfg: DictConfig, model: nn.Module) -> Optimizer:
    """The optimizer of the host; every group remembers its peak learning rate for the schedule."""
    optimizer: Optimizer = configured(cfg, "tolaria.optimizer", params=list(model.parameters()))
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def trainer_settings(cfg: DictConfig) -> TrainerSettings:
    """How long and how precisely is trained, and how often what is done beside it."""
    return TrainerSettings(
        epochs=cfg.tolaria.epochs,
        flops=cfg.tolaria.flops,
        observe_every=cfg.tolaria.observe_every,
        max_grad_norm=cfg.tolaria.max_grad_norm,
        precision=precision_of(cfg),
        compile=compile_of(cfg),
        checkpoint_every=cfg.tolaria.get("checkpoint_every"),
        accumulate=cfg.tolaria.get("accumulate") or 1,
    )


def retention(cfg: DictConfig) -> Retention:
    """Which checkpoints stay; a run that was begun before there was a choice keeps the newest alone."""
    tolaria = cfg.tolaria
    return Retention(tolaria.keep_checkpoints, tolaria.get("keep_best", 0), tolaria.get("keep_every", 0))


def recovery(cfg: DictConfig) -> tuple[EmergencyPolicy, dict[str, Any]]:
    """What is done in an emergency, and the limits beyond which there is one; by default in older runs."""
    wanted = settings(cfg, "tolaria.recovery") if "recovery" in cfg.tolaria else {}
    policy = {name: wanted.pop(name) for name in ("rollbacks", "rate", "least_rate") if name in wanted}
    return EmergencyPolicy(**policy), wanted


def trial_plan(cfg: DictConfig, steps_per_epoch: int) -> TrialPlan:
    """Stages that the configuration gives in epochs, in steps."""
    trial = cfg.tolaria.trial
    return TrialPlan(
        training_steps=max(1, round(trial.training * steps_per_epoch)),
        blending_steps=max(1, round(trial.blending * steps_per_epoch)),
        holding_steps=max(1, round(trial.holding * steps_per_epoch)),
        z=trial.z,
        min_gain=trial.min_gain,
        embargo_epochs=trial.embargo,
        fold=trial.fold,
    )
