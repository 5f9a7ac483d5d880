"""The kernel library in plain data, and what stands behind it, for the HTTP API."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from omegaconf import DictConfig

from esper.assembly.storage import redis_url
from esper.messages import CompilationRecord
from esper.nissa.api.queries import KernelsQuery, TagsBody
from esper.nissa.run_records import CacheTier
from esper.security.audit import Action
from esper.urza.library import KernelLibrary
from esper.urza.query import KernelQuery

REDIS_SECONDS = 0.5

LATEST_TRIALS = 100
"""A kernel is shown with this many of its trials."""


class LibraryCatalogue:
    """As ``esper.nissa.api.catalogue.Library`` asks; raises what the library raises."""

    def __init__(self, library: KernelLibrary) -> None:
        self._library = library
        self._tagging = threading.Lock()

    def page(self, query: KernelsQuery) -> dict[str, Any]:
        """A page of kernels with their standings."""
        page = self._library.page(
            KernelQuery(
                tags=query.tag,
                any_tags=query.any_tag,
                no_tags=query.no_tag,
                input=query.input,
                output=query.output,
                layout=query.layout,
                status=query.status,
                name=query.name,
                blueprint=query.blueprint,
                sort=query.sort,
                limit=query.limit,
                after=query.cursor,
            )
        )
        pairs = zip(page.kernels, page.standings, strict=True)
        return {
            "kernels": [{"kernel": kernel, "standing": standing} for kernel, standing in pairs],
            "next": page.next,
        }

    def kernel(self, kernel_id: str) -> dict[str, Any]:
        """A kernel, its blueprint, what it came from, and its latest trials."""
        kernel = self._library.get(kernel_id)
        by_id = KernelQuery(id_prefix=kernel_id, sort="id", limit=1)
        (standing, *_) = self._library.page(by_id).standings
        trials = self._library.trials(kernel_id)[-LATEST_TRIALS:]
        return {
            "kernel": kernel,
            "standing": standing,
            "blueprint": json.loads(self._library.blueprint(kernel_id)),
            "lineage": {
                "parent_blueprint": kernel.parent_blueprint,
                "parent_kernel": kernel.parent_kernel,
                "run_id": kernel.run_id,
                "decision": kernel.decision,
                "inventions": self._library.inventions(kernel_id),
            },
            "results": [{"run_id": trial.run_id, "report": asdict(trial.report)} for trial in trials],
        }

    def retag(self, kernel_id: str, tags: TagsBody) -> list[str]:
        """Add tags behind those that the kernel has, then take some away; those that it has then."""
        with self._tagging:  # two that add a tag each are to leave both
            before = self._library.get(kernel_id).tags
            now = [tag for tag in dict.fromkeys([*before, *tags.add]) if tag not in tags.remove]
            if now != list(before):
                self._library.set_tags(kernel_id, now)
        return now

    def note_request(self, action: str, run_id: str, **bounds: int | None) -> None:
        """Enter in the audit trail what is asked of a run; what became of it stands in that of the run."""
        given = {name: bound for name, bound in bounds.items() if bound is not None}
        self._library.note(Action(f"run.{action}.asked", run_id, detail=given))

    def compilations(self) -> Sequence[CompilationRecord]:
        """The log of attempts to compile."""
        return self._library.compilations()

    def tiers(self) -> Mapping[str, CacheTier]:
        """What this process has asked of each tier."""
        counts = self._library.tier_counts()
        return {name: CacheTier(**asdict(tier)) for name, tier in counts.items()}


def redis_check(cfg: DictConfig) -> dict[str, Callable[[], str]]:
    """The check of the Redis server of ``cfg.urza``, by its name; nothing where there is none.

    The check raises TierUnavailable when the server does not answer in time.
    """
    url = redis_url(cfg)
    if not url:
        return {}
    from esper.urza.redis_client import BoundedRedis

    redis = BoundedRedis(url, REDIS_SECONDS)

    def check() -> str:
        with redis.call():
            redis.ask("PING")
        return "it answers"

    return {"redis": check}
