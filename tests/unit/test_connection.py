"""torchmar.connection finds servers, keeps tokens, trusts certificates and repeats requests where that is safe."""

from __future__ import annotations

import contextlib
import http.server
import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from tests.support.certificates import certify
from tests.support.paths import SAMPLES
from tests.support.peers import Peer
from tests.support.servers import write_config
from torchmar import exchange
from torchmar.connection import Connection, Endpoint
from torchmar.connection.local import is_local
from torchmar.engines.addresses import free_ports
from torchmar.engines.torchserve import TorchServe
from torchmar.errors import (
    CertificateError,
    ConnectError,
    InsecureError,
    NotFoundError,
    ResponseTimeoutError,
    ServerError,
    TorchmarError,
    UnauthorizedError,
)
from torchmar.grpc import GrpcInference, GrpcManagement, GrpcOpenInference
from torchmar.inference import InferenceClient
from torchmar.management import ManagementClient

SEVEN = exchange.read(SAMPLES / "seven.png")
OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 16\r\n\r\n{"status": "ok"}'
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"


def test_reading_requests_are_repeated_when_the_connection_breaks_or_the_server_is_starting() -> None:
    with Peer([b"", BUSY, OK]).listening() as peer:
        assert Connection(Endpoint(inference=peer.address), "inference").request("GET", "/ping").json() == {
            "status": "ok"
        }
        assert len(peer.received) == 3


@pytest.mark.parametrize(("answer", "error"), [(b"", ConnectError), (BUSY, ServerError)])
def test_requests_that_may_have_been_carried_out_are_never_repeated(answer: bytes, error: type[TorchmarError]) -> None:
    with Peer([answer, OK]).listening() as peer:
        with pytest.raises(error) as caught:
            ManagementClient(peer.address).register("a.mar")
        assert [request.split()[0] for request in peer.received] == [b"POST"]
    if isinstance(caught.value, ConnectError):
        assert caught.value.sent
        assert "closed before there was a response" in caught.value.message
        assert "may have carried it out nevertheless" in caught.value.hint


def test_any_request_that_was_not_sent_is_repeated() -> None:
    (port,) = free_ports(1)
    answers: list[str] = []
    registering = threading.Thread(
        target=lambda: answers.append(ManagementClient(f"http://127.0.0.1:{port}").register("a"))
    )
    registering.start()
    while registering.is_alive():  # refused until now
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as listener:
            listener.settimeout(5)
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(OK)
            registering.join()
    assert answers == ["ok"]


def test_repeating_can_be_left_out() -> None:
    with Peer([b"", OK]).listening() as peer:
        with pytest.raises(ConnectError):
            ManagementClient(peer.address, retries=0).describe("a")
        assert len(peer.received) == 1


def test_a_limit_of_time_is_of_one_try() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(ResponseTimeoutError, match=r"did not answer within 0\.2 s") as caught:
            ManagementClient(address, timeout=0.2).describe("a")
        assert caught.value.sent
        silent.accept()
        silent.settimeout(0.3)
        with pytest.raises(TimeoutError):
            silent.accept()


def test_another_machine_gets_no_token_in_plain_text_unless_configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHMAR_MANAGEMENT_TOKEN", "top-secret")
    remote = Endpoint(management="http://192.0.2.1:8081")  # an address without a host: RFC 5737
    with pytest.raises(InsecureError, match=r"192\.0\.2\.1.*in plain text") as caught:
        ManagementClient(remote).describe("a")
    assert "--allow-plain-http" in caught.value.hint
    assert "top-secret" not in f"{remote}{caught.value}{ManagementClient(remote)._connection.tokens}"
    monkeypatch.setenv("TORCHMAR_ALLOW_PLAIN_HTTP", "1")
    assert Endpoint().allow_plain_http
    with Peer([OK]).listening() as peer:  # loopback needs no leave
        Connection(Endpoint(management=peer.address, allow_plain_http=False), "management").request("GET", "/models")
        assert b"\r\nAuthorization: Bearer top-secret\r\n" in peer.received[0]


def test_an_own_address_of_this_machine_is_as_private_as_loopback() -> None:
    assert all(map(is_local, ("127.0.0.1", "localhost", "::1", "0.0.0.0")))
    assert not any(map(is_local, ("192.0.2.1", "example.com", "8.8.8.8", "")))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))
        assert is_local(probe.getsockname()[0])


@pytest.mark.parametrize(
    "address",
    [
        *("", "8080", "ftp://host", "http://", "http://host?x=1", "http://host#a", "http://[::1", "http://host:99999"),
        *("http://name:password@host", "http://name:password@host:99999"),
    ],
)
def test_the_error_of_an_invalid_address_shows_no_password(address: str) -> None:
    with pytest.raises(TorchmarError, match="address") as caught:
        InferenceClient(address)
    assert "password@" not in str(caught.value)


