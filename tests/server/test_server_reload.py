"""A running server reads its certificate again after SIGHUP, for HTTPS and for gRPC."""

from __future__ import annotations

import ssl
from pathlib import Path

from tests.support.certificates import certify
from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar.engines.addresses import free_addresses
from torchmar.engines.builtin import Builtin


def served(port: int) -> str:
    """Return the certificate that a port shows."""
    return ssl.get_server_certificate(("127.0.0.1", port))


def test_a_renewed_certificate_is_shown_to_new_connections(tmp_path: Path) -> None:
    key, certificate = certify(tmp_path)
    addresses = free_addresses()
    addresses["inference_address"] = addresses["inference_address"].replace("http:", "https:")
    config = write_config(
        tmp_path,
        **{**addresses, "private_key_file": key.name, "certificate_file": certificate.name, "enable_grpc_ssl": "true"},
    )
    (tmp_path / "store").mkdir()
    https, grpc = (int(addresses[key].rpartition(":")[2]) for key in ("inference_address", "grpc_inference_port"))
    with Builtin(config, tmp_path / "store", tmp_path / "run") as server:
        first = served(https)
        assert served(grpc).split() == first.split() == certificate.read_text().split()

        certify(tmp_path)
        second = certificate.read_text()
        server.reload()
        until(lambda: served(https).split() == second.split())
        assert served(grpc).split() == second.split()

        fitting = key.read_text()
        certify(tmp_path)
        key.write_text(fitting)  # does not fit the third certificate
        server.reload()
        until(lambda: "nothing is reloaded" in (server.folder / "logs/server.log").read_text())
        assert served(https).split() == served(grpc).split() == second.split()
