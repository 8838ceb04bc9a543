"""torchmar.server.telemetry.tracing is on where a collector is configured, and says why it is not."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest

from torchmar.server.telemetry import logs, tracing

ENDPOINT = "http://127.0.0.1:4318"


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    messages: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    monkeypatch.setattr(logs.SERVER, "handlers", [Keeping()])
    return messages


@pytest.mark.parametrize(
    ("endpoint", "environment"),
    [
        ("", {}),
        ("", {"OTEL_SERVICE_NAME": "x", "OTEL_EXPORTER_OTLP_ENDPOINT": ""}),
        (ENDPOINT, {"OTEL_SDK_DISABLED": "true"}),
        ("", {"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT, "OTEL_TRACES_EXPORTER": "none"}),
    ],
)
def test_it_is_off_without_a_collector(endpoint: str, environment: dict[str, str], warnings: list[str]) -> None:
    assert tracing.open_tracer(endpoint, None, environment) is None
    assert not warnings


def test_a_collector_that_cannot_be_used_is_a_warning(warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    grpc = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    assert tracing.open_tracer("", None, grpc) is None
    assert tracing.open_tracer("", None, {"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4318"}) is None
    for url in ("http://127.0.0.1:99999", "http://[::1:4318"):
        assert tracing.open_tracer("", None, {"OTEL_EXPORTER_OTLP_ENDPOINT": url}) is None
    assert tracing.open_tracer("http://127.0.0.1:99999", None, {}) is None
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert tracing.open_tracer(ENDPOINT, None, {}) is None
    assert [warning.partition(": ")[2] for warning in warnings] == [
        "OTEL_EXPORTER_OTLP_PROTOCOL=grpc, and the server sends http/protobuf",
        *["OTEL_EXPORTER_OTLP_ENDPOINT must be like http://127.0.0.1:4318"] * 4,
        "they need pip install 'torchmar[tracing]'",
    ]


def test_a_wrong_variable_of_opentelemetry_is_a_warning(warnings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("opentelemetry.sdk.trace")
    monkeypatch.setenv("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "all")
    assert tracing.open_tracer(ENDPOINT, None, {}) is None
    (warning,) = warnings
    assert warning.endswith(
        "a variable OTEL_... is wrong: OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT must be a non-negative integer but got all"
    )


def test_the_server_imports_nothing_of_opentelemetry_by_itself() -> None:
    code = "import sys, torchmar.server.app; print(*(name for name in sys.modules if name.startswith('opentelemetry')))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not ran.stdout.strip()
