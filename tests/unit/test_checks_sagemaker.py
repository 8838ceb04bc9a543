"""torchmar.checks.sagemaker reads the script of a package and what it imports."""

from __future__ import annotations

import io
from typing import IO

import pytest

from torchmar.checks import sagemaker


class Members:
    """The members of an archive that is not packed."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files
        self.sizes = {name: len(text) for name, text in files.items()}

    def open(self, name: str) -> IO[bytes]:
        return io.BytesIO(self._files[name].encode())


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"code/inference.py": "import net, torch, top", "code/net.py": "", "top.py": ""}, []),
        ({"model.pt": ""}, []),
        ({"code/inference.py": "import pandas"}, [("MAR309", "code/inference.py:1")]),
        ({"code/inference.py": "import pandas", "r.txt": "pandas==2"}, []),
        ({"code/inference.py": "from net import Net", "code/net.py": ""}, [("MAR305", "code/inference.py:1")]),
        ({"code/inference.py": "import net", "code/net.py": "def"}, [("MAR303", "code/net.py:1")]),
        ({"code/serve.py": "def", "c.yaml": "handler: {program: serve.py}"}, [("MAR303", "code/serve.py:1")]),
        ({"code/inference.py": "", "c.yaml": "handler: {program: serve.py}"}, [("MAR308", "c.yaml")]),
    ],
)
def test_the_script_is_read_with_code_first_on_the_path(files: dict[str, str], expected: list[tuple[str, str]]) -> None:
    findings = sagemaker.check(Members(files), "c.yaml", "r.txt")
    assert [(finding.code.name, finding.place) for finding in findings] == expected
