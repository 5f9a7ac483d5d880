"""The page in a real Chromium: what a run shows, live, beside another, by keyboard, on a phone; how fast."""

from __future__ import annotations

import itertools
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from page_support import DEEP, FAILED, GROWN, STOPPED, WINDOW, MakeRun, Open
from playwright.sync_api import Browser, BrowserContext, Page, Route, expect

from esper.nissa.journal import JOURNAL_NAME, Journal


def scrub(page: Page, epoch: int) -> None:
    page.locator("#scrub").fill(str(epoch - 1))
    expect(page.locator("#at")).to_have_text(re.compile(rf"^{epoch:,} /"))


def states(page: Page) -> dict[str, int]:
    found = page.locator(".census").first.locator("li").all_inner_texts()
    return {text.split(maxsplit=1)[1]: int(text.split()[0].replace(",", "")) for text in found}


def test_what_is_loaded_is_small(open_page: Open) -> None:
    page = open_page(f"#run={GROWN}")
    expect(page.locator(".layer").first).to_be_visible()
    sizes: list[int] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    session.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    page.reload()
    expect(page.locator(".layer").first).to_be_visible()
    expect(page.locator("#queue li").first).to_be_visible()
    assert 20_000 < sum(sizes) < 200_000


def test_a_run_that_was_trained_shows_what_it_did_and_why(open_page: Open, place: Path) -> None:
    (run,) = (place / "runs").glob("*-smoke-*")
    page = open_page(f"#run={run.name}")
    expect(page.locator("h1")).to_have_text("smoke")
    expect(page.locator(".status")).to_have_text("finished")
    expect(page.locator(".head-of")).to_contain_text("12 of 12 epochs")
    decision = page.locator(".decisions > li").first
    decision.get_by_role("button").click()
    for text in ("Evidence", "gradient share", "Alternatives", "expected", "realised", "held-out loss"):
        expect(decision.locator(".panel")).to_contain_text(text)
    expect(decision.locator(".panel dd code").first).to_contain_text("kernel_")
    expect(decision.locator(".panel")).to_contain_text("kept in trials")  # from the library's record
    expect(decision.locator(".steps li").first).to_contain_text("germinated")
    expect(page.locator("#library table").first).to_contain_text("hit rate")
    expect(page.locator("#library table").nth(1).locator("tbody tr").first).to_be_visible()
    expect(page.locator("#queue-sub")).to_contain_text("2 failed")
    expect(page.locator("#alert-list")).to_contain_text("Compilation failed: far_too_wide")


def test_the_network_is_drawn_as_it_was_at_the_epoch_that_is_looked_at(open_page: Open) -> None:
    page = open_page(f"#run={GROWN}")
    layer = page.locator("#layer-0-3")
    scrub(page, 1)
    assert states(page) == {"dormant": 36}
    small = layer.locator(".size").inner_text()
    width = layer.locator(".strip").bounding_box()
    scrub(page, 6)
    assert states(page) == {"dormant": 35, "training": 1}
    scrub(page, 60)
    assert states(page)["fossilized"] == 5
    assert layer.locator(".size").inner_text() != small
    grown = layer.locator(".strip").bounding_box()
    assert width is not None
    assert grown is not None
    assert grown["width"] > 1.3 * width["width"]
    scrub(page, 20)
    assert page.locator(".decisions > li.later").count() == 7
    expect(page.locator(".numbers .value").nth(2)).to_have_text("20")


def test_everything_can_be_done_without_a_mouse(open_page: Open) -> None:
    page = open_page(f"#run={GROWN}")
    expect(page.locator("#at")).to_have_text("60 / 60")
    press = page.keyboard.press
    press("[")
    expect(page.locator("#at")).to_have_text("55 / 60")
    press("p")
    press("Shift+ArrowLeft")
    press("ArrowRight")
    expect(page.locator("#at")).to_have_text("41 / 60")
    press("[")
    press("Enter")
    opened = page.locator(".decisions > li.now button.head")
    expect(opened).to_be_focused()
    expect(opened).to_have_attribute("aria-expanded", "true")
    expect(page.locator(".decisions > li.now .panel")).to_contain_text("16 → 32")
    press("Enter")
    expect(opened).to_have_attribute("aria-expanded", "false")
    press("Home")
    expect(page.locator("#at")).to_have_text("1 / 60")
    page.locator(".layers").focus()
    press("ArrowDown")
    press("ArrowDown")
    expect(page.locator("#layer-0-2")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".told")).to_contain_text("stage1.2")
    press("?")
    expect(page.locator("#keymap")).to_be_visible()
    press("Escape")
    expect(page.locator("#keymap")).to_be_hidden()
    page.locator("#scrub").focus()
    press("End")
    expect(page.locator("#follow")).to_have_attribute("aria-pressed", "true")
    reached = set()
    for _ in range(40):
        press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"run", "with", "log", "head", "scrub", "play", "follow", "layers", "theme"} <= reached
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid", (
        "where the keyboard is cannot be seen"
    )


