"""What a server holds out against, with and without TLS, and who comes in by a certificate."""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from servers.api import running
from servers.tls import Certificates, make_certificates, revocations, serial_of
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from waiting import LONG, until

from esper.errors import ConfigError, ServerError
from esper.nissa.http import bodies
from esper.nissa.http import server as http_server
from esper.nissa.http.bodies import MOST_BODY_BYTES
from esper.nissa.http.limits import ConnectionLimit, RateLimit
from esper.nissa.http.revocation import Revoked
from esper.nissa.http.server import MetricsServer
from esper.nissa.http.tls import CERTIFICATE, HOLDS, self_signed_tls, server_tls

HALF_OPEN = 300
MIB = 2**20


async def health(request: Request) -> Response:
    body = await request.body()
    names, holds = request.scope.get(CERTIFICATE), request.scope.get(HOLDS, lambda: None)
    return JSONResponse({"size": len(body), "names": names, "holds": holds()})


APP = Starlette(routes=[Route("/health", health, methods=["GET", "POST"])])


def serving(
    tls: ssl.SSLContext | None = None, connections: ConnectionLimit | None = None, host: str = "127.0.0.1"
) -> AbstractContextManager[MetricsServer]:
    return running(MetricsServer(APP, host=host, port=0, tls=tls, connections=connections))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def address(server: MetricsServer) -> tuple[str, int]:
    url = httpx.URL(server.url)
    return url.host, url.port or 0


def trusting(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates.authority)


