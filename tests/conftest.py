"""What holds for every test, in any order and on a machine of any speed.

One thread, because small networks are slower with more on a shared machine; random numbers, and examples of
properties, that are the same each time.
"""

from __future__ import annotations

import gc
import os
import random
import signal
from collections.abc import Generator
from typing import Any

import composing
import httpx
import hypothesis
import migrating
import numpy as np
import pytest
import torch
from waiting import LONG

pytest_plugins = ["servers.redis", "servers.postgres"]  # postgres imports redis

# What tests start can be interrupted as at a terminal, where the tests run in the background too.
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
hypothesis.settings.load_profile("ci")  # no deadline, no other examples each time
composing.remember()
migrating.remember()
for part in ("connect", "read", "write", "pool"):  # five seconds, which a busy machine may take
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, part, LONG)


def pytest_collection_finish() -> None:
    """What has been imported stays: the garbage collector walks it no more, which is a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """What ran before in this process leaves no trace in what is random."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """In CI a test that cannot run is a failure: what it needs is missing there."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI: {report.longrepr[2]}"
    return report
