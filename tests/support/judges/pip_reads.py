"""Read requirements files with pip's own parser: paths on standard input, pip's result for each as a line of JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pip._internal.exceptions import InstallationError
from pip._internal.index.collector import LinkCollector
from pip._internal.index.package_finder import PackageFinder
from pip._internal.models.search_scope import SearchScope
from pip._internal.models.selection_prefs import SelectionPreferences
from pip._internal.network.session import PipSession
from pip._internal.req.constructors import install_req_from_parsed_requirement
from pip._internal.req.req_file import parse_requirements
from pip._internal.utils.misc import is_installable_dir

_SESSION = PipSession()  # reads the certificates of the system, which takes longer than reading a file


def read(path: str) -> dict[str, object]:
    """Return the names that pip would install, or its error; pip runs in the folder of the file, as from TorchServe."""
    os.chdir(Path(path).parent)
    scope = SearchScope.create(find_links=[], index_urls=[], no_index=False)
    collector = LinkCollector(_SESSION, scope)
    finder = PackageFinder.create(link_collector=collector, selection_prefs=SelectionPreferences(allow_yanked=True))
    try:
        names = []
        for parsed in parse_requirements(path, session=_SESSION, finder=finder):
            requirement = install_req_from_parsed_requirement(parsed)
            link = requirement.link
            if link and link.is_file and link.file_path.startswith(str(Path.cwd())):
                if not Path(link.file_path).exists():
                    return {"error": f"{link.file_path} does not exist"}
                if requirement.editable and not is_installable_dir(link.file_path):
                    return {"error": f"{link.file_path} is no project"}
            names.append(requirement.name)
        return {"names": names}
    except (InstallationError, ValueError, LookupError) as error:  # a decoding error is a ValueError
        return {"error": f"{type(error).__name__}: {error}"}


for line in sys.stdin:
    sys.stdout.write(json.dumps(read(line.rstrip("\n"))) + "\n")
    sys.stdout.flush()
