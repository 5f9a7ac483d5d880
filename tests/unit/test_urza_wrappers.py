"""The tiers that wrap another: what each adds. That they are tiers still, the contract suite shows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from waiting import LONG

from esper.errors import CorruptKernel, LibraryError, StorageError, TierUnavailable, UnknownKey
from esper.security.envelope import Envelope
from esper.security.keys import KeyRing, new_key
from esper.urza.breaker import BreakerCounts, CircuitBroken
from esper.urza.encrypted import Encrypted
from esper.urza.measured import BOUNDS, Measured
from esper.urza.memory import MemoryTier
from esper.urza.tiers import MISSING, Missing, Tier


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FickleTier(MemoryTier):
    """Raises ``error`` if there is one, and runs ``before`` each call."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        super().__init__(2**20)
        self.error: BaseException | None = None
        self.before = before
        self.calls = 0

    def get(self, key: str) -> bytes | Missing:
        self._step()
        return super().get(key)

    def get_many(self, keys: Sequence[str]) -> dict[str, bytes]:
        self._step()
        return {key: value for key in keys if (value := MemoryTier.get(self, key)) is not MISSING}

    def put(self, key: str, value: bytes) -> None:
        self._step()
        super().put(key, value)

    def _step(self) -> None:
        self.calls += 1
        self.before()
        if self.error is not None:
            raise self.error


def failing(tier: FickleTier, error: BaseException, wrapped: Tier, times: int = 1) -> None:
    tier.error = error
    for _ in range(times):
        with pytest.raises(type(error)):
            wrapped.get("a")
    tier.error = None


# Measured


def test_calls_are_counted_by_operation() -> None:
    tier = Measured(MemoryTier(2**20))
    tier.put("a", b"1")
    tier.put_many({"b": b"2", "c": b"3"})
    assert tier.get("a") == b"1"
    assert tier.get("z") is MISSING
    assert tier.get_many(["a", "b", "y", "a"]) == {"a": b"1", "b": b"2"}
    tier.delete("a")
    calls = {name: times.calls for name, times in tier.times().items()}
    assert calls == {"put": 1, "put_many": 1, "get": 2, "get_many": 1, "delete": 1}
    assert {times.errors for times in tier.times().values()} == {0}


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (BOUNDS[0], 0), (1.5e-6, 1), (BOUNDS[1], 1), (BOUNDS[10], 10), (0.003, 12), (60.0, 24)],
)
def test_a_latency_is_counted_under_the_first_bound_that_it_does_not_exceed(
    seconds: float, bucket: int
) -> None:
    clock = Clock()
    clock.now = 0.0
    tier = Measured(FickleTier(lambda: setattr(clock, "now", clock.now + seconds)), clock=clock)
    tier.get("a")
    times = tier.times()["get"]
    assert [index for index, count in enumerate(times.buckets) if count] == [bucket]
    assert times.seconds == seconds


def test_a_call_that_raises_is_counted_and_timed_as_an_error() -> None:
    inner = FickleTier()
    tier = Measured(inner)
    failing(inner, LibraryError("no"), tier)
    assert (tier.times()["get"].calls, tier.times()["get"].errors) == (1, 1)
    assert sum(tier.times()["get"].buckets) == 1


def test_no_measurement_is_lost_between_threads() -> None:
    tier = Measured(MemoryTier(2**20))
    tier.put("a", b"1")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: [tier.get("a") for _ in range(300)], range(8)))
    assert tier.times()["get"].calls == sum(tier.times()["get"].buckets) == 2400


# CircuitBroken


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def inner() -> FickleTier:
    return FickleTier()


@pytest.fixture
def breaker(inner: FickleTier, clock: Clock) -> CircuitBroken:
    return CircuitBroken(inner, failures=3, slow_seconds=0.04, cooldown=1.0, clock=clock)


def refused(breaker: CircuitBroken) -> TierUnavailable:
    with pytest.raises(TierUnavailable) as caught:
        breaker.get("a")
    return caught.value


@pytest.mark.parametrize("error", [LibraryError("gone"), StorageError("full"), TierUnavailable("late")])
def test_failures_in_a_row_open_the_circuit(
    inner: FickleTier, breaker: CircuitBroken, error: LibraryError
) -> None:
    failing(inner, error, breaker, times=2)
    assert breaker.state == "closed"
    failing(inner, error, breaker)
    assert breaker.state == "open"
    calls = inner.calls
    assert "'memory'" in str(refused(breaker))
    assert inner.calls == calls
    assert breaker.counts() == BreakerCounts(failures=3, refused=1, opened=1)


def test_a_success_in_between_starts_the_count_anew(inner: FickleTier, breaker: CircuitBroken) -> None:
    for _ in range(4):
        failing(inner, LibraryError("gone"), breaker, times=2)
        breaker.get("a")
    assert breaker.state == "closed"


def test_every_operation_is_refused_while_it_is_open(inner: FickleTier, breaker: CircuitBroken) -> None:
    failing(inner, LibraryError("gone"), breaker, times=3)
    calls: list[Callable[[], object]] = [
        lambda: breaker.get_many(["a"]),
        lambda: breaker.put("a", b""),
        lambda: breaker.put_many({"a": b""}),
        lambda: breaker.delete("a"),
    ]
    for call in calls:
        with pytest.raises(TierUnavailable):
            call()


def test_one_slow_call_opens_it_and_its_value_is_still_good(
    inner: FickleTier, breaker: CircuitBroken, clock: Clock
) -> None:
    breaker.put("a", b"1")
    inner.before = lambda: setattr(clock, "now", clock.now + 0.05)
    assert breaker.get("a") == b"1"
    assert breaker.state == "open"