def test_a_run_is_followed_while_it_goes_on(open_page: Open, make_run: MakeRun) -> None:
    page = open_page()
    latest = open_page("#run=latest")
    for each in (page, latest):
        expect(each.locator("#link")).to_have_text("up to date")  # from here on it is told of what comes
    run = make_run("20990101-100000-live-0009", layers=4, total=30, every=6)
    run.epochs(1)
    expect(page.locator("#at")).to_have_text("1 / 1")
    run.epochs(4)
    expect(page.locator("h1")).to_have_text("live")  # the newest, which nobody chose
    expect(latest.locator("h1")).to_have_text("live")
    expect(latest.locator(".label").first).to_have_text("stage1.0block")
    expect(page.locator(".status")).to_have_text("running")
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("#at")).to_have_text("5 / 5")
    page.locator("#loss .u-over").click()  # in the middle: the curves have grown with the run
    expect(page.locator("#at")).to_have_text("3 / 5")
    page.keyboard.press("End")
    expect(page.locator("#decisions .empty")).to_contain_text("No decision yet")
    run.epochs(3)
    expect(page.locator("#at")).to_have_text("8 / 8")
    expect(page.locator(".decisions > li")).to_have_count(1)
    assert states(page)["blending"] == 1
    page.keyboard.press("Home")  # who looks back is left there
    run.epochs(4)
    expect(page.locator("#at")).to_have_text("1 / 12")
    page.keyboard.press("End")
    run.rollback(10)
    run.epochs(1)
    expect(page.locator("#at")).to_have_text("11 / 11")
    expect(page.locator("#alert-list")).to_contain_text("Rolled back: non-finite loss")
    down = {"state": "down", "reason": "127.0.0.1:6379 does not answer", "behind": 900}
    run.journal.write("telemetry", sinks={"redis": down})
    expect(page.locator("#alert-list")).to_contain_text("Sink redis takes no messages")
    expect(page.locator("#alert-list code")).to_have_text("esper doctor nissa/sinks=redis")
    run.invent("gated_pair", failure="build: 9000 parameters are too many")
    run.epochs(19)
    run.finish()
    expect(page.locator(".status")).to_have_text("finished")
    expect(page.locator("#at")).to_have_text("30 / 30")
    expect(page.locator("#queue .compiled").first).to_contain_text("gated_pairfailed")


def test_a_run_that_began_before_anybody_listened_is_the_latest(
    open_page: Open, make_run: MakeRun, signed_in: BrowserContext
) -> None:
    def listen_later(events: Route) -> None:
        make_run("20990101-140000-between-0013", layers=2).epochs(1)
        events.continue_()

    signed_in.route("**/api/v1/events", listen_later, times=1)
    page = open_page("#run=latest")
    expect(page.locator("h1")).to_have_text("between")


def test_a_run_that_prepares_shows_what_waits_to_be_compiled(open_page: Open, place: Path) -> None:
    page = open_page()
    waits, folder = page.locator("#waits"), place / "runs" / "20990101-130000-soon-0012"
    expect(page.locator(".layer").first).to_be_visible()
    folder.mkdir()
    with Journal(folder / JOURNAL_NAME, fsync=False) as journal:
        journal.write("preparing", experiment="soon", task="digits", seed=0, total_epochs=9)
        since = (datetime.now(UTC) - timedelta(seconds=70)).isoformat()
        journal.write("compile_queue", waiting=12, compiling=2, workers=2, oldest=since)
        expect(page.locator("h1")).to_have_text("soon")
        expect(page.locator(".status")).to_have_text("preparing")
        expect(page.locator("#loss")).to_be_hidden()
        expect(waits).to_contain_text("12 wait2 being compiled2 workersthe oldest for 7")
        journal.write("compile_queue", waiting=1, compiling=0, workers=0, oldest=since)
        expect(waits).to_contain_text("1 waits0 being compiled0 workers")
        expect(page.locator("#alert-list")).to_contain_text("1 kernel to be compiled, and no worker")
        journal.write("compile_queue", waiting=0, compiling=0, workers=2, oldest=None)
        expect(waits).to_be_hidden()
        expect(page.locator("#alert-list")).not_to_contain_text("no worker")
    expect(page.locator(".status")).to_have_text("stopped")  # killed: no event


