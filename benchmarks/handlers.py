"""Time handlers: torchmar's, compared with those that TorchServe ships, with the same weights and inputs.

Both run in the same program for worker processes (batches of 1 to 32), and behind the same real
TorchServe; all figures of a table are from the same run, with the sides called in turn, after rounds
that are not counted. Answers are compared before any time counts: labels equal and probabilities
within 1e-3, attributions within a relative error of 1e-3. The floor is the bare forward pass
after the fastest available decoding, without other code. OpenMP's threads wait in all processes as in
torchmar's workers (`torchmar.worker.environment`): with OpenMP's default, threads of the previous side still keep
cores busy when the next one starts, and figures differ by a factor of ten from run to run. Weights are random: time
does not depend on their content.

The parts `small` and `photographs` measure the CPU time of one thread, and print median ratios with an interval
that contains the median with a confidence of at least 95 %: a worker's code for requests of 64 numbers, and the way
from a JPEG file to the model's input. Large photographs are mosaics of small ones, so that they have detail in every
pixel; the archive `imagenet`, if it is trained, shows the effect of decoding at a scale.

    scripts/bench handlers [--rounds 5] [--seconds 5] [--only small photographs worker server explain text start]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import rounds
from harness.machine import processor
from harness.rounds import interval

from torchmar import archive, properties, recipe
from torchmar.cli.terminal import show_table, table
from torchmar.engines.torchserve import TorchServe
from torchmar.exchange import Request, Response
from torchmar.worker import Worker
from torchmar.worker.environment import worker_environment

ROOT = Path(__file__).parent.parent
BATCHES = (1, 4, 8, 16, 32)
STEPS = 15  # the number of TorchServe's handler
STOCK, OURS = "TorchServe's handler", "torchmar's handler"
PARTS = ("small", "photographs", "start", "worker", "server", "explain", "text")
WORDS = ["the", "a", "model", "server", "worker", "batch", "request", "answer", "queue", "weight", "layer", "image"]


def main() -> int:
    """Measure the selected parts and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds; two more run first")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of load on the server, for each figure")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if (environment := worker_environment(os.environ)) != os.environ:
        # Torch has read it when it was loaded, above. A side that waits actively slows down the next one.
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)
    warnings.simplefilter("ignore")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    print(
        f"{processor()}, {cores} cores, Python {platform.python_version()}, torch {torch.__version__}, "
        f"load average {os.getloadavg()[0]:.1f}"
    )
    # Each new thread sets the number of the process, too: all of them start first.
    start = threading.Barrier(_DECODERS)
    list(POOL.map(lambda _: start.wait(), range(_DECODERS)))
    torch.set_num_threads(cores or 1)
    with tempfile.TemporaryDirectory(prefix="handlers-") as folder:
        bench = Bench(Path(folder), options.rounds, options.seconds)
        for part in options.only:
            getattr(bench, part)()
    return 0


