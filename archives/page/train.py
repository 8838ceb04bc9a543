"""Fetch the weights of PP-OCRv6 from the package rapidocr; write page.onnx, recognition.onnx and characters.txt.

PP-OCR (https://github.com/PaddlePaddle/PaddleOCR, Apache-2.0, weights too) was trained by its authors; the package
rapidocr (Apache-2.0) ships it as ONNX. Nothing is trained here. Exits 69 if PyPI cannot be reached, or a file differs.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import onnxruntime
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))
import wheel_files  # noqa: E402

PACKAGE, VERSION = "rapidocr", "3.10.0"
DETECTION = "rapidocr/models/PP-OCRv6_det_small.onnx"
RECOGNITION = "rapidocr/models/PP-OCRv6_rec_small.onnx"
FILES = {
    DETECTION: "090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    RECOGNITION: "6f327246b50388f3c176ae304bd95767ea6dc0c9ae92153ef8cbe210b3c14884",
}
SCAN = {"skimage/data/page.png": "341a6f0a61557662b02734a9b6e56ec33a915b2c41886b97509dedf2a43b47a3"}
LETTER = (
    (60, 40, "Harbour Light Books"),
    (26, 130, "14 Quay Street, Galway"),
    (26, 170, "Invoice No. 2026-0417"),
    (26, 210, "29 November 2026"),
    (30, 310, "3 x Field Guide to Seabirds"),
    (30, 360, "1 x The Art of Knots (2nd edition)"),
    (30, 410, "Postage and packing"),
    (34, 500, "Total: EUR 86.40"),
    (26, 590, "Please pay within 30 days. Thank you!"),
)
PRICES = ((30, 310, "71.70"), (30, 360, "9.95"), (30, 410, "4.75"))


def samples(folder: Path) -> None:
    """Write the samples: a drawn invoice, the same turned by four degrees, an empty page, and a scan."""
    page = Image.new("L", (760, 680), 255)
    pen = ImageDraw.Draw(page)
    for size, top, text in LETTER:
        pen.text((50, top), text, 20, ImageFont.load_default(size))
    for size, top, text in PRICES:
        pen.text((700, top), text, 20, ImageFont.load_default(size), anchor="ra")
    page.save(folder / "invoice.png", optimize=True)
    turned = page.rotate(4, Image.Resampling.BICUBIC, expand=True, fillcolor=255)
    turned.quantize(16).save(folder / "turned.png", optimize=True)
    Image.new("L", (400, 300), 255).save(folder / "empty.png")
    (content,) = wheel_files.fetch("scikit-image", "0.26.0", SCAN).values()
    (folder / "scan.png").write_bytes(content)


def main() -> int:
    """Fetch, compare, write."""
    parser = argparse.ArgumentParser(description="Fetch the weights of PP-OCRv6.")
    parser.add_argument("--output", type=Path, default=HERE / "page.onnx", help="the other files lie beside it")
    parser.add_argument("--samples", action="store_true", help="write the sample images anew as well")
    options = parser.parse_args()
    try:
        files = wheel_files.fetch(PACKAGE, VERSION, FILES)
        if options.samples:
            samples(HERE / "samples")
    except wheel_files.WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    session = onnxruntime.InferenceSession(files[RECOGNITION], providers=["CPUExecutionProvider"])
    characters = session.get_modelmeta().custom_metadata_map["character"]
    wheel_files.write(options.output.with_name("recognition.onnx"), files[RECOGNITION])
    wheel_files.write(options.output.with_name("characters.txt"), characters.encode())
    wheel_files.write(options.output, files[DETECTION])
    print(f"wrote {options.output}: PP-OCRv6 of {PACKAGE} {VERSION}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