def test_who_comes_back_sees_what_was_missed(open_page: Open, make_run: MakeRun) -> None:
    run = make_run("20990101-120000-away-0011", layers=2, total=40)
    hide = "Object.defineProperty(document, 'hidden', { value: %s, configurable: true })"
    run.epochs(2)
    page = open_page(f"#run={run.run_id}", strict=False, offline=False)
    expect(page.locator("#link")).to_have_text("live")
    page.context.set_offline(True)  # the server is gone
    expect(page.locator("#link")).to_have_text("no answer")
    expect(page.locator("#at")).to_have_text("2 / 2")
    run.epochs(2)
    page.context.set_offline(False)
    expect(page.locator("#at")).to_have_text("4 / 4")
    expect(page.locator("#link")).to_have_text("live")
    page.evaluate(hide % "true")  # nobody looks
    asked: list[str] = []
    page.on("request", lambda each: asked.append(each.url))
    for _ in range(100):  # what was under way
        asked.clear()
        page.wait_for_timeout(1000)
        if not asked:
            break
    run.epochs(2)
    page.wait_for_timeout(1000)
    assert asked == []
    page.evaluate(hide % "false")
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    expect(page.locator("#at")).to_have_text("6 / 6")


def test_two_runs_stand_side_by_side_at_an_address_that_can_be_shared(open_page: Open) -> None:
    page = open_page(f"#run={GROWN}")
    page.locator("#with").select_option(STOPPED)
    expect(page.locator("h1")).to_have_text(["Agrown", "Bstopped"])
    assert page.url.endswith(f"#run={GROWN}&with={STOPPED}")
    again = open_page(urlsplit(page.url).fragment.join(("#", "")))
    expect(again.locator(".status")).to_have_text(["finished", "stopped"])
    expect(again.locator(".head-of.second")).to_contain_text(f"esper train --resume {STOPPED}")
    expect(again.locator(".network")).to_have_count(2)
    scrub(again, 50)
    expect(again.locator("#read-accuracy")).to_have_text(re.compile(r"epoch 50\b.*\|\s+\u2013$"))
    expect(again.locator(".head-of.second .value").nth(2)).to_have_text("40")
    again.locator("#with").select_option("")
    expect(again.locator(".network")).to_have_count(1)


def test_of_ten_thousand_epochs_and_five_hundred_layers_few_are_drawn_at_once(open_page: Open) -> None:
    """How many frames a second that makes is measured by tests/drills/page.py."""
    page = open_page(f"#run={DEEP}")
    expect(page.locator("#at")).to_have_text("10,000 / 10,000")
    assert page.locator(".layer").count() < 30
    assert page.locator(".decisions > li").count() <= 60
    page.locator(".layers").evaluate("node => node.scrollTo(0, 34 * 400)")
    expect(page.locator("#layer-0-402")).to_be_visible()
    assert page.locator(".layer").count() < 30


def test_what_a_run_is_called_stays_text_and_a_loss_that_is_no_number_is_shown(
    open_page: Open, make_run: MakeRun
) -> None:
    markup = "<img src=/x onerror=document.title='taken'>"
    run = make_run("20990101-110000-odd-0010", layers=1, total=9, name=markup)
    page = open_page(f"#run={run.run_id}")
    expect(page.locator("h1")).to_have_text(markup)
    expect(page.locator("#transport")).to_be_hidden()  # no epoch yet
    expect(page.locator(".numbers .value").first).to_have_text("\u2013")
    run.epochs(2)
    nan = {"loss": "NaN", "held_out_loss": "NaN", "accuracy": 0.1}
    run.journal.write("epoch", packet={"epoch": 2, "layer_metrics": {}, **nan})
    expect(page.locator("#at")).to_have_text("3 / 3")
    expect(page.locator(".numbers .value").first).to_have_text("NaN")
    run.fail(markup)
    expect(page.locator("#alert-list")).to_contain_text(markup)
    assert page.locator("img").count() == 0
    assert page.title() == f"{markup} · Esper"


