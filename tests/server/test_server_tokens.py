"""torchmar.server.tokens writes TorchServe's key file, and accepts the tokens in it."""

from __future__ import annotations

import json
import logging
import stat
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path

import pytest
import requests

from tests.support.servers import write_config
from tests.support.waiting import until
from torchmar.engines.builtin import Builtin
from torchmar.engines.torchserve import TorchServe
from torchmar.server.api_error import ApiError
from torchmar.server.tokens import Tokens


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "key_file.json")


def keys(file: Path) -> dict[str, str]:
    return {kind: value["key"] for kind, value in json.loads(file.read_text()).items()}


def passes(tokens: Tokens, authorization: str, kind: str = "inference") -> bool:
    try:
        tokens.check(authorization, kind)  # type: ignore[arg-type]
    except ApiError:
        return False
    return True


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    folder = tmp_path_factory.mktemp("real")
    (folder / "store").mkdir()
    with TorchServe(write_config(folder), folder / "store", folder / "run") as running:
        yield running


def shape(value: object) -> object:
    """Return the types of a document's values, and their order."""
    return [(key, shape(inner)) for key, inner in value.items()] if isinstance(value, dict) else type(value)


def test_the_key_file_is_laid_out_as_torchserves(tokens: Tokens, real: TorchServe) -> None:
    theirs = real.folder / "key_file.json"
    assert shape(json.loads(tokens.file.read_text())) == shape(json.loads(theirs.read_text()))
    assert len(tokens.file.read_text().splitlines()) == len(theirs.read_text().splitlines())
    assert stat.S_IMODE(tokens.file.stat().st_mode) == stat.S_IMODE(theirs.stat().st_mode) == 0o600


def test_tokens_expire_at_the_time_in_the_file(tmp_path: Path) -> None:
    before = datetime.now(timezone.utc)
    document = json.loads(Tokens(tmp_path / "k", minutes=90).file.read_text())
    for api in ("management", "inference"):
        end = datetime.fromisoformat(document[api]["expiration time"].replace("Z", "+00:00"))
        assert 5400 <= (end - before).total_seconds() < 5460
    assert document["API"].keys() == {"key"}


def test_tokens_are_accepted_and_rejected_as_by_torchserve(tokens: Tokens, real: TorchServe) -> None:
    ours, theirs = keys(tokens.file), keys(real.folder / "key_file.json")
    session = requests.Session()
    for written in (
        "Bearer {inference}",
        "Bearer   {inference}",
        "Bearer\t{inference}",
        "Bearer{inference}",
        "Bearer {inference} x",
        "Bearer {management}",
        "Bearer {API}",
        "Bearer {inference}x",
        "Bearer",
        "Basic abc",
        "{inference}",
        "",
    ):
        headers = {"Authorization": written.format(**theirs)} if written else {}
        answer = session.get(f"{real.server.inference}/ping", headers=headers, auth=lambda request: request)
        assert passes(tokens, written.format(**ours)) == (answer.status_code == 200), written


def test_the_scheme_may_have_any_case(tokens: Tokens) -> None:
    tokens_of = keys(tokens.file)
    assert all(passes(tokens, f"{scheme} {tokens_of['inference']}") for scheme in ("bearer", "BEARER", "Bearer"))
    assert not passes(tokens, f"bearer {tokens_of['inference'].swapcase()}")


def test_a_fixed_token_passes_at_once_and_for_good_and_stands_in_the_key_file(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "k", minutes=-1, fixed={"inference": ["the-one-that-all-replicas-have"]})
    assert passes(tokens, "Bearer the-one-that-all-replicas-have")
    assert not passes(tokens, "Bearer the-one-that-all-replicas-have", "management")
    assert keys(tokens.file)["inference"] == "the-one-that-all-replicas-have"
    assert not passes(tokens, f"Bearer {keys(tokens.file)['management']}", "management")  # it expires as ever
    with pytest.raises(ApiError) as caught:
        tokens.renew("inference")
    assert (caught.value.status, caught.value.type) == (409, "ConflictStatusException")
    assert "the-one" not in caught.value.message + repr(tokens)
    tokens.renew("management")
    assert passes(tokens, "Bearer the-one-that-all-replicas-have")