def test_a_token_with_invalid_characters_is_not_shown() -> None:
    server = Endpoint(tokens={"inference": "se\ncret"})
    with pytest.raises(TorchmarError, match="does not allow") as caught:
        InferenceClient(server).ping()
    assert "cret" not in str(caught.value)


def test_the_header_with_characters_that_http_does_not_allow_is_named() -> None:
    with pytest.raises(TorchmarError, match="Explain-Target has characters"):
        InferenceClient(Endpoint(tokens={})).explain("digits", b"x", target="七")


def http_answer(status: str, body: bytes, kind: str = "text/html") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("status", "kind", "hint"),
    [
        ("404 Not Found", NotFoundError, "is this the address of the management API?"),
        ("413 Too Large", ServerError, "max_request_size"),
        ("502 Bad Gateway", ServerError, "is the server behind the proxy running?"),
    ],
)
def test_the_error_of_an_html_page_has_its_title(status: str, kind: type[ServerError], hint: str) -> None:
    page = f"\r\n<html>\r\n<head><title>{status}</title></head>\r\n<body><h1>{status}</h1></body></html>".encode()
    with Peer([http_answer(status, page)]).listening() as peer, pytest.raises(kind) as caught:
        ManagementClient(peer.address).scale("digits", min_worker=1)
    assert caught.value.message == f"a proxy or another server responded with an HTML page: {status}"
    assert hint in caught.value.hint


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b"", b"[]", b"7", b'{"hello": 1}'])
def test_a_response_of_another_service_is_a_clear_error(body: bytes) -> None:
    management_calls: tuple[Callable[[ManagementClient], object], ...] = (
        lambda client: list(client.models()),
        lambda client: client.register("a.mar"),
        lambda client: client.ready("a"),
    )
    for call in management_calls:
        with Peer([http_answer("200 OK", body)]).listening() as peer:
            with pytest.raises(
                ConnectError, match=r"no management API at .*: another service responds there"
            ) as caught:
                call(ManagementClient(peer.address))
            assert caught.value.sent
    with Peer([http_answer("200 OK", body)]).listening() as peer, pytest.raises(ConnectError, match="another service"):
        InferenceClient(peer.address).ping()


@pytest.mark.parametrize(
    "content", [b"\xff\xfe\x00", b"[]", b'{"inference": {}}', b'{"inference": "x"}', b"{", b"not json", b""]
)
def test_a_key_file_of_another_shape_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_bytes(content)
    with pytest.raises(TorchmarError, match=r"key_file\.json is not a TorchServe key file"):
        InferenceClient(Endpoint(key_file=tmp_path / "key_file.json")).ping()
    with pytest.raises(TorchmarError, match="cannot be read: Is a directory"):
        InferenceClient(Endpoint(key_file=tmp_path)).ping()


def test_a_file_without_certificates_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("none")
    for client, server in (
        (InferenceClient, Endpoint(inference="https://127.0.0.1:1", verify=file)),
        (GrpcInference, Endpoint(grpc_inference="grpcs://127.0.0.1:1", verify=file)),
    ):
        with pytest.raises(TorchmarError, match=r"ca\.pem has no certificates in PEM"):
            client(server)


def test_a_redirection_is_not_followed() -> None:
    moved = b"HTTP/1.1 302 Found\r\nLocation: https://elsewhere.example/\r\nContent-Length: 0\r\n\r\n"
    with Peer([moved, OK]).listening() as peer:
        with pytest.raises(ServerError, match=r"redirects to https://elsewhere\.example/"):
            InferenceClient(peer.address).ping()
        assert len(peer.received) == 1


def test_the_reason_of_a_failed_connection_is_in_the_error() -> None:
    with pytest.raises(ConnectError, match="cannot resolve the host name"):
        InferenceClient(Endpoint(inference="http://nowhere.invalid", tokens={}), retries=0).ping()
    with Peer([b"no HTTP\r\n\r\n"]).listening() as peer, pytest.raises(ConnectError, match="does not speak TLS"):
        InferenceClient(peer.address.replace("http", "https")).ping()