class Bench:
    """The archives, the inputs and the measurements with them."""

    def __init__(self, folder: Path, rounds: int, seconds: float) -> None:
        self.folder, self.rounds, self.seconds = folder, rounds, seconds
        self.model = resnet(folder / "resnet18.pt")
        self.images = photographs(32)
        self.sides = {
            STOCK: pack(folder, "stock", "image_classifier", "resnet18.pt"),
            OURS: pack(folder, "ours", "torchmar_handlers.image_classifier", "resnet18.pt"),
        }

    def start(self) -> None:
        """Time importing and loading, and the memory of a worker after one answer."""
        rows = []
        modules = {STOCK: "ts.torch_handler.image_classifier", OURS: "torchmar_handlers.image_classifier"}
        for side, path in self.sides.items():
            imported = statistics.median(import_seconds(modules[side]) for _ in range(3))
            loads, memory = [], 0.0
            for _ in range(3):
                started = time.perf_counter()
                with Worker(path) as worker:
                    loads.append(time.perf_counter() - started)
                    worker.predict_batch([Request(self.images[0], "image/jpeg")])
                    memory = resident(worker.pid)
            rows.append((side, f"{imported:.2f} s", f"{statistics.median(loads):.2f} s", f"{memory / 1e6:.0f} MB"))
        bare = statistics.median(import_seconds("torch") for _ in range(3))
        rows.append(("import torch alone", f"{bare:.2f} s", "", ""))
        show("A worker's start (ResNet-18)", ("", "import", "loaded after", "memory"), rows)

    def small(self) -> None:
        """Microseconds of CPU of a worker's code for small requests, by batch size."""
        from harness import models

        model = models.tiny(self.folder)
        bodies = []
        for index, body in enumerate(model.bodies):
            bodies.append(self.folder / f"body-{index}")
            bodies[-1].write_bytes(body)
        rows = []
        with contextlib.ExitStack() as stack:
            sides = {}
            for side, store in ((STOCK, "stock"), (OURS, "ours")):
                with archive.Archive(model.stores[store] / model.file) as opened:
                    opened.extract(self.folder / store)
                sides[side] = stack.enter_context(calls(self.folder / store, bodies))
            for size in (1, 4, 16):
                took: dict[str, list[float]] = {side: [] for side in sides}
                for number in range(8 * self.rounds + 2):
                    for side, call in list(sides.items())[:: -1 if number % 2 else 1]:
                        seconds, answer = call(size, 320 // size)
                        assert any(model.same(answer, expected) for expected in model.expected), answer
                        if number >= 2:
                            took[side].append(seconds / size)
                each = (f"{statistics.median(seconds) * 1e6:.1f}" for seconds in took.values())
                rows.append((str(size), *each, with_interval(took[OURS], took[STOCK])))
        head = ("batch", "stock us", "ours us", "ours of stock")
        show("A perceptron of 64 features: CPU microseconds a request in a worker", head, rows)

    def photographs(self) -> None:
        """Milliseconds of CPU from one JPEG to the model's input, and the effect of decoding at a scale."""
        from PIL import Image
        from torchvision import transforms

        from torchmar_handlers.common.options import Options
        from torchmar_handlers.images.inputs import Inputs

        imagenet = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        stock = transforms.Compose(
            [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), imagenet]
        )

        def theirs(file: bytes) -> torch.Tensor:
            tensor: torch.Tensor = stock(Image.open(io.BytesIO(file)))
            return tensor

        before = torch.get_num_threads()
        torch.set_num_threads(1)
        exact, scaled = (Inputs(Options({"scaled_decoding": flag}), torch.device("cpu")) for flag in (False, True))
        rows = []
        for title, files, repeats in (
            ("640x480", photographs(8), 4),
            ("2560x1920", mosaics(4, 4), 1),
            ("3840x2880", mosaics(6, 2), 1),
            ("5120x3840", mosaics(8, 2), 1),
        ):
            calls: dict[str, Callable[[bytes], object]] = {
                STOCK: theirs,
                "ours": partial(model_input, exact),
                "scaled": partial(model_input, scaled),
            }
            took = for_each(calls, files, self.rounds * repeats)
            each = (f"{statistics.median(seconds) * 1000:.2f}" for seconds in took.values())
            ratios = (with_interval(took[STOCK], took[side]) for side in ("ours", "scaled"))
            worst = max(float((model_input(exact, file) - theirs(file)).abs().max()) for file in files)
            assert worst < 0.03, f"preprocessed images differ by {worst}"
            rows.append((title, *each, *ratios, *differences(files)))
        head = ("", "stock ms", "ours", "scaled", "stock : ours", "stock : scaled", "levels", "labels", "probabilities")
        show("From one JPEG to the model's input, CPU milliseconds; what decoding at a scale changes", head, rows)
        self.steps(exact, theirs)
        torch.set_num_threads(before)

    def steps(self, inputs: Any, theirs: Callable[[bytes], torch.Tensor]) -> None:
        """Show the part of each step in the CPU time of TorchServe's transforms for a JPEG of 640x480.

        At an eighth of the sides, a decoder computes little more than the Huffman code, which it must read
        completely, for any part of the image.
        """
        from PIL import Image
        from simplejpeg import decode_jpeg

        from torchmar_handlers.images.reading import Pixels

        files = photographs(8)
        pixels: dict[bytes, Pixels] = {file: decode_jpeg(file) for file in files}
        values = {file: inputs.fit(pixels[file]).values[None] for file in files}
        calls: dict[str, Callable[[bytes], object]] = {
            STOCK: theirs,
            "ours": partial(model_input, inputs),
            "header, by Pillow": lambda file: Image.open(io.BytesIO(file)).close(),
            "decoding": decode_jpeg,
            "decoding at an eighth": lambda file: decode_jpeg(file, min_width=80, min_height=60),
            "resize and crop": lambda file: inputs.fit(pixels[file]),
            "normalisation": lambda file: inputs.normalise(values[file]),
        }
        took = for_each(calls, files, self.rounds * 4)
        lowest = {name: sorted(seconds)[len(seconds) // 10] for name, seconds in took.items()}
        rows = [
            (name, f"{seconds * 1000:.2f}", f"{seconds / lowest[STOCK]:.0%}", f"{seconds / lowest['ours']:.0%}")
            for name, seconds in lowest.items()
        ]
        show("A JPEG of 640x480, lowest tenth of the CPU times", ("", "ms", "of stock", "of ours"), rows)

    def worker(self) -> None:
        """Images per second in one worker process, by batch size, compared with the floor."""
        with Worker(self.sides[STOCK]) as stock, Worker(self.sides[OURS]) as ours:
            rows = []
            for size in BATCHES:
                requests = [Request(image, "image/jpeg") for image in self.images[:size]]
                agree(stock.predict_batch(requests), ours.predict_batch(requests))
                took = in_turn(
                    {
                        STOCK: partial(stock.predict_batch, requests),
                        OURS: partial(ours.predict_batch, requests),
                        "floor": partial(self.floor, size),
                    },
                    self.rounds,
                )
                rate = {name: size / seconds for name, seconds in took.items()}
                rows.append(
                    (
                        str(size),
                        *(f"{rate[name]:.1f}" for name in (STOCK, OURS, "floor")),
                        f"{rate[OURS] / rate[STOCK]:.2f} x",
                        f"{rate[OURS] / rate['floor']:.0%}",
                    )
                )
        head = ("batch", "stock/s", "ours/s", "floor/s", "ours : stock", "of the floor")
        show("ResNet-18 on 640x480 JPEGs, images a second in a worker", head, rows)
        self.preprocessing()

    def preprocessing(self) -> None:
        """Milliseconds from 8 JPEGs to the model's input, without the model."""
        from torchvision import transforms

        from torchmar_handlers.image_classifier import ImageClassifier

        ours = ImageClassifier()
        ours.initialize(Context(self.folder, "resnet18.pt"))
        requests = [ours_request(image) for image in self.images[:8]]
        stock = transforms.Compose(
            [
                transforms.Resize(256),
                transforms.CenterCrop(224),
                transforms.ToTensor(),
                transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
            ]
        )
        from PIL import Image

        def theirs() -> torch.Tensor:
            return torch.stack([stock(Image.open(io.BytesIO(image))) for image in self.images[:8]])

        def mine() -> torch.Tensor:
            decoded = list(ours.executor.map(ours.decode, requests)) if ours.executor else map(ours.decode, requests)
            return ours.preprocess(list(decoded))

        worst = (theirs() - mine()).abs().max().item()
        assert worst < 0.03, f"preprocessed images differ by {worst}"  # one grey level is 1 / 255 / 0.225 = 0.017
        took = in_turn({STOCK: theirs, OURS: mine}, self.rounds * 4)
        rows = [(name, f"{seconds / 8 * 1000:.2f}") for name, seconds in took.items()]
        rows.append(("ours : stock", f"{took[STOCK] / took[OURS]:.2f} x"))
        show(f"Preprocessing, milliseconds an image (largest difference {worst:.4f})", ("", "ms"), rows)

    def floor(self, size: int) -> None:
        """Decode and run ``size`` images in the fastest available way."""
        from torchvision.io import decode_jpeg
        from torchvision.transforms.v2.functional import center_crop, resize

        def decode(image: bytes) -> torch.Tensor:
            pixels = decode_jpeg(torch.frombuffer(bytearray(image), dtype=torch.uint8))
            cropped: torch.Tensor = center_crop(resize(pixels, [256], antialias=True), [224, 224])
            return cropped

        with torch.inference_mode():
            batch = torch.stack(list(POOL.map(decode, self.images[:size]))).float().div_(255)
            self.model(batch).softmax(1).topk(5)

    def server(self) -> None:
        """Images per second through the real TorchServe, by the number of clients."""
        rows = []
        # The limit of model and decoding in batches of 8, the server's batch size here.
        floor = 8 / in_turn({"floor": lambda: self.floor(8)}, self.rounds)["floor"]
        rates = {side: dict(self._served(path)) for side, path in self.sides.items()}
        for clients in (1, 8, 16):
            stock, ours = (rates[side][clients] for side in (STOCK, OURS))
            rows.append(
                (
                    str(clients),
                    f"{stock[0]:.1f}",
                    f"{stock[1] * 1000:.0f}",
                    f"{ours[0]:.1f}",
                    f"{ours[1] * 1000:.0f}",
                    f"{ours[0] / stock[0]:.2f} x",
                    f"{ours[0] / floor:.0%}",
                )
            )
        head = ("clients", "stock/s", "p50 ms", "ours/s", "p50 ms", "ours : stock", f"of the floor ({floor:.1f}/s)")
        show("ResNet-18 on 640x480 JPEGs, images a second through TorchServe", head, rows)

    def _served(self, path: Path) -> Iterator[tuple[int, tuple[float, float]]]:
        home = Path(tempfile.mkdtemp(dir=self.folder))
        (home / "store").mkdir()
        shutil.copy(path, home / "store")
        values = dict(properties.read(ROOT / "config.properties").values) | {"disable_token_authorization": "true"}
        (home / "config.properties").write_text(properties.show(values))
        with TorchServe(home / "config.properties", home / "store", home / "run") as running:
            running.load(home / "store" / path.name)
            address = running.server.inference.partition("//")[2]
            name = path.name.partition("-")[0]
            load(address, name, self.images, 8, 2.0)
            for clients in (1, 8, 16):
                yield clients, load(address, name, self.images, clients, self.seconds)

    def explain(self) -> None:
        """Milliseconds of integrated gradients, by the number of simultaneous requests for them."""
        rows = []
        headers = {"Explain-Target": "0", "Explain-N-Steps": str(STEPS)}
        with Worker(self.sides[STOCK]) as stock, Worker(self.sides[OURS]) as ours:
            for size in (1, 4):
                theirs = [Request(image, "image/jpeg", explain=True) for image in self.images[:size]]
                requests = [
                    Request(image, "image/jpeg", True, "application/x-npy", headers) for image in self.images[:size]
                ]
                # From the same floats: a pixel with another grey level after the resize changes an attribution.
                same = [json.dumps(self.floats(image)).encode() for image in self.images[:size]]
                error = relative_error(
                    stock.predict_batch([Request(body, "application/json", True) for body in same]),
                    ours.predict_batch(
                        [Request(body, "application/json", True, requests[0].accept, headers) for body in same]
                    ),
                )
                as_json = [Request(request.body, request.content_type, True, headers=headers) for request in requests]
                took = in_turn(
                    {
                        STOCK: partial(stock.predict_batch, theirs),
                        OURS: partial(ours.predict_batch, requests),
                        "ours as JSON": partial(ours.predict_batch, as_json),
                    },
                    self.rounds,
                )
                per = {name: seconds / size * 1000 for name, seconds in took.items()}
                rows.append(
                    (
                        str(size),
                        *(f"{value:.0f}" for value in per.values()),
                        f"{per[STOCK] / per[OURS]:.2f} x",
                        f"{per[STOCK] / per['ours as JSON']:.2f} x",
                        f"{error:.1e}",
                    )
                )
        head = ("batch", "stock ms", "ours .npy", "ours JSON", "stock : .npy", "stock : JSON", "relative error")
        show(f"ResNet-18 explained, {STEPS} steps, milliseconds an image in a worker", head, rows)

    def floats(self, image: bytes) -> Any:
        """Return the input that both handlers pass to the model for an image, as nested lists."""
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(image)).resize((224, 224)), np.float32) / 255
        return ((pixels - 0.45) / 0.225).transpose(2, 0, 1).round(4).tolist()

    def text(self) -> None:
        """Texts per second of a bag of n-grams, which TorchServe's handler answers one at a time."""
        made = self.folder / "text"
        made.mkdir()
        bag(made)
        files = {"source_vocab.pt": "source_vocab.pt"}
        labels = ["one", "two", "three", "four"]
        stock = pack(made, "stocktext", "text_classifier", "bag.pt", model_file="bag.py", files=files, labels=labels)
        ours = pack(
            made,
            "ourtext",
            "torchmar_handlers.text_classifier",
            "bag.pt",
            model_file="bag.py",
            files=files,
            labels=labels,
        )
        random = np.random.default_rng(0)
        texts = [" ".join(random.choice(WORDS, 60)).encode() for _ in range(32)]
        rows = []
        with Worker(stock) as one, Worker(ours) as other:
            for size in BATCHES:
                requests = [Request(text, "text/plain") for text in texts[:size]]
                alone = [one.predict_batch([request])[0] for request in requests]
                agree(alone, other.predict_batch(requests))
                took = in_turn(
                    {
                        STOCK: partial(one_by_one, one, requests),
                        OURS: partial(other.predict_batch, requests),
                    },
                    self.rounds * 4,
                )
                rate = {name: size / seconds for name, seconds in took.items()}
                rows.append((str(size), f"{rate[STOCK]:.0f}", f"{rate[OURS]:.0f}", f"{rate[OURS] / rate[STOCK]:.2f} x"))
        show("Texts of 60 words a second in a worker", ("batch", "stock/s (alone)", "ours/s", "ours : stock"), rows)


