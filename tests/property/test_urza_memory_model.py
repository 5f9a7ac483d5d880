"""The memory tier against the plainest model of one: a list, most recent last."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from esper.urza.memory import MemoryTier
from esper.urza.tiers import MISSING

KEYS = st.sampled_from(["a", "b", "c", "dd", "eee"])


class MemoryTierMachine(RuleBasedStateMachine):
    @initialize(bound=st.integers(0, 40))
    def open(self, bound: int) -> None:
        self.bound = bound
        self.tier = MemoryTier(bound)
        self.model: list[tuple[str, bytes]] = []

    def take(self, key: str) -> bytes | None:
        for entry in self.model:
            if entry[0] == key:
                self.model.remove(entry)
                return entry[1]
        return None

    def weight(self) -> int:
        return sum(len(key) + len(value) for key, value in self.model)

    @rule(key=KEYS, value=st.binary(max_size=45))
    def put(self, key: str, value: bytes) -> None:
        self.tier.put(key, value)
        self.take(key)
        if len(key) + len(value) <= self.bound:
            self.model.append((key, value))
            while self.weight() > self.bound:
                self.model.pop(0)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        value = self.take(key)
        assert self.tier.get(key) == (MISSING if value is None else value)
        if value is not None:
            self.model.append((key, value))

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        self.tier.delete(key)
        self.take(key)

    @invariant()
    def weighs_the_same_and_within_the_bound(self) -> None:
        assert self.tier.held_bytes == self.weight() <= self.bound


MemoryTierMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestMemoryTier = MemoryTierMachine.TestCase
