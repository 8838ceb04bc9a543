"""A WAV file to samples."""

from __future__ import annotations

import io
import wave

import numpy as np

from torchmar_handlers.request import BadRequest

RATES = (8000, 16000)  # samples a second that the model takes

_CONVERT = "convert it: ffmpeg -i FILE -ac 1 -ar 16000 -c:a pcm_s16le clip.wav"


def read(content: bytes, max_seconds: float) -> tuple[int, np.ndarray]:
    """Return the rate and the samples of a WAV file: float32 from -1 to 1, the mean of the channels.

    Args:
        content: PCM of 8, 16, 24 or 32 bits. A file that ends early, or has no lengths since it was written to a
            pipe, is taken as far as it is there.
        max_seconds: longer recordings are rejected.

    Raises:
        BadRequest: it is no such file, has another rate than 8000 or 16000, or is too long (413).
    """
    try:
        with wave.open(io.BytesIO(content)) as file:
            rate, width, channels = file.getframerate(), file.getsampwidth(), file.getnchannels()
            data = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        reason = f" ({error})" if str(error) else ""
        raise BadRequest(f"the recording is not a WAV file of PCM samples{reason}; {_CONVERT}") from None
    if rate not in RATES:
        raise BadRequest(f"the recording has {rate} samples a second, and the model takes 8000 or 16000; {_CONVERT}")
    if width not in (1, 2, 3, 4):
        raise BadRequest(f"the recording has samples of {8 * width} bits; 8, 16, 24 and 32 are taken; {_CONVERT}")
    count = len(data) // (width * channels)
    if count > max_seconds * rate:
        raise BadRequest(f"the recording lasts {count / rate:.1f} seconds; {max_seconds:g} are allowed", 413)
    values = _numbers(data[: count * width * channels], width).reshape(count, channels)
    return rate, values[:, 0] if channels == 1 else values.mean(axis=1, dtype=np.float32)


def _numbers(data: bytes, width: int) -> np.ndarray:
    """Return numbers of ``width`` bytes, little-endian, as float32 from -1 to 1."""
    if width == 1:  # the only width without a sign
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    numbers: np.ndarray
    if width == 3:
        triples = np.frombuffer(data, np.uint8).reshape(-1, 3)
        filled = np.zeros((len(triples), 4), np.uint8)
        filled[:, 1:] = triples  # the upper three bytes of 32 bits
        numbers = filled.view("<i4")[:, 0].astype(np.float32) / np.float32(2**31)
    else:
        numbers = np.frombuffer(data, f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))
    return numbers