OLD, NEW, READER = "the-token-until-today", "the-token-from-today", "a-token-of-a-dashboard"


def test_each_of_several_fixed_tokens_passes_and_the_first_is_in_the_key_file(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "k", fixed={"management": [NEW, OLD]})
    assert passes(tokens, f"Bearer {OLD}", "management") and passes(tokens, f"bearer  {NEW}", "management")
    assert keys(tokens.file)["management"] == NEW
    assert not passes(tokens, f"Bearer {NEW}\n{OLD}", "management")
    random = keys(tokens.file)["inference"]
    tokens.replace_fixed({"management": [NEW]})
    assert not passes(tokens, f"Bearer {OLD}", "management")
    assert passes(tokens, f"Bearer {random}")
    tokens.replace_fixed({})
    assert not passes(tokens, f"Bearer {NEW}", "management")
    assert passes(tokens, f"Bearer {keys(tokens.file)['management']}", "management")


def test_a_reader_may_look_and_not_change(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "k", fixed={"read": [READER]})
    assert passes(tokens, f"Bearer {READER}", "read")
    assert passes(tokens, f"Bearer {keys(tokens.file)['management']}", "read")
    assert not passes(tokens, f"Bearer {keys(tokens.file)['inference']}", "read")
    assert not passes(tokens, f"Bearer {READER}") and not passes(tokens, f"Bearer {READER}", "key")
    with pytest.raises(ApiError, match="may read and change nothing") as caught:
        tokens.check(f"Bearer {READER}", "management")
    assert caught.value.status == 403
    assert READER not in tokens.file.read_text()


def test_an_error_has_torchserves_words(tokens: Tokens, real: TorchServe) -> None:
    for kind, url in (
        ("inference", f"{real.server.inference}/ping"),
        ("management", f"{real.server.management}/models"),
        ("key", f"{real.server.management}/token?type=inference"),
    ):
        with pytest.raises(ApiError) as caught:
            tokens.check("", kind)  # type: ignore[arg-type]
        answer = requests.get(url)
        assert (answer.status_code, answer.content) == (caught.value.status, caught.value.body)


def test_text_that_is_no_ascii_is_rejected(tokens: Tokens) -> None:
    assert not passes(tokens, "Bearer é")
    assert not passes(tokens, "Bearer \udce9")


def test_a_token_that_has_expired_is_rejected(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "k", minutes=-1)
    tokens_of = keys(tokens.file)
    assert not passes(tokens, f"Bearer {tokens_of['inference']}")
    assert passes(tokens, f"Bearer {tokens_of['API']}", "key")


@pytest.mark.parametrize("kind", ["inference", "management"])
def test_a_renewal_ends_one_token_and_leaves_the_others(tokens: Tokens, kind: str) -> None:
    before = keys(tokens.file)
    tokens.renew(kind)
    after = keys(tokens.file)
    assert {token for token in before if before[token] != after[token]} == {kind}
    assert passes(tokens, f"Bearer {after[kind]}", kind)
    assert not passes(tokens, f"Bearer {before[kind]}", kind)
    assert [file.name for file in tokens.file.parent.iterdir()] == [tokens.file.name]


@pytest.mark.parametrize("kind", ["key", "API", "INFERENCE", ""])
def test_only_tokens_of_apis_are_renewed(tokens: Tokens, kind: str) -> None:
    before = tokens.file.read_text()
    with pytest.raises(ApiError, match="Token Authentication failed"):
        tokens.renew(kind)
    assert tokens.file.read_text() == before


def test_a_renewal_that_cannot_be_written_leaves_the_token(tokens: Tokens, tmp_path: Path) -> None:
    before = keys(tokens.file)
    tokens.file.unlink()
    tokens.file.mkdir()
    with pytest.raises(IsADirectoryError):
        tokens.renew("inference")
    assert passes(tokens, f"Bearer {before['inference']}")
    assert [file.name for file in tmp_path.iterdir()] == [tokens.file.name]


def test_an_existing_key_file_is_replaced(tokens: Tokens) -> None:
    before = keys(tokens.file)
    tokens.file.chmod(0o644)
    again = Tokens(tokens.file)
    assert not set(before.values()) & set(keys(again.file).values())
    assert stat.S_IMODE(again.file.stat().st_mode) == 0o600