def test_many_keys_may_take_longer_unless_they_fail(
    inner: FickleTier, breaker: CircuitBroken, clock: Clock
) -> None:
    inner.before = lambda: setattr(clock, "now", clock.now + 0.05)
    breaker.get_many(["a"])
    assert breaker.state == "closed"
    inner.error = TierUnavailable("late")
    with pytest.raises(TierUnavailable):
        breaker.get_many(["a"])
    assert breaker.state == "open"


def test_after_the_cooldown_a_success_closes_it(
    inner: FickleTier, breaker: CircuitBroken, clock: Clock
) -> None:
    failing(inner, LibraryError("gone"), breaker, times=3)
    clock.now += 0.99
    refused(breaker)
    clock.now += 0.02
    assert breaker.get("a") is MISSING
    assert breaker.state == "closed"


def test_after_the_cooldown_one_failure_opens_it_for_another(
    inner: FickleTier, breaker: CircuitBroken, clock: Clock
) -> None:
    failing(inner, LibraryError("gone"), breaker, times=3)
    clock.now += 1.01
    failing(inner, LibraryError("gone"), breaker)
    clock.now += 0.99
    refused(breaker)
    assert breaker.counts() == BreakerCounts(failures=4, refused=1, opened=2)


def test_one_caller_alone_tries_a_half_open_circuit(
    inner: FickleTier, breaker: CircuitBroken, clock: Clock
) -> None:
    failing(inner, LibraryError("gone"), breaker, times=3)
    clock.now += 1.01
    inside, go = threading.Event(), threading.Event()
    inner.before = lambda: (inside.set(), go.wait(LONG), None)[-1]
    with ThreadPoolExecutor(1) as pool:
        probe = pool.submit(breaker.get, "a")
        assert inside.wait(LONG)
        assert breaker.state == "half-open"
        calls = inner.calls
        refused(breaker)
        assert inner.calls == calls
        go.set()
        assert probe.result(LONG) is MISSING
    assert breaker.state == "closed"


def test_an_interrupted_probe_leaves_the_next_caller_to_try(
    inner: FickleTier, breaker: CircuitBroken, clock: Clock
) -> None:
    failing(inner, LibraryError("gone"), breaker, times=3)
    clock.now += 1.01
    failing(inner, KeyboardInterrupt(), breaker)
    assert breaker.state == "open"
    breaker.get("a")
    assert breaker.state == "closed"


def test_a_call_begun_before_it_opened_does_not_close_it(inner: FickleTier, breaker: CircuitBroken) -> None:
    inside, go = threading.Event(), threading.Event()

    def wait_once() -> None:
        inner.before = lambda: None
        inside.set()
        go.wait(LONG)

    inner.before = wait_once
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(breaker.get_many, ["a"])
        assert inside.wait(LONG)
        failing(inner, LibraryError("gone"), breaker, times=3)
        go.set()
        early.result(LONG)
    assert breaker.state == "open"


def test_the_state_shows_through_what_is_wrapped_around_it(breaker: CircuitBroken, inner: FickleTier) -> None:
    assert sealed(Measured(breaker)).state == "closed"
    failing(inner, LibraryError("gone"), breaker, times=3)
    assert sealed(Measured(breaker)).state == "open"
    assert Measured(inner).state is None


# Encrypted


def sealed(inner: Tier, *, record: bool = False) -> Encrypted:
    return Encrypted(inner, Envelope(KeyRing((new_key(),), "this test")), record=record)


def test_nothing_of_the_value_is_in_the_tier() -> None:
    inner = MemoryTier(2**20)
    sealed(inner).put_many({"a": b"a kernel's weights", "b": b"a kernel's weights"})
    held = inner.get_many(["a", "b"])
    assert b"kernel" not in held["a"] + held["b"]
    assert held["a"] != held["b"]


def changed(values: Mapping[str, bytes], change: str) -> Mapping[str, bytes]:
    if change == "flipped":
        return values | {"a": values["a"][:-1] + bytes([values["a"][-1] ^ 1])}
    if change == "cut":
        return values | {"a": values["a"][:-1]}
    if change == "plain":
        return values | {"a": b"never sealed"}
    return values | {"a": values["b"]}


@pytest.mark.parametrize("change", ["flipped", "cut", "plain", "moved from another key"])
def test_what_is_not_what_was_sealed_is_a_miss_in_a_cache_and_an_error_in_the_record(change: str) -> None:
    inner = MemoryTier(2**20)
    envelope = Envelope(KeyRing((new_key(),), "this test"))
    cache, record = Encrypted(inner, envelope), Encrypted(inner, envelope, record=True)
    cache.put_many({"a": b"1", "b": b"2"})
    inner.put_many(changed(inner.get_many(["a", "b"]), change))
    assert cache.get("a") is MISSING
    assert cache.get_many(["a", "b"]) == {"b": b"2"}
    assert record.get("b") == b"2"
    with pytest.raises(CorruptKernel, match="sha256:a"):
        record.get("a")
    with pytest.raises(CorruptKernel):
        record.get_many(["b", "a"])


def test_a_key_that_is_not_at_hand_is_a_miss_in_a_cache_and_named_by_the_record() -> None:
    inner = MemoryTier(2**20)
    sealed(inner).put("a", b"1")
    assert sealed(inner).get("a") is MISSING
    with pytest.raises(UnknownKey):
        sealed(inner, record=True).get("a")
