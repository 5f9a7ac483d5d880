"""Leaves the page open on a long run that goes on: is it as quick at the end, and does it hold on to memory?

``PYTHONPATH=tests python -m drills.page`` needs Debian's chromium. A run of 500 layers has 9,000 epochs
behind it and lives through 1,000 more, ten a second, under a page that follows it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from page_support import FLAGS, SCRUB, MadeRun
from playwright.sync_api import CDPSession, Page, expect, sync_playwright

BEHIND, AHEAD, PAUSE = 9_000, int(os.environ.get("EPOCHS", "1000")), 0.1
WATCH = """() => {
  window.longTasks = [];
  new PerformanceObserver((list) => list.getEntries().forEach((each) => longTasks.push(each.duration)))
    .observe({ type: "longtask" });
}"""


def held(session: CDPSession) -> tuple[float, int, int]:
    """Megabytes of the heap after collecting, nodes and listeners of the document."""
    for _ in range(3):
        session.send("HeapProfiler.collectGarbage")
    found = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    return found["JSHeapUsedSize"] / 1e6, int(found["Nodes"]), int(found["JSEventListeners"])


def told(page: Page) -> str:
    tasks: list[float] = page.evaluate("longTasks.splice(0)")
    return f"{len(tasks)} tasks over 50 ms, the longest {max(tasks, default=0):.0f} ms"


def scrubbed(page: Page) -> None:
    page.evaluate("longTasks.splice(0)")
    times: list[float] = page.evaluate(SCRUB, 300)
    rate, most = 1000 * len(times) / sum(times), times[int(0.95 * len(times))]
    print(f"scrubbing: {rate:.0f} frames a second, 95 % within {most:.0f} ms; {told(page)}")
    page.keyboard.press("End")


def watch(url: str, run: MadeRun, playwright: Any) -> None:
    browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
    page = browser.new_page(viewport={"width": 1360, "height": 1000})
    page.on("pageerror", lambda error: print(f"error: {error}"))
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    page.goto(f"{url}/#run={run.run_id}")
    page.wait_for_selector(".layer")
    paint: float = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    print(f"first paint after {paint:.0f} ms")
    page.wait_for_timeout(2000)
    page.evaluate(WATCH)
    scrubbed(page)
    before = held(session)
    page.evaluate("longTasks.splice(0)")
    began = time.monotonic()
    for _ in range(AHEAD):
        run.epochs(1)
        page.wait_for_timeout(1000 * PAUSE)
    expect(page.locator("#at")).to_have_text(f"{run.epoch:,} / {run.epoch:,}", timeout=15_000)
    print(f"following {AHEAD} epochs for {time.monotonic() - began:.0f} s: {told(page)}")
    after = held(session)
    for name, first, last in zip(("heap, MB", "nodes", "listeners"), before, after, strict=True):
        print(f"{name}: {first:.0f} before, {last:.0f} after")
    scrubbed(page)
    browser.close()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = MadeRun(Path(folder) / "runs", "20260101-100000-long-0001", layers=500, total=10_000, every=60)
        run.epochs(BEHIND)
        command = [sys.executable, "-m", "esper_cli", "serve-metrics", "--port", "0"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "ESPER_HOME": f"{folder}/home"}
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            url = next(
                each[0] for line in server.stdout or () if (each := re.search(r"http://[\d.:]+", line))
            )
            with sync_playwright() as playwright:
                watch(url, run, playwright)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(20)
        run.close()


if __name__ == "__main__":
    main()