# A thread that decodes runs torch's operators without further threads, as in torchmar's handlers.
_DECODERS = os.cpu_count() or 1
POOL = ThreadPoolExecutor(_DECODERS, initializer=torch.set_num_threads, initargs=(1,))


class Context:
    """The context that TorchServe passes to a handler when it loads."""

    def __init__(self, folder: Path, weights: str) -> None:
        self.manifest = {"model": {"modelName": "bench", "modelVersion": "1.0", "serializedFile": weights}}
        self.system_properties = {"model_dir": str(folder), "gpu_id": None, "batch_size": 8}
        self.model_yaml_config: dict[str, Any] = {}


def ours_request(image: bytes) -> Any:
    """Return a request in the form for torchmar's handlers."""
    from torchmar_handlers.request import Request as Row

    return Row(0, {"body": image}, {})


@contextlib.contextmanager
def calls(folder: Path, bodies: Sequence[Path]) -> Iterator[Callable[[int, int], tuple[float, Any]]]:
    """Run `harness/calls.py`; yield a function that returns CPU seconds of a batch, for its size and their number."""
    script = Path(__file__).parent / "harness" / "calls.py"
    command = [sys.executable, str(script), str(folder), *map(str, bodies)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin and process.stdout
        given, answers = process.stdin, process.stdout

        def call(size: int, count: int) -> tuple[float, Any]:
            given.write(f"{size} {count}\n")
            given.flush()
            seconds, answer = json.loads(answers.readline())
            return seconds, answer

        yield call
        given.close()


def for_each(calls: dict[str, Callable[[bytes], object]], files: Sequence[bytes], turns: int) -> dict[str, list[float]]:
    """Return the CPU seconds of each call for each file, with the calls in turn."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for file in files:
        for name, seconds in rounds.in_turn({name: partial(call, file) for name, call in calls.items()}, turns).items():
            took[name] += seconds
    return took


def with_interval(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the median of the rounds' ratios, and its interval."""
    middle, low, high = interval([one / other for one, other in zip(ours, theirs, strict=True)])
    return f"{middle:.2f} x ({low:.2f} to {high:.2f})"


def model_input(inputs: Any, file: bytes) -> torch.Tensor:
    """Return the model's input for a JPEG."""
    from torchmar_handlers.request import Request as Row

    tensor: torch.Tensor = inputs.normalise(inputs.read(Row(0, {"body": bytearray(file)}, {})).values[None])[0]
    return tensor


def differences(files: Sequence[bytes]) -> tuple[str, str, str]:
    """Return the effect of decoding at a scale on pixels, labels and probabilities.

    The results are the largest mean difference of an image in levels of 255, the number of equal labels, and the
    largest difference of a probability. Labels and probabilities are those of `imagenet`; empty if it is not trained.
    """
    weights = ROOT / "archives" / "imagenet" / "imagenet.onnx"
    from torchmar_handlers.common.options import Options
    from torchmar_handlers.images.inputs import Inputs

    batches = []
    for scaled in (False, True):
        options = Options({"scaled_decoding": scaled, "mean": [0.49804] * 3, "std": [0.50196] * 3})
        inputs = Inputs(options, torch.device("cpu"))
        batches.append(np.stack([model_input(inputs, file).numpy() for file in files]))
    levels = f"{float(np.abs(batches[0] - batches[1]).mean((1, 2, 3)).max()) * 0.50196 * 255:.2f}"
    if not weights.is_file():
        return levels, "", ""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    session = onnxruntime.InferenceSession(weights)
    name = session.get_inputs()[0].name
    exact, scaled_ones = (torch.from_numpy(session.run(None, {name: batch})[0]).softmax(1) for batch in batches)
    same = int((exact.argmax(1) == scaled_ones.argmax(1)).sum())
    return levels, f"{same} of {len(files)}", f"{float((exact - scaled_ones).abs().max()):.4f}"


def mosaics(side: int, count: int) -> list[bytes]:
    """Return JPEGs that consist of ``side`` times ``side`` photographs of 640x480 each."""
    from PIL import Image

    tiles = [Image.open(io.BytesIO(file)) for file in photographs(count + side)]
    files = []
    for number in range(count):
        picture = Image.new("RGB", (640 * side, 480 * side))
        for place in range(side * side):
            picture.paste(tiles[(number + place) % len(tiles)], (place % side * 640, place // side * 480))
        stream = io.BytesIO()
        picture.save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def resnet(path: Path) -> Any:
    """Write ResNet-18 with random weights as TorchScript; return the loaded model."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.resnet18().eval()
    torch.jit.save(torch.jit.trace(model, torch.zeros(1, 3, 224, 224)), path)
    return torch.jit.load(path).eval()


def photographs(count: int) -> list[bytes]:
    """Return JPEGs of 640x480, cut from the two photographs of scikit-learn."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    files = []
    for index, photo in zip(range(count), itertools.cycle(load_sample_images().images), strict=False):
        left, top = 3 * index, 2 * index
        cut = (
            Image.fromarray(photo).crop((left, top, left + 480, top + 360)).resize((640, 480), Image.Resampling.LANCZOS)
        )
        stream = io.BytesIO()
        cut.save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files


def bag(folder: Path) -> None:
    """Write a text classifier for TorchServe's handler: a bag of embedded n-grams and its vocabulary."""
    (folder / "bag.py").write_text(
        "import torch\n\n\nclass Bag(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        f"        self.embedding = torch.nn.EmbeddingBag({len(WORDS) ** 2 + len(WORDS)}, 64)\n"
        "        self.fc = torch.nn.Linear(64, 4)\n\n"
        "    def forward(self, text, offsets):\n        return self.fc(self.embedding(text, offsets))\n"
    )
    sys.path.insert(0, str(folder))
    import bag as module  # type: ignore[import-not-found]

    torch.manual_seed(0)
    torch.save(module.Bag().state_dict(), folder / "bag.pt")
    pairs = [f"{first} {second}" for first in WORDS for second in WORDS]
    torch.save({word: index for index, word in enumerate([*WORDS, *pairs])}, folder / "source_vocab.pt")


def pack(folder: Path, name: str, handler: str, weights: str, **keys: Any) -> Path:
    """Return an archive of a handler and weights in ``folder``."""
    config = {"minWorkers": 1, "maxWorkers": 1, "batchSize": 8, "maxBatchDelay": 20, "responseTimeout": 300}
    document = {"name": name, "version": "1.0", "handler": handler, "weights": weights, "config": config, **keys}
    written = recipe.Recipe.model_validate(document)
    return archive.pack(archive.collect_members(written, folder), folder / f"{name}-1.0.mar").path


def in_turn(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each side, with the sides run one after the other in every round."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 2):
        for name, side in list(sides.items())[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            side()
            if number >= 2:
                took[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in took.items()}


def one_by_one(worker: Worker, requests: Sequence[Request]) -> None:
    """Send requests to a worker one at a time."""
    for request in requests:
        worker.predict_batch([request])


def agree(theirs: Sequence[Response], ours: Sequence[Response]) -> None:
    """Stop unless two sides gave the same labels with probabilities within 1e-3."""
    for one, other in zip(theirs, ours, strict=True):
        left, right = json.loads(one.body), json.loads(other.body)
        assert one.status == other.status == 200, (one.body, other.body)
        assert left.keys() == right.keys(), (left, right)
        assert all(abs(left[key] - right[key]) < 1e-3 for key in left), (left, right)


def relative_error(theirs: Sequence[Response], ours: Sequence[Response]) -> float:
    """Return the difference between attributions, relative to their norm; stop if it is more than 1e-3."""
    worst = 0.0
    for one, other in zip(theirs, ours, strict=True):
        left, right = np.array(json.loads(one.body)), np.load(io.BytesIO(other.body))
        worst = max(worst, float(np.linalg.norm(left - right) / np.linalg.norm(left)))
    assert worst < 1e-3, worst
    return worst


def import_seconds(module: str) -> float:
    """Return the seconds that a new interpreter needs to import ``module``."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {module}"], check=True, capture_output=True)
    return time.perf_counter() - started


def resident(pid: int) -> float:
    """Return the resident memory of a process in bytes."""
    import psutil

    return float(psutil.Process(pid).memory_info().rss)


def load(address: str, name: str, images: Sequence[bytes], clients: int, seconds: float) -> tuple[float, float]:
    """Return requests a second and the median latency for clients that each send a request after the last answer."""
    until = time.perf_counter() + seconds
    took: list[float] = []

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(address, timeout=300)
        for image in itertools.islice(itertools.cycle(images), number, None):
            started = time.perf_counter()
            if started > until:
                return
            connection.request("POST", f"/predictions/{name}", image, {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
            took.append(time.perf_counter() - started)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(took) / (time.perf_counter() - began), statistics.median(took)


def show(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    print(f"\n{title}\n", flush=True)
    show_table(table(head, rows, right=head[1:]))


if __name__ == "__main__":
    sys.exit(main())
