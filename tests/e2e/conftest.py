"""A page in a real Chromium, over a real server with TLS and tokens, and the runs that it shows."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import forked
import pytest
from page_support import DEEP, FAILED, FLAGS, GROWN, STOPPED, WINDOW, MadeRun, MakeRun, Open
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from waiting import LONG

from esper.nissa.journal import JOURNAL_NAME

TOO_WIDE = """version: 1
name: far_too_wide
title: More parameters than a kernel may have
layouts: [features]
sizes:
  r: 100000
nodes:
  - {id: down, op: linear, inputs: [x], params: {out: r}}
  - {id: middle, op: linear, inputs: [down], params: {out: r}}
  - {id: up, op: linear, inputs: [middle], params: {out: out}}
output: up
"""
expect.set_options(timeout=1000 * LONG)
TOLD = ("error", "warning")
OWN = "2099*"
"""The runs that tests make for themselves, and that are gone after them."""


def environment(place: Path) -> dict[str, str]:
    return {**os.environ, "ESPER_HOME": str(place / "home"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run that was trained, though one blueprint cannot be compiled, and with made ones."""
    place = tmp_path_factory.mktemp("page")
    blueprints = Path(__file__).parents[2] / "blueprints"
    (place / "wide.yaml").write_text(TOO_WIDE)
    paths = f"karn.paths=[wide.yaml,{blueprints}/residual_mlp.yaml]"
    done = forked.esper("train", "+experiment=smoke", paths, cwd=place, env=environment(place))
    assert done.returncode == 0, done.stderr
    (trained,) = (place / "runs").glob("*-smoke-*")
    kernels = re.findall(r"kernel_[0-9a-f]{16}", (trained / JOURNAL_NAME).read_text())
    grown = MadeRun(place / "runs", GROWN, layers=9, total=60, every=5, kernels=kernels)
    grown.epochs(47)
    grown.rollback(44)
    grown.epochs(16)
    grown.finish()
    stopped = MadeRun(place / "runs", STOPPED, layers=9, total=60, every=9, seed=3)
    stopped.epochs(40)
    stopped.close()
    deep = MadeRun(place / "runs", DEEP, layers=500, total=10_000, every=60)
    deep.epochs(10_000)
    deep.finish()
    failed = MadeRun(place / "runs", FAILED, layers=3, total=60)
    failed.epochs(9)
    failed.fail("the loss is not finite after 3 rollbacks")
    return place


@pytest.fixture(scope="module")
def token(place: Path) -> str:
    words = ("token", "issue", "--role", "viewer", "--for", "reader")
    issued = forked.esper(*words, cwd=place, env=environment(place))
    assert issued.returncode == 0, issued.stderr
    return issued.stdout.strip()


@pytest.fixture(scope="module")
def url(place: Path, token: str) -> Iterator[str]:
    """The address of ``esper serve-metrics`` over them, with TLS and for those alone who have a token."""
    words = ("serve-metrics", "--port", "0", "--tls-self-signed", "nissa.anonymous=none")
    with forked.command(*words, cwd=place, env=environment(place)) as server:
        yield server.until(r"https://[\d.:]+(?=\s)")[0]
        server.send(signal.SIGTERM)
        server.wait()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        missing = "no chromium: apt-get install chromium"
        if os.environ.get("ESPER_REQUIRE_SERVERS") == "1" or os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)  # on a machine of one's own, as with the servers
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def signed_in(browser: Browser, url: str, token: str) -> BrowserContext:
    """A browser as it is after a visit with a token; a new one costs more than the page does."""
    context = browser.new_context(**WINDOW)
    page = context.new_page()
    page.goto(f"{url}/?token={token}")
    page.get_by_role("button", name="Sign in as reader").click()
    assert page.url == f"{url}/"
    page.close()
    return context


@pytest.fixture
def make_run(place: Path) -> Iterator[MakeRun]:
    made: list[MadeRun] = []

    def make_run(run_id: str, **options: Any) -> MadeRun:
        made.append(MadeRun(place / "runs", run_id, **options))
        return made[-1]

    yield make_run
    for run in made:
        run.close()
    for folder in (place / "runs").glob(OWN):
        shutil.rmtree(folder)


@pytest.fixture
def open_page(
    browser: Browser,
    url: str,
    signed_in: BrowserContext,
    make_run: MakeRun,  # whose runs are there as long as the page is
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> Iterator[Open]:
    """Opens the page; whatever a test does, nothing leaves the origin and the console tells of no error.

    With options it is opened in a browser of its own, which has to be so for whoever changes the browser.
    """
    wrong: list[str] = []
    pages: list[Page] = []
    host = urlsplit(url).netloc

    def open_page(fragment: str = "", *, strict: bool = True, **options: Any) -> Page:
        context = signed_in
        if options:
            context = browser.new_context(**{**WINDOW, "storage_state": signed_in.storage_state(), **options})
        page = context.new_page()
        pages.append(page)
        page.set_default_timeout(1000 * LONG)
        page.on("request", lambda each: wrong.append(each.url) if urlsplit(each.url).netloc != host else None)
        page.on("console", lambda each: wrong.append(each.text) if strict and each.type in TOLD else None)
        page.on("pageerror", lambda each: wrong.append(str(each)))
        page.goto(f"{url}/{fragment}")
        return page

    yield open_page
    keep = Path(os.environ.get("ESPER_ARTEFACTS") or tmp_path)
    for number, page in enumerate(pages):
        name = f"{request.node.name.removeprefix('test_')}-{number}.png"
        page.screenshot(path=keep / name)
        if page.context is signed_in:
            page.close()
        else:
            page.context.close()
    assert wrong == []
