"""How a configuration has a step computed: in which precision, averaged, compiled."""

from __future__ import annotations

from omegaconf import DictConfig

from esper.errors import ConfigError
from esper.tolaria.compiled import BACKENDS, Backend
from esper.tolaria.precision import HALVES, Half


def precision_of(cfg: DictConfig) -> Half | None:
    """``tolaria.precision``, for which ``tolaria.autocast`` is an older word.

    Raises ConfigError for another word, and when the two do not agree.
    """
    wanted = cfg.tolaria.get("precision")
    if wanted not in (None, *HALVES):
        raise ConfigError(
            f"tolaria.precision must be one of {', '.join(HALVES)} or null (float32), not {wanted}"
        )
    if cfg.tolaria.autocast and wanted == "fp16":
        raise ConfigError(
            "tolaria.autocast=true is bf16, and tolaria.precision is fp16",
            hint="leave autocast false: precision says it all",
        )
    half: Half | None = "bf16" if cfg.tolaria.autocast else wanted
    return half


def compile_of(cfg: DictConfig) -> Backend | None:
    """``tolaria.compile``; true is inductor, false is null. Raises ConfigError for another word."""
    wanted = cfg.tolaria.get("compile")
    backend: Backend | None = {True: "inductor", False: None}.get(wanted, wanted)
    if backend not in (None, *BACKENDS):
        raise ConfigError(f"tolaria.compile must be one of {', '.join(BACKENDS)} or null, not {wanted}")
    return backend