def test_without_tokens_everything_passes_and_no_file_is_written(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "k", enabled=False)
    assert passes(tokens, "") and passes(tokens, "nonsense", "management")
    assert not tokens.file.exists()


def test_no_token_is_logged_or_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = Tokens(tmp_path / "k")
    tokens.renew("inference")
    passes(tokens, "Bearer wrong")
    assert not [key for key in keys(tokens.file).values() if key in caplog.text + repr(tokens)]


TELLING = """
import os
def handle(rows, context):
    return None if rows is None else [sorted(name for name in os.environ if "TOKEN" in name)] * len(rows)
"""


def test_a_token_of_the_environment_outlives_restarts_and_stands_in_no_log_and_no_worker(
    tmp_path: Path, make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "a-token-that-stays-the-same"
    monkeypatch.setenv("TORCHMAR_SERVER_INFERENCE_TOKEN", secret)
    (tmp_path / "management").write_text(f"{secret}-too\n")
    archive = make(TELLING)
    config = write_config(tmp_path, torchmar_management_token_file="management")
    for _ in range(2):
        with Builtin(config, archive.parent, tmp_path / "run") as running:
            running.load(archive)
            assert keys(running.folder / "key_file.json") | {"API": ""} == {
                "inference": secret,
                "management": f"{secret}-too",
                "API": "",
            }
            answer = requests.post(
                f"{running.server.inference}/predictions/made", b"x", headers={"Authorization": f"bearer {secret}"}
            )
            assert (answer.status_code, answer.json()) == (200, [])
            written = "".join(file.read_text() for file in (running.folder / "logs").iterdir() if file.is_file())
            for name in ("console.log", "config.properties"):
                written += (running.folder / name).read_text()
            assert secret not in written


def test_tokens_are_changed_under_load_without_a_lost_request(tmp_path: Path, make: Callable[..., Path]) -> None:
    archive = make("def handle(rows, context):\n    return None if rows is None else ['done'] * len(rows)\n")
    file, reader = tmp_path / "inference", tmp_path / "read"
    file.write_text(f"{OLD}\n")
    reader.write_text(f"{READER}\n")
    config = write_config(tmp_path, torchmar_inference_token_file="inference", torchmar_read_token_file="read")
    with Builtin(config, archive.parent, tmp_path / "run") as server:
        name = server.load(archive).name
        ends = threading.Event()
        statuses: list[int] = []
        token = OLD

        def send() -> None:
            with requests.Session() as session:
                while not ends.is_set():
                    answer = session.post(
                        f"{server.server.inference}/predictions/{name}",
                        data=b"x",
                        headers={"Authorization": f"Bearer {token}"},
                    )
                    statuses.append(answer.status_code)

        def status(of: str) -> int:
            headers = {"Authorization": f"Bearer {of}"}
            return requests.get(f"{server.server.inference}/predictions/{name}", headers=headers).status_code

        sender = threading.Thread(target=send)
        sender.start()
        try:
            file.write_text(f"{NEW}\n{OLD}\n")
            server.reload()
            until(lambda: status(NEW) == 200)
            assert keys(server.folder / "key_file.json")["inference"] == NEW
            token = NEW
            sent = len(statuses)
            until(lambda: len(statuses) > sent + 2)
            file.write_text(f"{NEW}\n")
            server.reload()
            until(lambda: status(OLD) == 400)
            file.write_text("short\n")  # an error: nothing changes
            server.reload()
            until(lambda: "nothing is reloaded" in (server.folder / "logs/server.log").read_text())
            assert status(NEW) == 200
        finally:
            ends.set()
            sender.join()
        assert set(statuses) == {200}

        models = f"{server.server.management}/models/{name}"
        headers = {"Authorization": f"Bearer {READER}"}
        assert requests.get(models, headers=headers).json()[0]["modelName"] == name
        refused = [requests.put(models, headers=headers), requests.delete(models, headers=headers)]
        assert [answer.status_code for answer in refused] == [403, 403]
        assert requests.get(models, headers=headers).status_code == 200