# Half-open connections


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("head_seconds", [1, 10 * LONG])
def test_half_open_connections_hold_nobody_up_and_are_closed(
    certificates: Certificates, secure: bool, head_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of them say nothing, the others half of a request or of a handshake.

    How long others wait is measured by tests/drills/api_load.py.
    """
    monkeypatch.setattr(http_server, "HEAD_SECONDS", head_seconds)
    tls = server_tls(certificates.certificate, certificates.key) if secure else None
    with serving(tls) as server, contextlib.ExitStack() as opened:
        beginning = b"\x16\x03\x01\x02\x00\x01\x00" if secure else b"GET /health HTTP/1.1\r\nHost: a\r\nX: "
        half = [opened.enter_context(socket.create_connection(address(server))) for _ in range(HALF_OPEN)]
        for connection in half[::2]:
            connection.sendall(beginning)
        if head_seconds > LONG:
            assert httpx.get(f"{server.url}/health", verify=trusting(certificates)).status_code == 200
            return
        for connection in half:
            connection.settimeout(LONG)
            with contextlib.suppress(ConnectionError):
                while connection.recv(65536):
                    pass


def test_there_are_so_many_connections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "HEAD_SECONDS", LONG)  # those that are held are silent
    with serving(connections=ConnectionLimit(most=5)) as server, contextlib.ExitStack() as opened:
        held = [opened.enter_context(socket.create_connection(address(server))) for _ in range(5)]

        def answers() -> bool:
            try:
                return httpx.get(f"{server.url}/health").status_code == 200
            except httpx.TransportError:
                return False

        assert not answers()
        held[0].close()
        until(answers)  # once the server has heard of it


def test_connections_of_an_address_are_counted_and_those_of_loopback_are_not() -> None:
    limit = ConnectionLimit(most=6, most_per_address=2)
    keys = [limit.admit(address) for address in ("192.0.2.1", "192.0.2.1", "192.0.2.1", "2001:db8::1")]
    assert [key is not None for key in keys] == [True, True, False, True]
    assert [limit.admit(a) is not None for a in ("2001:db8::2", "2001:db8::3")] == [True, False]
    limit.release(str(keys[0]))
    assert limit.admit("::ffff:192.0.2.1") is not None
    assert [limit.admit("127.0.0.1") is not None for _ in range(3)] == [True, True, False]


def test_a_rate_is_a_burst_and_then_so_many_a_second() -> None:
    now = 0.0
    limit = RateLimit(2, 3, clock=lambda: now)
    assert [limit.wait("a") for _ in range(4)] == [0, 0, 0, 0.5]
    assert limit.wait("b") == 0
    now = 0.5
    assert [limit.wait("a"), limit.wait("a")] == [0, 0.5]
    for number in range(20_000):
        limit.wait(str(number))
    assert len(limit._buckets) <= 10_000


# Bodies


SERVER = """
import sys
sys.path.insert(0, sys.argv[1])
from integration.test_nissa_limits import APP
from esper.nissa.http.server import MetricsServer
MetricsServer(APP, port=0).run(lambda url: print(url, flush=True))
"""


@pytest.mark.parametrize("length", [b"Content-Length: %d" % (400 * MIB), b"Transfer-Encoding: chunked"])
def test_400_mib_are_refused_and_cost_no_memory(length: bytes) -> None:
    folder = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", SERVER, folder]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = httpx.URL(process.stdout.readline().strip())
            httpx.post(url.join("/health"), content=b"x" * MOST_BODY_BYTES)
            before = memory(process.pid)
            answer, sent = upload((url.host, url.port or 0), length)
            assert b" 413 " in answer.split(b"\r\n")[0]
            assert sent < 400 * MIB
            assert memory(process.pid) - before < 20 * MIB
        finally:
            process.terminate()


def memory(pid: int) -> int:
    """The most bytes that a process has held."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def upload(to: tuple[str, int], length: bytes) -> tuple[bytes, int]:
    """Send 400 MiB as fast as may be; what was answered, and how much was sent before the end."""
    piece = b"x" * 65536 if b"Length" in length else b"10000\r\n" + b"x" * 65536 + b"\r\n"
    with socket.create_connection(to, timeout=LONG) as connection:
        connection.sendall(b"POST /health HTTP/1.1\r\nHost: a\r\n" + length + b"\r\n\r\n")
        sent = 0
        with contextlib.suppress(ConnectionError):
            while sent < 400 * MIB:
                connection.sendall(piece)
                sent += 65536
        return connection.recv(65536), sent


def test_a_body_comes_whole_and_small_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", LONG)
    with serving() as server, httpx.Client(base_url=server.url) as client:
        for size in (0, 1, MOST_BODY_BYTES):
            assert client.post("/health", content=b"x" * size).json()["size"] == size
        chunks = (b"x" * 1000 for _ in range(60))
        assert client.post("/health", content=chunks).json()["size"] == 60_000
        assert client.post("/health", content=b"x" * (MOST_BODY_BYTES + 1)).status_code == 413
        # Nothing is sent of them, and of the first nothing has to be.
        for length, seconds, status in ((MOST_BODY_BYTES + 1, LONG, b" 413 "), (10, 0.5, b" 408 ")):
            monkeypatch.setattr(bodies, "BODY_SECONDS", seconds)
            with socket.create_connection(address(server), timeout=LONG) as connection:
                connection.sendall(b"POST /health HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % length)
                assert status in connection.recv(1000).split(b"\r\n")[0]


def test_an_answer_has_to_begin_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("esper.nissa.http.bodies.ANSWER_SECONDS", 0.3)
    release = threading.Event()

    def hang(request: Request) -> Response:
        release.wait()
        return Response("late")

    server = MetricsServer(Starlette(routes=[Route("/", hang)]), port=0)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        response = httpx.get(server.url)
        assert (response.status_code, response.json()["detail"]) == (503, "this took too long")
    finally:
        release.set()
        server.stop()
        thread.join(LONG)


# TLS


def test_tls_is_1_3_and_1_2_where_that_is_asked_for(certificates: Certificates) -> None:
    older = trusting(certificates)
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    for minimum, accepted in (("1.3", False), ("1.2", True)):
        tls = server_tls(certificates.certificate, certificates.key, minimum=minimum)
        with serving(tls) as server:
            assert server.url.startswith("https://")
            assert httpx.get(f"{server.url}/health", verify=trusting(certificates)).status_code == 200
            if accepted:
                assert httpx.get(f"{server.url}/health", verify=older).status_code == 200
            else:
                with pytest.raises(httpx.TransportError):
                    httpx.get(f"{server.url}/health", verify=older)
            with pytest.raises(httpx.TransportError):
                httpx.get(f"{server.url}/health")  # nobody it trusts has signed that certificate
            with pytest.raises(httpx.TransportError):
                httpx.get(server.url.replace("https", "http"))


def test_a_certificate_that_is_made_now_is_the_one_of_its_fingerprint() -> None:
    tls, fingerprint = self_signed_tls("127.0.0.1", ["esper.internal"])
    with serving(tls) as server:
        shown = ssl.get_server_certificate(address(server))
    from cryptography.hazmat.primitives.hashes import SHA256

    certificate = x509.load_pem_x509_certificate(shown.encode())
    assert certificate.fingerprint(SHA256()).hex(":").upper() == fingerprint
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["esper.internal"]
    lasts = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert lasts.total_seconds() < 25 * 3600


def test_a_client_is_known_by_its_certificate(certificates: Certificates, tmp_path: Path) -> None:
    stranger = make_certificates(tmp_path)
    tls = server_tls(certificates.certificate, certificates.key, client_authority=certificates.authority)
    with serving(tls) as server:
        url = f"{server.url}/health"
        assert httpx.get(url, verify=trusting(certificates)).json()["names"] is None
        known = trusting(certificates)
        known.load_cert_chain(certificates.certificate, certificates.key)
        assert httpx.get(url, verify=known).json()["names"] == ["localhost", "127.0.0.1"]
        unknown = trusting(certificates)
        unknown.load_cert_chain(stranger.certificate, stranger.key)
        with pytest.raises(httpx.TransportError):
            httpx.get(url, verify=unknown)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_renewed_certificate_is_shown_to_whoever_comes_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: ssl.TLSVersion
) -> None:
    """By address, so that no name is asked for, and by name; with a client's certificate all the while."""
    monkeypatch.setattr("esper.nissa.http.tls.LOOK_SECONDS", 0)
    used, renewed = (make_certificates(made(tmp_path / name)) for name in ("used", "renewed"))
    stranger = make_certificates(made(tmp_path / "stranger"))
    known = ssl.create_default_context(cafile=used.authority)
    known.load_verify_locations(renewed.authority)
    known.maximum_version = version
    known.load_cert_chain(stranger.certificate, stranger.key)
    tls = server_tls(used.certificate, used.key, minimum="1.2", client_authority=stranger.authority)

    def shown(name: str = "127.0.0.1") -> bytes | None:
        with (
            socket.create_connection(address(server), timeout=LONG) as plain,
            known.wrap_socket(plain, server_hostname=name) as connection,
        ):
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(1000), b""))
            assert b'"names":["localhost","127.0.0.1"]' in answer
            return connection.getpeercert(binary_form=True)

    with serving(tls) as server, httpx.Client(base_url=server.url, verify=known) as before:
        first = shown()
        before.get("/health")
        used.certificate.write_bytes(renewed.certificate.read_bytes())
        assert shown() == shown() == first, "the key is still the old one"
        assert caplog.text.count("new connections have what was there before") == 1
        used.key.write_bytes(renewed.key.read_bytes())
        assert first != shown() == shown("localhost")
        second = shown()
        used.key.chmod(0o644)
        used.key.write_bytes(first or b"")
        assert shown() == second
        used.certificate.unlink()
        assert shown() == second
        assert before.get("/health").status_code == 200
    assert caplog.text.count("new connections have what was there before") == 3


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_another_authority_of_clients_counts_for_whoever_comes_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, version: ssl.TLSVersion
) -> None:
    """Also for who comes with a session of before; connections that there are stay."""
    monkeypatch.setattr("esper.nissa.http.tls.LOOK_SECONDS", 0)
    shown, former, later = (make_certificates(made(tmp_path / name)) for name in ("shown", "former", "later"))
    authority = tmp_path / "clients.pem"
    authority.write_bytes(former.authority.read_bytes())
    contexts = {}
    for client in (former, later):
        contexts[client] = ssl.create_default_context(cafile=shown.authority)
        contexts[client].maximum_version = version
        contexts[client].load_cert_chain(client.certificate, client.key)
    tls = server_tls(shown.certificate, shown.key, minimum="1.2", client_authority=authority)

    def is_known(client: Certificates, session: ssl.SSLSession | None = None) -> ssl.SSLSession | None:
        """A session of a client that is known by its certificate; None for one that is not let in."""
        with socket.create_connection(address(server), timeout=LONG) as plain:
            try:
                with contexts[client].wrap_socket(plain, server_hostname="localhost", session=session) as one:
                    one.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
                    answer = b"".join(iter(lambda: one.recv(1000), b""))
                    if not answer:  # by TLS 1.3 it has sent all before it is told
                        return None
                    assert b'"names":["localhost","127.0.0.1"]' in answer
                    assert one.session_reused == (session is not None)
                    return one.session
            except (ssl.SSLError, ConnectionError):
                return None

    with serving(tls) as server, httpx.Client(base_url=server.url, verify=contexts[former]) as before:
        before.get("/health")
        session = is_known(former)
        assert session is not None
        assert is_known(former, session), "a session is resumed while nothing changes"
        assert is_known(later) is None
        assert tls.check().startswith("new connections are begun with what the files hold: the TLS certif")
        authority.write_bytes(b"half of a file")
        assert is_known(former)
        assert is_known(later) is None
        assert caplog.text.count("new connections have what was there before") == 1
        with pytest.raises(ServerError, match="the authority of clients") as told:
            tls.check()
        assert "new connections have what was there before" in str(told.value)
        authority.write_bytes(later.authority.read_bytes())
        assert is_known(later)
        assert is_known(former) is None
        assert is_known(former, session) is None
        assert before.get("/health").json()["names"] == ["localhost", "127.0.0.1"]
        assert tls.check().startswith("new connections are begun with what the files hold: the TLS certif")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_whose_certificate_was_revoked_is_let_in_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: ssl.TLSVersion
) -> None:
    """Nor anybody by a certificate whose authority has no list, or one that has ended."""
    monkeypatch.setattr("esper.nissa.http.tls.LOOK_SECONDS", 0)
    shown, client = (make_certificates(made(tmp_path / name)) for name in ("shown", "client"))
    known = ssl.create_default_context(cafile=shown.authority)
    known.maximum_version = version
    nobody = ssl.create_default_context(cafile=shown.authority)
    known.load_cert_chain(client.certificate, client.key)
    lists = tmp_path / "revoked.pem"
    lists.write_bytes(revocations(client, 1))
    tls = server_tls(
        shown.certificate,
        shown.key,
        minimum="1.2",
        client_authority=client.authority,
        revoked=lists,
    )

    def comes_in(context: ssl.SSLContext) -> bool:
        try:
            return httpx.get(f"{server.url}/health", verify=context).status_code == 200
        except httpx.TransportError:
            return False

    with serving(tls) as server, httpx.Client(base_url=server.url, verify=known) as before:
        assert comes_in(known)
        assert before.get("/health").json()["holds"] is True
        lists.write_bytes(revocations(client, 1, serial_of(client)))
        assert before.get("/health").json()["holds"] is False, "over a connection that there was"
        assert not comes_in(known)
        assert comes_in(nobody), "without a certificate, as with a token"
        # What is served beside a list is not trusted, and a list that cannot be used changes nothing.
        for text in (revocations(shown), b"", b"-----BEGIN X509 CRL-----\n!\n-----END X509 CRL-----"):
            lists.write_bytes(shown.authority.read_bytes() + text)
            with pytest.raises(ServerError, match=r"revoked.pem cannot be used: .*what was there before"):
                tls.check()
            assert not comes_in(known)
        lists.write_bytes(shown.authority.read_bytes() + revocations(client))
        assert comes_in(known)
        stranger = ssl.create_default_context(cafile=shown.authority)
        stranger.load_cert_chain(shown.certificate, shown.key)
        assert not comes_in(stranger)

        def listed_for_a_moment() -> bool:
            lists.write_bytes(revocations(client, ends_in=timedelta(seconds=2)))
            return comes_in(known)

        until(listed_for_a_moment)
        until(lambda: not comes_in(known))
        with pytest.raises(ServerError, match=r"list of revoked certificates .*revoked.pem ended on \d"):
            tls.check()
        with pytest.raises(ServerError, match=r"revoked.pem cannot be used: it is valid from"):
            server_tls(shown.certificate, shown.key, client_authority=client.authority, revoked=lists)