def test_it_reads_well_on_a_phone_and_for_who_cannot_see_it(open_page: Open) -> None:
    page = open_page(f"#run={GROWN}&with={FAILED}")
    page.set_viewport_size({"width": 360, "height": 740})
    page.reload()
    expect(page.locator(".network")).to_have_count(2)
    expect(page.locator(".head-of.second")).to_contain_text("the loss is not finite after 3 rollbacks")
    page.locator(".decisions > li").nth(2).get_by_role("button").click()
    scrub(page, 30)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for at, scheme in itertools.product((360, 1360), ("light", "dark")):
        page.set_viewport_size({"width": at, "height": 900})
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, options={"resultTypes": ["violations"]})
        assert found.violations_count == 0, found.generate_report()


def test_the_colours_are_the_readers_choice(open_page: Open) -> None:
    page = open_page(f"#run={GROWN}", color_scheme="dark")
    background = "getComputedStyle(document.documentElement).backgroundColor"
    dark = page.evaluate(background)
    page.locator("#theme").click()
    expect(page.locator("#theme")).to_have_text("Light")
    light = page.evaluate(background)
    assert light != dark
    page.reload()
    assert page.evaluate(background) == light


def test_where_there_is_no_run_the_next_step_is_told_and_the_first_one_appears(
    open_page: Open, make_run: MakeRun
) -> None:
    page = open_page()
    nothing = {"total": 0, "runs": [], "next": None}
    page.route("**/api/v1/runs?*", lambda route: route.fulfill(json=nothing))
    page.reload()
    expect(page.locator("#notice h1")).to_have_text("No run yet")
    expect(page.locator("#notice code")).to_have_text("esper train +experiment=smoke")
    expect(page.locator("#content")).to_be_hidden()
    with page.expect_request("**/api/v1/runs?*"):  # it is told of the run, but the list has none yet
        make_run("20990101-140000-first-0013", layers=1, total=9)
    page.unroute_all()
    expect(page.locator("h1")).to_have_text("first")
    expect(page.locator("#notice")).to_be_hidden()


def test_whose_role_is_too_low_is_told_which_it_takes(open_page: Open) -> None:
    page = open_page(f"#run={GROWN}", strict=False)
    expect(page.locator(".layer").first).to_be_visible()
    said = {"status": 403, "title": "Forbidden", "detail": "this asks for the role viewer; guest has none"}
    page.route("**/api/v1/**", lambda route: route.fulfill(status=403, json=said))
    page.reload()
    expect(page.locator("#notice h1")).to_have_text("Not allowed")
    expect(page.locator("#notice")).to_contain_text("Ask for the role viewer")
    expect(page.locator("#notice")).to_contain_text("guest has none")
    expect(page.locator("#content")).to_be_hidden()


def test_who_is_not_signed_in_is_told_so_at_once_and_later(browser: Browser, url: str, token: str) -> None:
    context = browser.new_context(**WINDOW)
    page = context.new_page()
    assert page.goto(url).status == 401  # type: ignore[union-attr]
    expect(page.locator("h1")).to_have_text("Not signed in")
    expect(page.locator("body")).to_contain_text("esper token issue")
    page.goto("about:blank")  # a link on another site's page
    page.set_content(f'<a href="{url}/?token={token}#run={GROWN}&with={STOPPED}">the runs</a>')
    page.get_by_role("link").click()
    expect(page.locator("h1")).to_have_text("Sign in as reader?")
    assert token not in page.url
    assert [each["name"] for each in context.cookies()] == ["__Host-esper_link"]
    assert Axe().run(page, options={"resultTypes": ["violations"]}).violations_count == 0
    page.keyboard.press("Enter")
    expect(page.locator("h1")).to_have_text(["Agrown", "Bstopped"])
    assert [each["name"] for each in context.cookies()] == ["__Host-esper_token"]
    context.clear_cookies()
    expect(page.locator("#notice h1")).to_have_text("Not signed in")
    expect(page.locator("#content")).to_be_hidden()
    context.close()
