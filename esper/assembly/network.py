"""The data set, and the wrapped host network, of a configuration."""

from __future__ import annotations

import torch
from omegaconf import DictConfig
from torch import nn

from esper.assembly.configured import configured, settings
from esper.assembly.contract import check_data, check_module, check_network
from esper.data.splits import DataSplits
from esper.errors import ConfigError
from esper.kasmina import seeded_layers, wrap
from esper.messages import Slot


def build_data(cfg: DictConfig) -> DataSplits:
    """The data set that ``cfg.data`` names; raises DataError."""
    data: DataSplits = configured(cfg, "data")
    check_data(data)
    return data


def build_model(cfg: DictConfig, data: DataSplits) -> nn.Module:
    """The host network of ``cfg.model``, unwrapped, on the CPU.

    Constructor arguments that are null in the configuration and named ``in_channels``, ``in_features``,
    ``image_size``, ``classes``, ``vocabulary`` or ``length`` are filled in from the data.
    """
    channels, *space = data.sample_shape
    facts = {
        "in_channels": channels,
        "in_features": data.train.x[0].numel(),
        "image_size": space[-1] if space else None,
        "classes": data.classes,
        "vocabulary": data.vocabulary,
        "length": data.sample_shape[-1],
    }
    known = {key: facts[key] for key, value in cfg.model.items() if value is None and key in facts}
    model: nn.Module = configured(cfg, "model", **known)
    check_module(model)
    return model


def build_host(cfg: DictConfig, data: DataSplits) -> nn.Module:
    """The host network on the device of ``data``, its layers wrapped as ``cfg.kasmina`` says."""
    model = build_model(cfg, data).to(data.train.x.device)
    if cfg.tolaria.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
    check_network(model, data)
    wrap(model, data.train.x[:2], **settings(cfg, "kasmina"))
    return model


def device_of(cfg: DictConfig) -> torch.device:
    """The device that ``cfg.tolaria.device`` names; raises ConfigError when it cannot be used."""
    name = cfg.tolaria.device
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return usable_device(name, "tolaria.device", others="auto")


def usable_device(name: str, key: str, *, others: str = "") -> torch.device:
    """The device ``name``; raises ConfigError, about ``key``, when nothing can be put on it."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        known = ", ".join(filter(None, ("cpu", "cuda", others)))
        raise ConfigError(f"{key}={name}: {reason}", hint=f"use one of: {known}") from error
    return device


def slots_of(cfg: DictConfig) -> list[Slot]:
    """The slots of the network that ``cfg`` describes, each once, in the order of its layers."""
    return slots(build_host(cfg, build_data(cfg)))


def slots(model: nn.Module) -> list[Slot]:
    """The slots of a wrapped network, each once, in the order of its layers."""
    found: dict[Slot, None] = {}
    for layer in seeded_layers(model).values():
        for idx in range(len(layer.seeds)):
            found[layer.slot("series", idx)] = None
            if not layer.parallel_refusal():
                found[layer.slot("parallel", idx)] = None
    return list(found)
