"""Loaded kernels: each handed out once, copies made aside, bounded."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch
from torch import nn
from waiting import LONG, until

from esper.urza.modules import LoadedModules


@pytest.fixture
def loaded() -> Iterator[LoadedModules]:
    with closing(LoadedModules(1000)) as modules:
        yield modules


def linear(fill: float = 1.0) -> nn.Module:
    layer = nn.Linear(2, 2)
    nn.init.constant_(layer.weight, fill)
    return layer


def refuse() -> nn.Module:
    raise AssertionError("it was loaded again")


def test_it_is_loaded_once_and_every_taker_has_a_module_of_its_own(loaded: LoadedModules) -> None:
    taken = [loaded.take("a", 10, linear)] + [loaded.take("a", 10, refuse) for _ in range(5)]
    places = {module.weight.data_ptr() for module in taken}
    assert len(places) == 6
    with torch.no_grad():
        taken[0].weight.zero_()
    assert all(bool((module.weight == 1).all()) for module in [*taken[1:], loaded.take("a", 10, refuse)])


def test_a_copy_of_a_compiled_module_trains_alone() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.script(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)))
    convolution = getattr(script, "0")
    convolution.bias.requires_grad_(False)
    convolution.weight.data = convolution.weight.data.contiguous(memory_format=torch.channels_last)
    with closing(LoadedModules(1000)) as loaded:
        original = loaded.take("a", 10, lambda: script)
        copies = [loaded.take("a", 10, refuse) for _ in range(3)]
    for module in copies:
        for copied, wanted in zip(module.parameters(), original.parameters(), strict=True):
            assert copied.is_leaf
            assert copied.requires_grad == wanted.requires_grad
            assert copied.stride() == wanted.stride()
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
        module(torch.randn(4, 2, 3, 3)).square().sum().backward()
        optimizer.step()
        assert all(p.grad is None for p in original.parameters())
        assert not torch.equal(next(module.parameters()), next(original.parameters()))


def test_a_copy_that_cannot_be_made_aside_is_made_by_who_takes_it(
    loaded: LoadedModules, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, failed = threading.get_ident(), threading.Event()

    def copied(module: nn.Module) -> nn.Module:
        if threading.get_ident() != here:
            failed.set()
            raise MemoryError
        return linear()

    monkeypatch.setattr("esper.urza.modules.copy.deepcopy", copied)
    loaded.take("a", 10, linear)
    assert failed.wait(LONG)
    failed.clear()
    loaded.take("a", 10, refuse)
    assert failed.wait(LONG)  # it is tried again
    assert isinstance(loaded.take("a", 10, refuse), nn.Linear)


@pytest.mark.parametrize("used", [False, True])
def test_once_closed_no_thread_makes_copies(loaded: LoadedModules, used: bool) -> None:
    others = set(threading.enumerate())
    if used:
        loaded.take("a", 10, linear)
    loaded.close()
    loaded.take("a", 10, linear)
    for _ in range(5):
        loaded.take("a", 10, refuse)
    assert [thread.name for thread in set(threading.enumerate()) - others] == []
    loaded.close()


def test_copies_are_made_ready_in_a_thread(loaded: LoadedModules, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded.take("a", 10, linear)
    until(lambda: len(loaded._entries["a"].ready) == 2)
    here = threading.get_ident()
    made = []

    def copied(module: nn.Module) -> nn.Module:
        made.append(threading.get_ident())
        return linear()

    monkeypatch.setattr("esper.urza.modules.copy.deepcopy", copied)
    loaded.take("a", 10, refuse)
    loaded.take("a", 10, refuse)
    assert here not in made


def test_the_least_recently_used_goes_first_and_what_is_too_large_is_not_kept() -> None:
    with closing(LoadedModules(60, spares=1)) as loaded:
        loaded.take("a", 10, linear)
        loaded.take("b", 10, linear)
        loaded.take("c", 10, linear)
        loaded.take("a", 10, refuse)
        loaded.take("d", 10, linear)  # b goes
        for key in ("a", "c", "d"):
            loaded.take(key, 10, refuse)
        with pytest.raises(AssertionError):
            loaded.take("b", 10, refuse)
        loaded.take("large", 31, linear)
        with pytest.raises(AssertionError):
            loaded.take("large", 31, refuse)


def test_nothing_is_kept_of_a_load_that_fails_or_of_what_was_dropped(loaded: LoadedModules) -> None:
    def broken() -> nn.Module:
        raise RuntimeError("version")

    with pytest.raises(RuntimeError, match="version"):
        loaded.take("a", 10, broken)
    loaded.take("a", 10, linear)
    loaded.drop("a")
    loaded.drop("never")
    assert bool((loaded.take("a", 10, lambda: linear(2.0)).weight == 2).all())


def test_threads_share_it_and_never_a_module(loaded: LoadedModules) -> None:
    def work(seed: int) -> list[nn.Module]:
        return [loaded.take((seed + step) % 3, 10, linear) for step in range(60)]

    with ThreadPoolExecutor(6) as pool:
        taken = [module for modules in pool.map(work, range(6)) for module in modules]
    assert len({module.weight.data_ptr() for module in taken}) == 360


@pytest.mark.parametrize("wrong", [{"max_bytes": -1}, {"max_bytes": 1, "spares": 0}])
def test_bounds_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be 0 or more"):
        LoadedModules(**wrong)
