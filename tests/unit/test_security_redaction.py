"""Secrets and places are taken out of texts, logs and events, and other text stays as it is."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esper.errors import ConfigError
from esper.security import privacy
from esper.security.logs import TextFormatter
from esper.security.privacy import kept, leaving, without_places
from esper.security.redaction import MASK, Redactor, holds_secret, redacted, secrets_of_environment
from esper_cli.config_secrets import refuse_in_overrides

SECRET = "hunter2-Zq9!x"
JWT = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl"
PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA\n-----END PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"redis://:{SECRET}@cache:6379/0", f"redis://{MASK}@cache:6379/0"),
        ("postgresql://esper:pa:ss@w@db/kernels", f"postgresql://{MASK}@db/kernels"),
        (f"a token {JWT} was refused", f"a token {MASK} was refused"),
        (f"key:\n{PEM}\nend", f"key:\n{MASK}\nend"),
        (f"Authorization: Bearer {SECRET}", f"Authorization: Bearer {MASK}"),
        (f"password={SECRET} user=x", f"password={MASK} user=x"),
        (f"{{'api_key': '{SECRET}', 'n': 1}}", f"{{'api_key': '{MASK}', 'n': 1}}"),
        (f"password: {SECRET}\nname: x", f"password: {MASK}\nname: x"),
        (f"https://h/p?token={SECRET}&page=2", f"https://h/p?token={MASK}&page=2"),
    ],
)
def test_a_secret_is_known_by_its_shape(text: str, left: str) -> None:
    assert Redactor()(text) == left


@pytest.mark.parametrize(
    "text",
    [
        "tokens:64:64 and features:16:16",
        "http://127.0.0.1:9464/health",
        "check the password: in the URL, PGPASSWORD or a passfile",
        "epoch 3 of 12, loss 0.412, 3 tokens",
        "see docs/security.md, and mail a@b.example",
    ],
)
def test_other_text_stays(text: str) -> None:
    assert Redactor()(text) == text
    assert not holds_secret(text)


@pytest.mark.parametrize(
    "text",
    ["://a:", "eyJ-", "\n", "a.b+", "a@", "token token\n", "@eyJaaaaaa.", "://@:", "-----BEGIN PRIVATE KEY"],
)
def test_no_text_takes_the_square_of_its_length(text: str) -> None:
    """It would take minutes of a server's time; it takes less than one where all else is slow as well."""
    long = "token: " + text * (2**18 // len(text))
    began = time.process_time()
    Redactor()(long)
    without_places(long)
    assert time.process_time() - began < 60


@pytest.mark.parametrize("form", [SECRET, json.dumps(SECRET), "hunter2-Zq9%21x", repr(SECRET)])
def test_a_registered_secret_is_found_in_every_form(form: str) -> None:
    redact = Redactor()
    redact.register(SECRET, "abc")
    assert "Zq9" not in redact(f"before {form} after")
    assert redact("abc") == "abc"  # so short a text stands everywhere


def test_secrets_of_the_environment_are_known_by_names_and_shapes() -> None:
    environment = {
        "PGPASSWORD": "one-secret",
        "MY_API_KEY": "two-secret",
        "ESPER_REDIS_URL": "redis://:three%2Fsecret@h/0",
        "ESPER_KEYS": "four-secret,five-secret",
        "HOME": "/home/x",
        "TOKENIZERS_PARALLELISM": "false",
        "XAUTHORITY": "/x",
    }
    found = set(secrets_of_environment(environment))
    assert {
        "one-secret",
        "two-secret",
        "three%2Fsecret",
        "three/secret",
        "four-secret",
        "five-secret",
    } <= found
    assert not {"/home/x", "false", "/x"} & found


def test_the_folder_that_a_shell_is_in_is_no_secret() -> None:
    environment = {"PWD": "/home/anna/nets", "DB_PWD": "in-the-dark"}
    assert set(secrets_of_environment(environment)) == {"in-the-dark"}


def test_below_a_name_of_a_secret_nothing_stands() -> None:
    data = {"password": SECRET, "nested": [{"token": SECRET, "tokens": 4}], "ok": True, "secret": None}
    assert redacted(data) == {
        "password": MASK,
        "nested": [{"token": MASK, "tokens": 4}],
        "ok": True,
        "secret": None,
    }


@pytest.mark.parametrize(
    "override",
    [
        f"urza.redis=redis://:{SECRET}@h/0",
        f"+tolaria.password={SECRET}",
        f"nissa.sinks.x.token='{SECRET}'",
        f"experiment={JWT}",
    ],
)
def test_a_secret_in_an_override_is_refused_and_not_shown(override: str) -> None:
    with pytest.raises(ConfigError, match="no configuration may") as refused:
        refuse_in_overrides([override])
    assert SECRET not in str(refused.value)
    assert JWT not in str(refused.value)


def test_a_place_of_a_secret_is_no_secret() -> None:
    refuse_in_overrides(["urza.redis=env:URL", "nissa.x.token=file:/run/token", "urza.url=sqlite:///a/b.db"])


LOGGING = f"""
import logging, os, sys, threading, warnings
from esper.security.logs import choose, install
from esper.security.redaction import redact

own = logging.getLogger("own.handler")
own.propagate = False
own.addHandler(logging.StreamHandler())
redact.register("{SECRET}")
install()
choose(sys.argv[1], "info")
for log in (logging.getLogger("third.party"), own):
    log.info("message with %s", "{SECRET}")
    log.warning("token={JWT}", extra={{"request": {{"password": "plain-{SECRET}"}}, "size": 3}})
    log.error("wrong %d", "{SECRET}")
    try:
        raise ValueError("{SECRET}")
    except ValueError:
        log.exception("failed")
# As a library does that makes records itself, or puts its own factory in the place of ours.
logging.root.handle(logging.makeLogRecord({{"msg": "made {SECRET}", "levelno": 40, "levelname": "ERROR"}}))
warnings.warn("{SECRET}")
thread = threading.Thread(target=lambda: 1 / 0 if not "{SECRET}" else int("{SECRET}"))
thread.start()
thread.join()
raise RuntimeError("{SECRET}")
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_no_secret_is_logged_by_anybody_in_any_way(form: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOGGING, form], capture_output=True, text=True)
    assert done.returncode == 1
    assert SECRET not in done.stdout + done.stderr
    assert JWT not in done.stderr
    assert "made [redacted]" in done.stderr
    assert "RuntimeError: [redacted]" in done.stderr
    assert done.stderr.count("ValueError: [redacted]") == 2
    if form == "json":
        lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith('{"at"')]
        first, second, third, fourth, *_ = lines
        assert (first["level"], first["logger"]) == ("info", "third.party")
        assert first["message"] == f"message with {MASK}"
        assert (second["request"], second["size"]) == ({"password": MASK}, 3)
        assert "wrong %d" in third["message"]
        assert "ValueError" in fourth["exception"]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("cannot write /data/secret-project/runs: No space left", "cannot write [path]: No space left"),
        ("no checkpoint in ~/runs/x", "no checkpoint in [path]"),
        ("../up/file and a/b/c and models/net.py", "[path] and [path] and [path]"),
        ("redis://cache.internal:6379/0 is gone", "[url] is gone"),
        ("digits/1197, gain 0.03/0.01 in stage1.0.conv1", "digits/1197, gain 0.03/0.01 in stage1.0.conv1"),
    ],
)
def test_places_do_not_leave(text: str, left: str) -> None:
    assert without_places(text) == left


def test_a_registered_place_goes_whatever_characters_it_has(tmp_path: Path) -> None:
    place = tmp_path / "a name, with (all) sorts"
    privacy.register_place(place)
    assert without_places(f"no {place}/run-1 here") == "no [path] here"
    assert privacy.hidden(json.dumps({"x": f"{place}"})) == '{"x": "[path]"}'


def test_only_what_is_listed_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "_own_names", privacy._own_names.__wrapped__)
    monkeypatch.setattr("socket.gethostname", lambda: "nodeseven")
    monkeypatch.setattr("getpass.getuser", lambda: "alicewho")
    fields: dict[str, Any] = {"error": "alicewho on nodeseven: /x/y", "user": "alicewho", "path": Path("/x")}
    assert leaving("run_failed", fields) == {"error": "[name] on [name]: [path]"}
    assert leaving("something_new", fields) is None


_SAID = st.lists(st.sampled_from(["a", "/x/y", "\\", '"', "é", "NaN", ":", ",", "token=hunter22"])).map(
    "".join
)
_VALUES = st.recursive(
    st.one_of(_SAID, st.floats(allow_nan=False), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(_SAID, inner, max_size=3)),
    max_leaves=5,
)


@given(_VALUES, st.sampled_from(["report", "other"]))
@example(['a"/x/y'], "report")
@example([{"\\": "/x/y"}], "report")
def test_the_same_leaves_when_json_is_at_hand(value: Any, name: str) -> None:
    fields = {name: value}
    told = leaving("trial", fields, json.dumps(fields, separators=(",", ":")))
    assert told == leaving("trial", fields)
    assert told is not fields or told == {"report": value}


def test_what_may_leave_as_it_is_is_not_made_anew() -> None:
    fields: dict[str, Any] = {"packet": {"loss": 0.5, "layers": ["stage1.conv2"]}, "seconds": 1.0}
    assert leaving("epoch", fields, json.dumps(fields)) is fields
    fields = {"seconds": "NaN"}  # as a line that is not strict is read
    assert leaving("epoch", fields, '{"seconds":NaN}') is not fields


def test_a_journal_keeps_all_but_places_in_what_was_said() -> None:
    fields = {"error": "no /x/y", "epoch": 3, "outcome": {"status": "refused", "reason": "no /x/y"}}
    outcome = {"status": "refused", "reason": "no [path]"}
    assert kept(fields) == {"error": "no [path]", "epoch": 3, "outcome": outcome}
    sinks = {"redis": {"written": 3, "reason": "no redis://:secret@cache.internal:6379"}}
    assert kept({"sinks": sinks}) == {"sinks": {"redis": {"written": 3, "reason": "no [url]"}}}


def test_what_is_logged_begins_no_line_of_its_own_and_moves_no_terminal() -> None:
    said = "GET /\x1b[2J\r\nesper: ERROR: esper.audit: all is well\x9b\x7f"
    record = logging.makeLogRecord({"name": "a", "levelname": "INFO", "msg": "%s", "args": (said,)})
    lines = TextFormatter().format(record).split("\n")
    assert lines[0] == "esper: INFO: a: GET /\\x1b[2J\\x0d"
    assert lines[1] == "    esper: ERROR: esper.audit: all is well\\x9b\\x7f"


def test_logs_of_a_program_that_imports_esper_are_its_own() -> None:
    from esper.security.logs import choose

    before = logging.root.handlers[:]
    choose("json", "debug")
    assert logging.root.handlers == before
    with pytest.raises(ConfigError, match="text, json"):
        choose("xml", "info")


def test_a_secret_that_becomes_known_later_goes_from_texts_that_were_seen_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(privacy, "redact", Redactor())
    told = {"text": "harmless so far"}
    assert leaving("message", told) == told
    privacy.redact.register(told["text"])
    assert leaving("message", told) == {"text": MASK}
