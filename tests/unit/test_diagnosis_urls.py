"""torchmar doctor finds URLs of models that the built-in server would not download."""

from __future__ import annotations

from pathlib import Path

from torchmar import properties
from torchmar.diagnosis import configuration


def causes(folder: Path, text: str) -> list[str]:
    file = folder / "config.properties"
    file.write_text(text)
    findings = configuration.check(properties.read(file), "builtin")
    return [finding.cause for finding in findings if finding.severity == "error"]


def test_a_url_that_is_not_allowed_is_an_error(tmp_path: Path) -> None:
    signed = "load_models=m=https://host/x.mar?X-Amz-Signature=topsecret,x.mar\n"
    (cause,) = causes(tmp_path, signed)
    assert "load_models names https://host/x.mar?..., and no pattern of allowed_urls matches it" in cause
    assert "topsecret" not in cause
    assert not causes(tmp_path, f"{signed}allowed_urls=https://host/.*\n")


def test_a_digest_at_the_end_of_a_url_is_not_a_part_of_it(tmp_path: Path) -> None:
    assert not causes(tmp_path, f"load_models=https://host/x.mar#sha256={'0' * 64}\nallowed_urls=https://host/x.mar\n")
    (cause,) = causes(tmp_path, "load_models=https://host/x.mar#sha256=abc\nallowed_urls=https://host/x.mar\n")
    assert "is not sha256: and 64 hexadecimal digits" in cause