def test_the_run_folder_has_the_addresses_of_its_server_which_alone_gets_its_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHMAR_INFERENCE_TOKEN", "of another server")
    write_config(tmp_path, inference_address="http://0.0.0.0:81", grpc_inference_port="71", enable_grpc_ssl="true")
    endpoint = Endpoint.from_run_folder(tmp_path)
    assert (endpoint.inference, endpoint.grpc_inference) == ("http://127.0.0.1:81", "grpcs://127.0.0.1:71")
    assert (endpoint.key_file, endpoint.tokens) == (tmp_path / "key_file.json", {})
    no_server = Endpoint.from_run_folder(tmp_path / "none")
    assert (no_server.inference, no_server.tokens) == ("http://127.0.0.1:8080", {"inference": "of another server"})


def test_a_key_file_that_is_being_written_is_waited_for(tmp_path: Path) -> None:
    keys = json.dumps({"inference": {"key": "new"}, "API": {"key": "api"}})
    file = tmp_path / "key_file.json"
    file.write_text(keys[:20])
    writing = threading.Timer(0.1, file.write_text, [keys])
    writing.start()
    with Peer([OK]).listening() as peer:
        InferenceClient(Endpoint(inference=peer.address, key_file=file)).ping()
        assert b"Bearer new" in peer.received[0]
    writing.join()


def test_a_token_that_another_client_has_renewed_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "key_file.json"
    old, new = ({"management": {"key": key}, "API": {"key": "api"}} for key in ("old", "new"))
    file.write_text(json.dumps(old))
    error_body = b'{"code": 400, "type": "InvalidKeyException", "message": "no"}'
    error_response = b"HTTP/1.1 400 Bad\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s" % (
        len(error_body),
        error_body,
    )
    renewing = threading.Timer(0.1, file.write_text, [json.dumps(new)])
    with Peer([error_response, OK]).listening() as peer:
        renewing.start()
        assert ManagementClient(Endpoint(management=peer.address, key_file=file)).register("a.mar") == "ok"
        assert [b"Bearer old" in peer.received[0], b"Bearer new" in peer.received[1]] == [True, True]
    renewing.join()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[TorchServe]:
    """Run a real TorchServe with a certificate that it signed itself, and tokens that live for three seconds."""
    folder = tmp_path_factory.mktemp("tls")
    store = folder / "model_store"
    store.mkdir()
    shutil.copy(digits, store)
    certify(folder)
    inference, management = free_ports(2)
    config = write_config(
        folder,
        inference_address=f"https://127.0.0.1:{inference}",
        management_address=f"https://127.0.0.1:{management}",
        certificate_file="certificate.pem",
        private_key_file="key.pem",
        enable_grpc_ssl="true",
        ts_open_inference_protocol="false",
        token_expiration_min="0.05",
    )
    with TorchServe(config, store, folder / "run") as running:
        running.load(store / digits.name)
        yield running


def test_a_certificate_that_the_run_folder_or_a_file_names_is_trusted(tls: TorchServe) -> None:
    assert InferenceClient(tls.server).request("digits", SEVEN).status == 200
    assert list(ManagementClient(tls.server).names()) == ["digits"]


def test_the_command_line_takes_certificates_and_every_parameter(tls: TorchServe, tmp_path: Path) -> None:
    where = ["--address", tls.server.management, "--key-file", tls.folder / "key_file.json"]
    where += ["--ca-file", tls.folder.parent / "certificate.pem"]

    def torchmar(*arguments: object) -> str:
        command = [sys.executable, "-m", "torchmar", *map(str, [*arguments, *where])]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True).stdout

    options = ("--initial-workers", 0, "--batch-size", 2, "--max-batch-delay", 3, "--response-timeout", 44)
    options += ("--startup-timeout", 55, "--runtime", "python3", "--no-synchronous")
    torchmar("register", "digits-1.0.mar", "--model-name", "other", *options)
    assert "Processing" in torchmar("scale", "other", 1, "--no-synchronous")
    (other,) = json.loads(torchmar("models", "other", "--json"))
    assert other["runtime"] == "python3"
    torchmar("unregister", "other")
    assert "digits 1.0: {" in torchmar("models", "digits", "--customized")


def test_any_other_certificate_is_not_trusted_and_gets_no_token(tls: TorchServe) -> None:
    with pytest.raises(CertificateError, match="self-signed certificate") as caught:
        InferenceClient(replace(tls.server, verify=True)).ping()
    assert not caught.value.sent
    assert "--ca-file" in caught.value.hint
    wrong_name = tls.server.inference.replace("127.0.0.1", "localhost")
    with pytest.raises(CertificateError, match="Hostname mismatch"):
        InferenceClient(replace(tls.server, inference=wrong_name)).ping()
    with pytest.raises(TorchmarError, match="does not exist"):
        InferenceClient(replace(tls.server, verify=Path("none.pem")))