def test_a_list_allows_nobody_once_it_has_ended(certificates: Certificates) -> None:
    shown = x509.load_pem_x509_certificate(certificates.certificate.read_bytes())
    for ends_in, allowed in ((timedelta(days=1), True), (timedelta(minutes=-1), False)):
        lists = [x509.load_pem_x509_crl(revocations(certificates, ends_in=ends_in))]
        assert Revoked(lists).allow(shown) == allowed


def test_files_that_were_refused_are_tried_again_without_another_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As for a certificate that is valid from a little later on."""
    monkeypatch.setattr("esper.nissa.http.tls.LOOK_SECONDS", 0)
    used = make_certificates(tmp_path)
    tls = server_tls(used.certificate, used.key)
    with monkeypatch.context() as patched:
        patched.setattr("esper.nissa.http.tls._end_of", lambda _: int("not yet"))
        used.certificate.write_bytes(used.certificate.read_bytes() + b"\n")
        for _ in range(2):
            with pytest.raises(ServerError, match="cannot be used"):
                tls.check()
    assert caplog.text.count("new connections have what was there before") == 1
    assert tls.check().startswith("new connections are begun with what the files hold: the TLS certif")


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_files_that_cannot_be_used_are_one_clear_error(certificates: Certificates, tmp_path: Path) -> None:
    stranger = make_certificates(tmp_path)
    open_key = tmp_path / "open.key"
    open_key.write_bytes(certificates.key.read_bytes())
    open_key.chmod(0o644)
    empty = tmp_path / "empty.pem"
    empty.touch(mode=0o600)
    for certificate, key, said in (
        (certificates.certificate, stranger.key, "cannot be used"),
        (certificates.certificate, tmp_path / "none", "No such file"),
        (tmp_path / "none", certificates.key, "No such file"),
        (empty, certificates.key, "cannot be used"),
        (certificates.certificate, empty, "cannot be used"),
        (certificates.certificate, open_key, "can be used by others"),
    ):
        with pytest.raises(ServerError, match=said):
            server_tls(certificate, key)
    with pytest.raises(ServerError, match="the authority of clients"):
        server_tls(certificates.certificate, certificates.key, client_authority=empty)
    with pytest.raises(ConfigError, match="tls_minimum"):
        server_tls(certificates.certificate, certificates.key, minimum="1.1")
