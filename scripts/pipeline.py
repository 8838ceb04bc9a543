"""Build the digits archive, serve it, register it, predict its samples and explain one of them."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from torchmar import archive, exchange
from torchmar.archive import Archive
from torchmar.cli.terminal import complain, out, show_table, table
from torchmar.engines import DEFAULT, EngineName, named
from torchmar.errors import BindError, TorchmarError
from torchmar.inference import InferenceClient

RECIPE = Path("archives/digits")
STORE = Path("model_store")
PICTURE = Path(".torchmar/seven-explained.png")

TRY = """\
The server runs on; `torchmar stop` ends it. To try ({folder} is the one that torchmar is run from):

  token=$({python} -c "import json; print(json.load(open('{key_file}'))['inference']['key'])")
  curl -H "Authorization: Bearer $token" -T {sample} {inference}/predictions/digits
  curl -H "Authorization: Bearer $token" -H 'Accept: image/png' -o seven.png -T {sample} {inference}/explanations/digits
"""


def main() -> int:
    """Run the job; return the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/run", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the server running and print curl commands to try")
    parser.add_argument("--engine", choices=("builtin", "torchserve"), default=DEFAULT, help="default: %(default)s")
    parser.add_argument(
        "--port", type=int, help="the port of the inference API; the other ports change with it; default: 8080"
    )
    arguments = parser.parse_args()
    try:
        return run(arguments.engine, arguments.keep, arguments.port)
    except TorchmarError as error:
        hint = "scripts/run --port 9080 uses other ports" if isinstance(error, BindError) else error.hint
        complain(TorchmarError(error.message, hint=hint))
        return 1
    except KeyboardInterrupt:
        return 130


def run(engine: EngineName, keep: bool, port: int | None = None) -> int:
    """Build, serve, register, predict and explain; return 1 if a prediction is wrong."""
    packed = archive.build(RECIPE, STORE)
    out.print(f"built {packed.path}, sha256:{packed.digest[:16]}")
    with Archive(packed.path) as opened:
        samples = [sample for sample in opened.samples if not sample.explain and sample.input]
    with named(engine)(Path("config.properties"), STORE, port=port) as server:
        out.print(f"started {server.described}: {server.server.inference}", markup=False)
        # Workers and batching are those of the archive's model-config.yaml.
        out.print(server.management.register(packed.path.name, initial_workers=1).strip(), markup=False)
        client = InferenceClient(server.server)
        rows, wrong = [], 0
        for sample in samples:
            file, truth = RECIPE / str(sample.input), next(iter(sample.expect))
            started = time.perf_counter()
            answer = client.request("digits", exchange.read(file))
            milliseconds = (time.perf_counter() - started) * 1000
            label, probability = next(iter(json.loads(answer.body).items()))
            wrong += label != truth
            rows.append((file.name, truth, label, f"{probability:.1%}", f"{milliseconds:.1f}"))
        out.print()
        headings = ("image", "truth", "prediction", "probability", "ms")
        show_table(table(headings, rows, right=("truth", "prediction", "probability", "ms")))
        sample_file = RECIPE / "samples" / "seven.png"
        picture = client.request("digits", exchange.read(sample_file, explain=True, accept="image/png"))
        PICTURE.write_bytes(picture.body)
        out.print(f"\n{len(rows) - wrong} of {len(rows)} right; what makes {sample_file.name} a seven: {PICTURE}\n")
        if keep:
            server.detach()
            out.print(
                TRY.format(
                    folder=Path.cwd(),
                    python=sys.executable,
                    key_file=server.server.key_file,
                    sample=sample_file,
                    inference=server.server.inference,
                ),
                markup=False,
            )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