def test_the_error_of_a_disabled_protocol_names_its_key(tls: TorchServe) -> None:
    for ask in (InferenceClient(tls.server).live, GrpcOpenInference(tls.server).live):
        with pytest.raises(ServerError) as caught:
            ask()
        assert "ts_open_inference_protocol=true" in caught.value.hint


def test_grpc_trusts_the_same_certificates_and_renews_the_same_tokens(tls: TorchServe) -> None:
    with GrpcInference(tls.server) as inference, GrpcManagement(tls.server) as management:
        assert inference.ping() == "Healthy"
        assert list(management.names()) == ["digits"]
        time.sleep(3.1)
        assert next(iter(inference.predict("digits", SAMPLES / "seven.png"))) == "7"
    with pytest.raises(CertificateError, match="is not trusted"):
        GrpcInference(replace(tls.server, verify=True)).ping()
    with pytest.raises(TorchmarError, match="cannot skip the check"):
        GrpcInference(replace(tls.server, verify=False))


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")
def test_without_verification_any_certificate_is_accepted(tls: TorchServe) -> None:
    assert InferenceClient(replace(tls.server, verify=False)).ping() == "Healthy"


def test_plain_http_to_a_server_with_tls_is_a_clear_error(tls: TorchServe) -> None:
    with pytest.raises(ServerError, match="only accepts HTTPS requests"):
        InferenceClient(replace(tls.server, inference=tls.server.inference.replace("https", "http"))).ping()


def test_tokens_are_renewed_for_as_long_as_there_is_a_key_file(tls: TorchServe) -> None:
    file = tls.server.key_file
    assert file
    client = InferenceClient(tls.server)
    client.ping()
    first = json.loads(file.read_text())["inference"]["key"]
    time.sleep(3.1)
    static = replace(tls.server, key_file=None, tokens={"inference": first})
    with pytest.raises(UnauthorizedError) as caught:
        InferenceClient(static).ping()
    assert "TORCHMAR_INFERENCE_TOKEN" in caught.value.hint
    assert client.request("digits", SEVEN).status == 200
    assert json.loads(file.read_text())["inference"]["key"] != first


def test_many_threads_whose_tokens_expire_get_their_answers(tls: TorchServe) -> None:
    client = InferenceClient(tls.server)
    answers = [answer for _, answer in client.predict_many("digits", [SAMPLES / "seven.png"] * 100, jobs=6)]
    assert all(isinstance(answer, dict) and next(iter(answer)) == "7" for answer in answers), answers


def test_a_copy_of_the_key_file_is_recognised(tls: TorchServe, tmp_path: Path) -> None:
    assert tls.server.key_file
    copy = Path(shutil.copy(tls.server.key_file, tmp_path))
    time.sleep(3.1)
    with pytest.raises(UnauthorizedError, match="its own key file") as caught:
        InferenceClient(replace(tls.server, key_file=copy)).ping()
    assert "copy it again" in caught.value.hint


@pytest.fixture
def proxy(server: TorchServe) -> Iterator[str]:
    """Run a proxy that has the server's APIs below /ts/, as one with TLS would; return its address."""
    targets = {"inference": server.server.inference, "management": server.server.management}

    class Proxy(http.server.BaseHTTPRequestHandler):
        def _pass_on(self) -> None:
            _, root, api, rest = self.path.split("/", 3)
            assert root == "ts"
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = requests.request(
                self.command, f"{targets[api]}/{rest}", data=body, headers=dict(self.headers), timeout=30
            )
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Content-Length"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = _pass_on

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_address[1]}/ts"
        listening.shutdown()


def test_a_server_is_reached_below_a_path_of_a_proxy(server: TorchServe, proxy: str, make: Callable[..., Path]) -> None:
    behind = replace(server.server, inference=f"{proxy}/inference/", management=f"{proxy}/management")
    make(name="proxied", store=server.model_store)
    management = ManagementClient(behind)
    management.register("proxied-1.0.mar", initial_workers=0)
    assert management.describe("proxied")[0].url == "proxied-1.0.mar"
    management.unregister("proxied")
    with pytest.raises(NotFoundError):
        management.describe("proxied")
    assert InferenceClient(behind).predict("digits", SAMPLES / "seven.png")["7"] > 0.9


def test_no_log_has_a_token(server: TorchServe, caplog: pytest.LogCaptureFixture) -> None:
    assert server.server.key_file
    keys = json.loads(server.server.key_file.read_text())
    with caplog.at_level(logging.DEBUG):
        InferenceClient(server.server).request("digits", SEVEN)
        ManagementClient(server.server).renew_token("management")
        list(ManagementClient(server.server).names())
    assert "/token?type=management" in caplog.text
    assert not [key for key in keys.values() if key["key"] in caplog.text]
