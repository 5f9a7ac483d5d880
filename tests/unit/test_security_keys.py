"""Keys and their sources: who may read them, who makes them, and that nobody's are lost or shown."""

import base64
import json
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import keyring
import pytest
from keyring.backends import fail, null
from security_support import FolderBackend

from esper.errors import EsperError, SecurityError, StorageError, UnknownKey
from esper.security import (
    Envelope,
    EnvironmentKeys,
    FileKeys,
    Key,
    KeyRing,
    KeyringKeys,
    KeySource,
    StoredKeys,
)

FIRST, SECOND = Key(bytes(range(32))), Key(bytes(range(32, 64)))


def text_of(*keys: Key) -> str:
    return ",".join(base64.b64encode(key.secret).decode() for key in keys)


def shown_by(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(pickle.dumps(error))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys.json"


@pytest.fixture
def passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is the keyring of this process and of those that it starts."""
    monkeypatch.setenv("TEST_KEYRING", str(tmp_path))
    before = keyring.get_keyring()
    keyring.set_keyring(FolderBackend())
    yield tmp_path
    keyring.set_keyring(before)


@pytest.fixture(params=["file", "keyring"])
def kept(request: pytest.FixtureRequest, path: Path, passwords: Path) -> KeySource:
    """A source that Esper writes."""
    if request.param == "file":
        return FileKeys(str(path))
    return KeyringKeys("esper", str(path.with_name("lock")))


def test_a_key_is_known_by_an_id_that_comes_from_it() -> None:
    assert FIRST.id == Key(FIRST.secret).id != SECOND.id
    assert len(FIRST.id) == 16
    assert FIRST.secret != FIRST.derived("records") != FIRST.derived("data keys")
    with pytest.raises(SecurityError, match="32 bytes, not 31"):
        Key(bytes(31))


def test_a_ring_seals_with_its_first_key_and_reads_with_all() -> None:
    ring = KeyRing((FIRST,), "here").with_primary(SECOND)
    assert (ring.primary, ring.key(FIRST.id), ring.key(SECOND.id)) == (SECOND, FIRST, SECOND)
    assert ring.without(SECOND.id).primary == FIRST
    with pytest.raises(UnknownKey, match="no key 0000000000000000 in here"):
        ring.without("0" * 16)
    with pytest.raises(SecurityError, match="holds no key"):
        KeyRing((FIRST,), "here").without(FIRST.id)
    with pytest.raises(SecurityError, match="twice"):
        ring.with_primary(FIRST)


def test_the_first_call_makes_a_key_and_the_next_finds_it(kept: KeySource) -> None:
    with pytest.raises(SecurityError, match="there are no keys"):
        kept.load()
    made, first = kept.load_or_make()
    found, second = kept.load_or_make()
    assert (first, second) == (True, False)
    assert made == found == kept.load()
    assert made.primary.made is not None


def test_a_change_is_kept_and_one_that_fails_changes_nothing(kept: KeySource) -> None:
    before, _ = kept.load_or_make()
    changed = kept.change(lambda ring: ring.with_primary(FIRST))
    assert kept.load() == changed == before.with_primary(FIRST)
    with pytest.raises(UnknownKey):
        kept.change(lambda ring: ring.without("0" * 16))
    assert kept.load() == changed


def test_nothing_is_made_to_be_changed(kept: KeySource) -> None:
    with pytest.raises(SecurityError, match="there are no keys"):
        kept.change(lambda ring: ring.with_primary(FIRST))
    with pytest.raises(SecurityError, match="there are no keys"):
        kept.load()


def edited(path: Path, edit: Callable[[dict], object]) -> str:
    document = json.loads(path.read_text())
    edit(document)
    return json.dumps(document)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: "",
        lambda path: "{",
        lambda path: "[]",
        lambda path: "[" * 100_000,
        lambda path: path.read_text()[:-4],
        lambda path: edited(path, lambda it: it.pop("keys")),
        lambda path: edited(path, lambda it: it.update(keys=[1])),
        lambda path: edited(path, lambda it: it.update(keys=[])),
        lambda path: edited(path, lambda it: it["keys"].append(it["keys"][0])),
        lambda path: edited(path, lambda it: it["keys"][0].update(key="A" + it["keys"][0]["key"][1:])),
        lambda path: edited(path, lambda it: it["keys"][0].update(key="é" + it["keys"][0]["key"][1:])),
        lambda path: edited(path, lambda it: it["keys"][0].update(key=it["keys"][0]["key"][4:])),
        lambda path: edited(path, lambda it: it["keys"][0].update(id=SECOND.id)),
        lambda path: edited(path, lambda it: it["keys"][0].pop("id")),
        lambda path: edited(path, lambda it: it.update(version=2)),
        lambda path: path.read_text().replace("{", "\udcff", 1),
    ],
)
def test_damaged_keys_are_refused_never_written_over_and_never_shown(
    path: Path, damage: Callable[[Path], str]
) -> None:
    source = FileKeys(str(path))
    source.load_or_make()
    ring = source.change(lambda ring: ring.with_primary(Key(b"\xff" * 32)))
    path.write_bytes(damage(path).encode(errors="surrogateescape"))
    before = path.read_bytes()
    for attempt in (
        source.load,
        source.load_or_make,
        lambda: source.change(lambda ring: ring.with_primary(FIRST)),
    ):
        with pytest.raises(SecurityError, match=str(path)) as caught:
            attempt()
        assert caught.value.__context__ is None or caught.value.__suppress_context__
        for key in ring.keys:
            assert text_of(key)[8:32] not in shown_by(caught.value)
            assert repr(key.secret)[2:-1] not in shown_by(caught.value)
    assert path.read_bytes() == before


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o666, 0o777])
def test_a_file_that_others_can_use_is_refused(path: Path, mode: int) -> None:
    source = FileKeys(str(path))
    source.load_or_make()
    before = path.read_bytes()
    path.chmod(mode)
    for attempt in (
        source.load,
        source.load_or_make,
        lambda: source.change(lambda ring: ring.with_primary(FIRST)),
    ):
        with pytest.raises(SecurityError, match=f"mode 0{mode:o}.*chmod 600"):
            attempt()
    assert path.read_bytes() == before
    path.chmod(0o400)
    source.load()


def test_a_file_of_another_user_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FileKeys(str(path)).load_or_make()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(SecurityError, match="another user"):
        FileKeys(str(path)).load_or_make()


def test_a_folder_or_a_pipe_is_no_file_of_keys(path: Path) -> None:
    path.mkdir(parents=True)
    os.mkfifo(path.with_name("pipe"), 0o600)
    for other in (path, path.with_name("pipe")):
        with pytest.raises(SecurityError, match="no file of keys"):
            FileKeys(str(other)).load_or_make()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        FileKeys(str(tmp_path / "file" / "keys.json")).load_or_make()


def test_the_file_is_the_owners_alone_whatever_the_umask_and_what_a_kill_left(path: Path) -> None:
    path.parent.mkdir()
    left = path.with_name("keys.json.new")
    left.write_text("half of a fi")
    left.chmod(0o666)
    before = os.umask(0)
    try:
        FileKeys(str(path)).load_or_make()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not left.exists()


def test_the_file_is_on_the_disk_before_it_takes_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def fsync_seen(fd: int) -> None:
        done.append(f"fsync {Path(f'/proc/self/fd/{fd}').readlink().name}")
        fsync(fd)

    def replace_seen(self: Path, target: Path) -> Path:
        done.append(f"replace {target.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", fsync_seen)
    monkeypatch.setattr(Path, "replace", replace_seen)
    FileKeys(str(path)).load_or_make()
    assert done == ["fsync keys.json.new", "replace keys.json", "fsync home"]


def test_a_link_to_the_file_stays_a_link(path: Path, tmp_path: Path) -> None:
    FileKeys(str(path)).load_or_make()
    link = tmp_path / "link.json"
    link.symlink_to(path)
    ring = FileKeys(str(link)).change(lambda ring: ring.with_primary(FIRST))
    assert link.is_symlink()
    assert FileKeys(str(path)).load() == ring


TOGETHER = """
import sys, time
from pathlib import Path
from security_support import FolderBackend
import keyring
from esper.security import FileKeys, KeyringKeys, new_key
keyring.set_keyring(FolderBackend())
kind, folder = sys.argv[1], Path(sys.argv[2])
print("ready", flush=True)
sys.stdin.readline()
for turn in range(10):
    path = folder / f"{turn}.json"
    source = FileKeys(str(path)) if kind == "file" else KeyringKeys(f"{turn}", f"{path}.lock")
    ring, made = source.load_or_make()
    key = new_key()
    source.change(lambda ring: ring.with_primary(key))
    print(turn, ring.keys[-1].id, made, key.id)
"""


@pytest.mark.parametrize("kind", ["file", "keyring"])
def test_eight_processes_at_once_end_with_one_first_key_and_lose_none(
    tmp_path: Path, kind: str, passwords: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    command = [sys.executable, "-c", TOGETHER, kind, str(tmp_path)]
    running = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(8)
    ]
    for process in running:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    lines = [line.split() for process in running for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in running] == [0] * 8
    for turn in range(10):
        mine = [line[1:] for line in lines if line[0] == str(turn)]
        assert len(mine) == 8
        assert len({first for first, _, _ in mine}) == 1
        assert [made for _, made, _ in mine].count("True") == 1
        path = tmp_path / f"{turn}.json"
        source = FileKeys(str(path)) if kind == "file" else KeyringKeys(f"{turn}", f"{path}.lock")
        ids = {key.id for key in source.load().keys}
        assert ids == {mine[0][0], *(added for _, _, added in mine)}
        assert len(ids) == 9


def test_the_environment_gives_keys_the_first_of_which_seals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEYS", f" {text_of(FIRST)} , {text_of(SECOND)}\n")
    source = EnvironmentKeys("TEST_KEYS")
    ring, made = source.load_or_make()
    assert [key.secret for key in ring.keys] == [FIRST.secret, SECOND.secret]
    assert not made
    with pytest.raises(SecurityError, match="cannot change"):
        source.change(lambda ring: ring)


@pytest.mark.parametrize(
    "text",
    ["", " ", ",", "secretsecret", text_of(FIRST) + ",", text_of(FIRST)[:-4], text_of(FIRST) + "!", "é" * 44],
)
def test_a_variable_without_keys_is_refused_and_not_shown(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TEST_KEYS", text)
    with pytest.raises(SecurityError, match=r"TEST_KEYS.*openssl rand") as caught:
        EnvironmentKeys("TEST_KEYS").load_or_make()
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    if text.strip(" ,"):
        assert text[:12] not in shown_by(caught.value)


def test_a_keyring_that_keeps_nothing_is_refused(tmp_path: Path, passwords: Path) -> None:
    keyring.set_keyring(fail.Keyring())
    with pytest.raises(SecurityError, match=r"cannot be used.*security=file"):
        KeyringKeys("esper", str(tmp_path / "lock")).load_or_make()
    keyring.set_keyring(null.Keyring())
    with pytest.raises(SecurityError, match="did not keep"):
        KeyringKeys("esper", str(tmp_path / "lock")).load_or_make()


def test_without_the_package_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "keyring", None)
    with pytest.raises(SecurityError, match=r"pip install 'esper-morph\[keyring\]'"):
        KeyringKeys("esper", str(tmp_path / "lock")).load()


def test_keys_are_made_when_the_first_is_to_seal_and_whoever_made_them_is_told(path: Path) -> None:
    told: list[str] = []
    envelope = Envelope(StoredKeys(FileKeys(str(path)), told.append))
    assert not path.exists()
    sealed = envelope.seal(b"data", "name")
    assert told == [str(path)]
    other = Envelope(StoredKeys(FileKeys(str(path)), told.append))
    another = Envelope(StoredKeys(FileKeys(str(path)), told.append))
    assert other.open(sealed, "name") == b"data"
    envelope.check(b"record", another.authenticate(b"record"))
    assert told == [str(path)]


def test_to_open_makes_no_keys_where_they_are_lost(path: Path) -> None:
    sealed = Envelope(KeyRing((FIRST,), "here")).seal(b"data", "name")
    with pytest.raises(SecurityError, match="there are no keys"):
        Envelope(StoredKeys(FileKeys(str(path)))).open(sealed, "name")
    assert not path.exists()


def test_a_key_that_another_process_has_added_is_found(path: Path) -> None:
    mine = Envelope(StoredKeys(FileKeys(str(path))))
    first = mine.seal(b"data", "name")
    FileKeys(str(path)).change(lambda ring: ring.with_primary(SECOND))
    theirs = Envelope(StoredKeys(FileKeys(str(path))))
    assert mine.open(theirs.rewrap(first, "name"), "name") == b"data"
    with pytest.raises(UnknownKey, match=str(path)):
        mine.open(Envelope(KeyRing((FIRST,), "here")).seal(b"data", "name"), "name")


def test_who_goes_on_while_another_process_rotates_seals_with_the_newer_key(kept: KeySource) -> None:
    made: list[str] = []
    mine = StoredKeys(kept, made.append)
    first = mine.primary
    assert mine.primary == first
    kept.change(lambda ring: ring.with_primary(SECOND))
    assert mine.primary == SECOND
    assert mine.key(first.id) == first
    kept.change(lambda ring: ring.without(first.id))
    assert mine.primary == SECOND
    with pytest.raises(UnknownKey):
        mine.key(first.id)
    assert made == [kept.origin]


def test_where_keys_cannot_be_read_any_more_those_of_before_are_used_and_that_is_told(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = StoredKeys(FileKeys(str(path)))
    first = mine.primary
    text = path.read_text()
    for problem in (lambda: path.write_text("{}"), lambda: path.chmod(0o644), path.unlink):
        caplog.clear()
        problem()
        assert [mine.primary, mine.primary] == [first, first]
        assert caplog.text.count("the keys of before are used still") == 1
    path.write_text(text)
    path.chmod(0o600)
    FileKeys(str(path)).change(lambda ring: ring.with_primary(SECOND))
    assert mine.primary == SECOND


def test_no_key_is_shown_by_anything_that_holds_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEYS", text_of(FIRST))
    ring = KeyRing((FIRST, SECOND), "here")
    source = EnvironmentKeys("TEST_KEYS")
    stored = StoredKeys(source)
    envelope = Envelope(stored)
    envelope.seal(b"", "")
    shown = " ".join(map(repr, (FIRST, ring, source, stored, envelope, vars(envelope), vars(stored))))
    for attempt in (
        lambda: ring.key("none"),
        lambda: ring.with_primary(FIRST),
        lambda: Key(FIRST.secret[:31]),
    ):
        with pytest.raises(EsperError) as caught:
            attempt()
        shown += shown_by(caught.value)
    for key in ring.keys:
        for secret in (repr(key.secret)[2:-1], key.secret.hex(), text_of(key)[:40]):
            assert secret[:16] not in shown
