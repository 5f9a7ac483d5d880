"""Which kernels a decision comes to, and the trial of the one that is taken."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from esper.errors import GraftError
from esper.kasmina import SeededLayer
from esper.messages import AdaptationDecision, KernelMetadata, SeedState, Site, Slot, SystemStatePacket
from esper.tolaria.shared import Kernels
from esper.tolaria.trial import Trial
from esper.urza.library import Kernel
from esper.urza.ranking import TrialContext, Wanted

_ALL = 1_000_000
"""More kernels than any library has for one slot."""


def untried_kernels(
    library: Kernels, slot: Slot, dtype: str, context: TrialContext, wanted: Mapping[str, Any]
) -> list[KernelMetadata]:
    """The kernels of ``dtype`` for ``slot`` that the parameters ``wanted`` of a decision leave, best first.

    Best is what was kept most in ``context`` and in ones like it. With ``choice`` "random" they are all that
    fit, in an order drawn from ``choice_seed``. Raises GraftError when there is none.
    """
    avoid = wanted.get("avoid", ())
    at_random = wanted.get("choice") == "random"
    limit = _ALL if at_random else 20 + len(avoid)
    found = library.find(slot, context=context, tags=wanted["tags"], dtype=dtype, limit=limit)
    untried = [metadata for metadata in found if metadata.kernel_id not in avoid]
    if not untried:
        tags = ", ".join(wanted["tags"]) or "any tag"
        raise GraftError(f"no untried kernel for {slot} with {tags}; {len(found)} were tried")
    if at_random:
        untried.sort(key=lambda metadata: metadata.kernel_id)  # the rank of a kernel is a measured one
        random.Random(wanted["choice_seed"]).shuffle(untried)
    return untried


def likely_wanted(layers: Mapping[str, SeededLayer], task: str, kernels: int) -> tuple[Wanted, ...]:
    """What decisions on ``layers`` may want next: the best for the slots of dormant seeds, each slot once.

    They are about ``kernels`` in all, at least one a slot and at most that many slots. Tags and sites are for
    the policy to choose, so these have no tags, and a site like that of a policy with the usual settings.
    """
    slots = dormant_slots(layers)
    each = max(1, kernels // len(slots)) if slots else 0
    return tuple(Wanted(slot, TrialContext(kind, task), limit=each) for slot, kind in slots)[:kernels]


def dormant_slots(layers: Mapping[str, SeededLayer]) -> list[tuple[Slot, str]]:
    """The slots of dormant seeds, each with the kind of its layer and once; parallel ones where possible."""
    slots: dict[tuple[Slot, str], None] = {}
    for layer in layers.values():
        site: Site = "series" if layer.parallel_refusal() else "parallel"
        for idx in range(len(layer.seeds)):
            if layer.seed(idx).state is SeedState.DORMANT:
                slots[layer.slot(site, idx), layer.kind] = None
    return list(slots)


def begin_trial(
    decision: AdaptationDecision, packet: SystemStatePacket, slot: Slot, context: TrialContext, kernel: Kernel
) -> Trial:
    """The trial of ``kernel`` in ``slot``, in ``context``, as ``decision`` asks after ``packet``."""
    wanted, metadata = decision.parameters, kernel.metadata
    layer, seed_idx = decision.target_component, wanted["seed_idx"]
    return Trial(
        layer=layer,
        layer_kind=context.layer_kind,
        seed_idx=seed_idx,
        slot=slot,
        site=wanted["site"],
        blend=wanted["blend"],
        kernel_id=metadata.kernel_id,
        blueprint_id=metadata.blueprint_id,
        blueprint=kernel.blueprint,
        alpha_blend=wanted["alpha_blend"],
        expected_impact=decision.expected_impact,
        started_epoch=packet.epoch,
        loss_before=packet.held_out_loss,
        accuracy_before=packet.accuracy,
        parameters=sum(p.numel() for p in kernel.module.parameters()),
        confidence=decision.confidence,
        tags=metadata.tags,
        task=context.task,
        latency_ms=metadata.latency_ms,
        target=metadata.target,
        **_signals(packet, layer, seed_idx),
    )


def _signals(packet: SystemStatePacket, layer: str, seed_idx: int) -> dict[str, Any]:
    """Where ``layer`` stands, and what its seed looked like in the epoch of ``packet``."""
    names = list(packet.layer_metrics)
    if layer not in names:
        return {}
    place = {"depth": names.index(layer), "layers": len(names)}
    signals = packet.layer_metrics[layer].signals  # none where the sampled steps never called the layer
    if seed_idx >= len(signals):
        return place
    of = signals[seed_idx]
    measured = {
        "gradient_norm": of.gradient_norm,
        "activation_variance": of.activation_variance,
        "health": of.health,
    }
    return {**place, **measured}
