"""The files of the page: how they are sent, and that they are all there and none from elsewhere."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import itertools
import math
import re

import httpx
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

from esper.messages import SeedState
from esper.nissa.page import CONTENT_SECURITY_POLICY, index, page_file, page_files, refused
from esper_cli.app import run

UPLOT_1_6_32 = {
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE.txt": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


APP = Starlette(routes=[Route("/", index), Route("/page/{file}", page_file)])


def get(path: str, **headers: str) -> httpx.Response:
    """One GET; ``accept_encoding="gzip"`` stands for the header of that name."""

    fields = {name.replace("_", "-"): text for name, text in headers.items()}

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app=APP)
        async with httpx.AsyncClient(transport=transport, base_url="http://page") as client:
            return await client.get(path, headers=fields)

    return asyncio.run(ask())


def test_a_file_is_sent_compressed_to_who_takes_it_and_not_again_to_who_has_it() -> None:
    plain = get("/page/main.js", accept_encoding="identity")
    assert plain.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "content-encoding" not in plain.headers
    packed = get("/page/main.js", accept_encoding="br;q=1, gzip;q=0.5")
    assert packed.headers["content-encoding"] == "gzip"
    assert int(packed.headers["content-length"]) < len(plain.content) / 2
    assert packed.content == plain.content
    assert packed.headers["etag"] != plain.headers["etag"]
    for answer, accepted in ((plain, "gzip;q=0"), (packed, "gzip")):
        known = f'"other", W/{answer.headers["etag"]}'
        again = get("/page/main.js", accept_encoding=accepted, if_none_match=known)
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == answer.headers["etag"]


def test_what_is_no_file_of_the_page_is_not_found() -> None:
    for name in ("nothing.js", "..%2Fpage.py", "%2e%2e", "uPlot.iife.min.js.map"):
        assert get(f"/page/{name}").status_code == 404


def test_every_answer_carries_the_policy() -> None:
    for path in ("/", "/page/main.js", "/page/page.css"):
        headers = get(path).headers
        assert headers["content-security-policy"] == CONTENT_SECURITY_POLICY
        assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in CONTENT_SECURITY_POLICY
    assert "unsafe" not in CONTENT_SECURITY_POLICY
    assert "http" not in CONTENT_SECURITY_POLICY


def test_the_page_names_files_that_are_there_and_nothing_elsewhere() -> None:
    texts = {name: file.body.decode() for name, file in page_files().items() if not name.startswith("uPlot")}
    assert len(texts) > 10
    asked = re.findall(r'(?:src|href)="/page/([^"]+)"', texts["index.html"])
    for name, text in texts.items():
        assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text) == [], name
        asked += re.findall(r'from "\./([^"]+)"', text)
    assert set(asked) <= set(page_files())
    assert set(page_files()) - set(asked) == {"index.html", "uPlot.LICENSE.txt"}
    # A policy without 'unsafe-inline' means: no style or handler in the markup, and no text becomes markup.
    assert not re.search(r"<[^>]+\s(?:style|on\w+)=", texts["index.html"])
    assert not re.search(r"<script>|<style", texts["index.html"])
    for name, text in texts.items():
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), name


def test_uplot_is_as_its_authors_ship_it() -> None:
    for name, digest in UPLOT_1_6_32.items():
        assert hashlib.sha256(page_files()[name].body).hexdigest() == digest


def test_all_of_it_is_light() -> None:
    assert sum(len(file.compressed) for file in page_files().values()) < 100_000
    assert all(gzip.decompress(file.compressed) == file.body for file in page_files().values())


# Colours


def _tokens(css: str, selector: str) -> dict[str, str]:
    block = css[css.index(selector) :]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block[: block.index("}")]))


Triple = tuple[float, float, float]

SEEN_BY: dict[str, tuple[Triple, Triple, Triple]] = {  # Machado, Oliveira and Fernandes 2009, severity 1
    "most": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protanopes": ((0.1523, 1.0526, -0.2049), (0.1145, 0.7863, 0.0992), (-0.0039, -0.0481, 1.0520)),
    "deuteranopes": ((0.3673, 0.8606, -0.2280), (0.2801, 0.6725, 0.0474), (-0.0118, 0.0429, 0.9689)),
    "tritanopes": ((1.2555, -0.0767, -0.1788), (-0.0784, 0.9308, 0.1476), (0.0047, 0.6914, 0.3039)),
}


def _linear(colour: str) -> list[float]:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]


def _luminance(colour: str) -> float:
    r, g, b = _linear(colour)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def _lab(colour: str, seen_by: tuple[Triple, Triple, Triple]) -> Triple:
    """CIE L*a*b* of a colour as somebody sees it."""
    whole = _linear(colour)
    r, g, b = (min(1, max(0, sum(map(float.__mul__, map(float, row), whole)))) for row in seen_by)
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    fx, fy, fz = (each ** (1 / 3) if each > 0.008856 else 7.787 * each + 16 / 116 for each in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def contrast(a: str, b: str) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize(
    "selector", [":root {", ':root:not([data-theme="light"]) {\n', ':root[data-theme="dark"] {\n']
)
def test_words_lines_and_marks_stand_out_from_what_is_behind_them(selector: str) -> None:
    css = page_files()["page.css"].body.decode()
    colours = _tokens(css, selector)
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for ground in ("page", "surface", "sunk"):
        for text in ("ink", "muted", "first", "second", "good", "bad", "wait"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    states = [name.removeprefix("seed-") for name in colours if name.startswith("seed-")]
    assert len(states) == 9
    for state in states:
        assert contrast(colours[f"on-{state}"], colours[f"seed-{state}"]) >= 4.5, state


@pytest.mark.parametrize("eyes", SEEN_BY)
@pytest.mark.parametrize("selector", [":root {", ':root[data-theme="dark"] {\n'])
def test_states_are_told_apart_by_whoever_looks(selector: str, eyes: str) -> None:
    colours = _tokens(page_files()["page.css"].body.decode(), selector)
    seen = {name: _lab(colours[name], SEEN_BY[eyes]) for name in colours if name.startswith("seed-")}
    assert len(seen) == 9
    for (a, one), (b, other) in itertools.combinations(seen.items(), 2):
        assert math.dist(one, other) > 9, (a, b)  # 2.3 is just noticed


def test_the_dark_colours_are_the_same_however_they_are_asked_for() -> None:
    css = page_files()["page.css"].body.decode()
    assert _tokens(css, ':root:not([data-theme="light"]) {\n') == _tokens(css, ':root[data-theme="dark"] {\n')


def test_each_state_of_a_seed_has_a_shape_as_well_as_a_colour() -> None:
    shapes = re.findall(
        r'<symbol id="seed-(\w+)"[^>]*>(.*?)</symbol>', page_files()["index.html"].body.decode()
    )
    assert {name for name, _ in shapes} == {state.value for state in SeedState}
    assert len({drawing for _, drawing in shapes}) == len(shapes)


# Who is not let in


def test_who_is_not_let_in_is_told_so_in_words_and_how_to_sign_in() -> None:
    answer = refused(401, "the token <b>has expired</b>", {"WWW-Authenticate": "Bearer"})
    text = bytes(answer.body).decode()
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert "The token &lt;b&gt;has expired&lt;/b&gt;." in text
    assert "esper token issue --person --role viewer" in text
    assert "esper token issue" not in bytes(refused(403, "no", {}).body).decode()
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert "sign_in.html" not in page_files()


def test_the_commands_that_the_page_tells_of_are_there(capsys: pytest.CaptureFixture[str]) -> None:
    texts = "".join(file.body.decode() for name, file in page_files().items() if name.endswith(".js"))
    commands = set(re.findall(r"esper ([a-z][a-z -]*[a-z])(?= \$| NAME|[^a-z -])", texts))
    assert {"train --resume", "runs resume", "compile --for smoke"} <= commands
    for command in commands:
        words = [word for word in command.split() if not word.startswith("--") and word != "smoke"]
        assert run([*words, "--help"]) == 0, command
        told = capsys.readouterr().out
        for option in re.findall(r"--[a-z]+", command):
            assert option in told, command
