"""torchmar.worker.process.frames carries documents and bodies whole, awake or asleep."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from torchmar.worker.process import frames

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def document_of(bodies: list[bytes]) -> list[Any]:
    """Return the document of a batch whose requests have a body each."""
    return [[str(index), {}, [["body", "", len(body)]]] for index, body in enumerate(bodies)]


@pytest.mark.parametrize("poll", [0.0, 0.01])
def test_frames_are_received_as_sent(pair: Pair, poll: float) -> None:
    ours, theirs = pair
    large = bytes(range(256)) * 4096
    sent = [[b"three", b""], [large], [], [b"x"] * 1000, [b"", b"y", large, b"", b"z" * 70_000], [b"\0" * 100] * 1000]

    def send() -> None:
        for number, bodies in enumerate(sent):
            time.sleep(0.001 * number)
            frames.send(theirs, frames.encode(frames.BATCH, document_of(bodies), bodies))

    sender = threading.Thread(target=send)
    sender.start()
    receiver = frames.Receiver(ours, poll)
    for bodies in sent:
        kind, message, contents = receiver.receive()
        assert (kind, message, list(map(bytes, contents))) == (frames.BATCH, document_of(bodies), bodies)
    sender.join()


def test_half_of_a_character_in_a_text_ends_no_worker(pair: Pair) -> None:
    ours, theirs = pair
    frames.send(theirs, frames.encode(frames.THREADS, ["half \ud800", {"\udfff": "ü"}]))
    assert frames.Receiver(ours, 0.0).receive()[1] == ["half ?", {"?": "ü"}]


@pytest.mark.parametrize("poll", [0.0, 10.0])
def test_a_waiting_receiver_detects_the_end_of_the_connection(pair: Pair, poll: float) -> None:
    ours, theirs = pair
    receiver = frames.Receiver(ours, poll)
    frames.send(theirs, frames.encode(frames.THREADS, 2))
    assert receiver.receive()[:2] == (frames.THREADS, 2)
    closing = threading.Timer(0.05, theirs.shutdown, [socket.SHUT_RDWR])
    closing.start()
    with pytest.raises(frames.DisconnectedError):
        receiver.receive()
    closing.join()


def test_an_idle_receiver_calls_its_callback_once_per_wait(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pair
    assert frames._IDLE_MS == 1_000
    monkeypatch.setattr(frames, "_IDLE_MS", 50)
    idle_times: list[float] = []

    def send() -> None:
        frames.send(theirs, frames.encode(frames.THREADS, 1))

    def on_idle() -> None:
        idle_times.append(time.monotonic())
        threading.Timer(0.3, send).start()  # several times as long

    receiver = frames.Receiver(ours, 0.001, on_idle)
    for waits, times in ((False, 0), (True, 1), (False, 1), (True, 2)):
        if not waits:
            send()
        receiver.receive()
        assert len(idle_times) == times


def test_a_receiver_that_waits_sleeps(pair: Pair) -> None:
    ours, theirs = pair
    receiver = frames.Receiver(ours, 0.05)
    frames.send(theirs, frames.encode(frames.THREADS, 1))
    receiver.receive()
    later = threading.Timer(1.0, frames.send, [theirs, frames.encode(frames.THREADS, 2)])
    later.start()
    before = time.thread_time()
    assert receiver.receive()[1] == 2
    # Of the second that it waited it was awake for no more than the moment that it may be.
    assert time.thread_time() - before < 0.5
    later.join()
