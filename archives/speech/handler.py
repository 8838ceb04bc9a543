"""Find speech in recordings with Silero VAD; the state of a stream is the client's to keep."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pcm
import torch
import waveform
from segmenter import Rules, Segmenter
from stream import Clip, Stream, frame

from torchmar_handlers.base import BaseHandler
from torchmar_handlers.common import signatures
from torchmar_handlers.common.reply import PNG, Reply
from torchmar_handlers.protocols.plain import in_json
from torchmar_handlers.request import BadRequest, Request, from_base64


class SpeechDetector(BaseHandler):
    """Answer a recording with the seconds from which and to which there is speech.

    ============== ======== ==========================================================================
    option         default  meaning
    ============== ======== ==========================================================================
    threshold      0.5      the probability of a frame (32 ms) from which it is speech; a segment ends
                            where it falls 0.15 below
    min_speech     0.25     seconds: shorter segments are dropped
    min_silence    0.1      seconds: shorter pauses do not end a segment
    speech_pad     0.03     seconds that are added to both ends of a segment
    max_seconds    300      longer recordings, or chunks, get 413
    ============== ======== ==========================================================================

    The recording is a WAV file: the body, the form's field ``data``, or ``audio`` in JSON, in base64. With ``state``
    beside it, the recording is the next chunk of a stream: an empty text with the first, then the ``state`` of each
    answer with the next. ``final`` (true) ends the stream. The segments of all answers are those of the whole
    recording. Nothing of a stream stays in the worker, so that any worker may answer each chunk.
    """

    def initialize(self, context: Any) -> None:
        super().initialize(context)
        self.rules = Rules.of(self.options)
        self.max_seconds = self.options.number("max_seconds", 300, low=1)
        self.warm_up(context)
        self.options.reject_unknown()

    def decode(self, request: Request) -> Clip:
        """Return the recording that a request holds."""
        payload = request.value(("audio", "data"))
        if isinstance(payload, str) and payload:
            payload = from_base64(payload)
        if not isinstance(payload, bytes | bytearray) or not payload:
            raise BadRequest('a recording is expected: a WAV file as the body, or in JSON {"audio": {"b64": "..."}}')
        rate, samples = pcm.read(bytes(payload), self.max_seconds)
        state = request.option("state")
        if state is None:
            stream, final = Stream.new(rate), True
        else:
            stream, final = _stream(state, rate), _flag(request, "final")
        if not len(samples) and not stream.received:
            raise BadRequest("the recording has no samples")
        return Clip(stream, samples, final, state is not None, _flag(request, "probabilities"))

    def group(self, decoded: Clip) -> Hashable:
        """Return the rate: the model takes one for a batch."""
        return decoded.stream.rate

    def typical_inputs(self) -> Iterator[Clip]:
        """Yield a second of silence."""
        yield Clip(Stream.new(16000), np.zeros(16000, np.float32))

    def preprocess(self, inputs: Sequence[Clip]) -> Sequence[Clip]:
        """Return the recordings as they are, for each has a length of its own."""
        return inputs

    def predict_handle(self, batch: Sequence[Clip], requests: Sequence[Request]) -> Sequence[Any]:
        """Return the answers to recordings of one rate."""
        framed = [clip.frames() for clip in batch]
        memories = [clip.stream.memory for clip in batch]
        found = self._probabilities([frames for frames, _ in framed], memories, batch[0].stream.rate)
        return [
            self._answer(clip, tail, probabilities, memory, request)
            for clip, (_, tail), (probabilities, memory), request in zip(batch, framed, found, requests, strict=True)
        ]

    def columns(self, answers: Sequence[Any]) -> Mapping[str, Any] | None:
        """Return segments as JSON, since recordings have different numbers of them."""
        if not all(isinstance(answer, Mapping) for answer in answers):
            return None
        return {
            "segments": [in_json(answer["segments"]) for answer in answers],
            "duration": [answer["duration"] for answer in answers],
            "state": [answer.get("state", "") for answer in answers],
        }

    def signature(self) -> signatures.Signature:
        """Return the tensors that every request and answer has; ``state`` and ``final`` may be sent as well."""
        text = signatures.tensor
        outputs = [text("segments", "BYTES"), text("duration", "FP64"), text("state", "BYTES")]
        return signatures.of([text("audio", "BYTES")], outputs)

    def _probabilities(
        self, frames: Sequence[np.ndarray], memories: Sequence[np.ndarray], rate: int
    ) -> list[tuple[list[float], np.ndarray]]:
        """Return each recording's probabilities, frame by frame, and the model's memory after them.

        Frame i of all recordings that have one goes through the model at once; each has a memory of its own.
        """
        order = sorted(range(len(frames)), key=lambda index: -len(frames[index]))
        memory = torch.from_numpy(np.stack([memories[index] for index in order], axis=1))
        probabilities: list[list[float]] = [[] for _ in frames]
        of_rate = torch.tensor(rate)
        for step in range(len(frames[order[0]])):
            going = [index for index in order if len(frames[index]) > step]
            values = torch.from_numpy(np.stack([frames[index][step] for index in going]))
            output, after = self.inference((values, memory[:, : len(going)].contiguous(), of_rate))
            memory[:, : len(going)] = after
            for index, probability in zip(going, output[:, 0].tolist(), strict=True):
                probabilities[index].append(probability)
        own = {index: memory[:, place].numpy() for place, index in enumerate(order)}
        return [(probabilities[index], own[index]) for index in range(len(frames))]

    def _answer(
        self, clip: Clip, tail: np.ndarray, probabilities: Sequence[float], memory: np.ndarray, request: Request
    ) -> Any:
        before, rate = clip.stream, clip.stream.rate
        received = before.received + len(clip.samples)
        segmenter = Segmenter(self.rules, rate, before.start, before.end)
        closed = [
            segmenter.step(before.position + index * frame(rate), probability)
            for index, probability in enumerate(probabilities)
        ]
        if clip.final:
            closed.append(segmenter.finish(received))
        segments = [segment for segment in closed if segment]
        if request.accepts(PNG):
            if clip.returns_state:
                raise BadRequest("a picture is drawn of a whole recording, not of a stream's chunk")
            return Reply(waveform.draw(clip.samples, rate, probabilities, frame(rate) / rate, segments), PNG)
        answer: dict[str, Any] = {"segments": segments, "duration": round(received / rate, 6)}
        if clip.lists:
            answer["probabilities"] = [round(probability, 4) for probability in probabilities]
        if clip.returns_state:
            after = Stream(rate, received, memory, tail, segmenter.start, segmenter.end)
            answer["speaking"] = segmenter.start is not None
            answer["state"] = "" if clip.final else after.encode()
        return answer


def _stream(state: Any, rate: int) -> Stream:
    """Return the state that a client has sent with a chunk of ``rate`` samples a second."""
    if not isinstance(state, str):
        raise BadRequest("the state is a text: that of the answer before, or an empty one with the first chunk")
    if not state:
        return Stream.new(rate)
    stream = Stream.decode(state)
    if stream.rate != rate:
        raise BadRequest(f"the stream has {stream.rate} samples a second, and this chunk {rate}")
    return stream


def _flag(request: Request, name: str) -> bool:
    value = request.option(name)
    if value in (None, False, "", "false", "False", "0"):
        return False
    if value in (True, "true", "True", "1"):
        return True
    raise BadRequest(f"{name} is true or false, not {value!r}")
