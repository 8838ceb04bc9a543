"""Arguments and options of several commands, declared once."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Annotated, get_args

import typer
from typer.models import OptionInfo

from torchmar.engines import EngineName
from torchmar.platforms import VARIABLE, PlatformName


def in_panel(declared: object, panel: str, help: str = "") -> OptionInfo:
    """Return an option of several commands, for a panel in the help of one command.

    Args:
        declared: the type with the option: ``Annotated[T, in_panel(declared, panel)]``.
        panel: title of the panel; empty: none.
        help: text in place of the declared one; empty: the declared text.
    """
    option: OptionInfo = copy.copy(get_args(declared)[1])
    option.rich_help_panel = panel
    option.help = help or option.help
    return option


# Output.


def check_folder(file: Path | None, option: str) -> None:
    """Check that a file can be created, before steps that take minutes; None: there is no file to write.

    Raises:
        typer.BadParameter: the folder does not exist, or cannot be written; the file is a folder.
    """
    if file is None:
        return
    if file.is_dir():
        raise typer.BadParameter(f"{file} is a folder", param_hint=option)
    if not file.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {file.parent}", param_hint=option)
    if not os.access(file.parent, os.W_OK):
        raise typer.BadParameter(f"the folder {file.parent} cannot be written", param_hint=option)


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]

# An archive, and the requests that are measured with it.

ArchiveOrRecipe = Annotated[
    Path, typer.Argument(metavar="ARCHIVE|RECIPE", help="A .mar file, or a recipe or its folder.", show_default=False)
]
Budget = Annotated[str, typer.Option(metavar="TIME", help="The longest time that the command may take.")]

# A running server and its addresses.

WHERE = "Which server"
Name = Annotated[str, typer.Argument(help="The model's name.", show_default=False)]
Version = Annotated[str | None, typer.Option(help="The version; default: the default one.", show_default=False)]
RunFolder = Annotated[
    Path | None,
    typer.Option(
        help="The folder that torchmar serve runs with; default: .torchmar.",
        envvar="TORCHMAR_RUN_FOLDER",
        show_default=False,
        show_envvar=False,
        rich_help_panel=WHERE,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The API's address; default: that of the run folder's server.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
InferenceAddress = Annotated[
    str | None,
    typer.Option(
        "--inference", metavar="URL", help="The inference API's address.", show_default=False, rich_help_panel=WHERE
    ),
]
ManagementAddress = Annotated[
    str | None,
    typer.Option(
        "--management", metavar="URL", help="The management API's address.", show_default=False, rich_help_panel=WHERE
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="The server's key_file.json; default: the run folder's.", show_default=False, rich_help_panel=WHERE
    ),
]
CaFile = Annotated[
    Path | None,
    typer.Option(
        help="Certificates (PEM) to trust for https: the server's own, or those that sign it.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
PlainHttp = Annotated[
    bool,
    typer.Option(
        "--allow-plain-http",
        help="Send the token to another machine even without TLS.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
ServerModelStore = Annotated[
    Path | None,
    typer.Option(
        "--model-store",
        help="The server's model store; default: that of the run folder's server.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
Synchronous = Annotated[bool, typer.Option(help="Wait until the workers answer.")]
WorkersTimeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="How long to wait for the workers.")
]
ResponseTimeout = Annotated[
    float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="How long to wait for an answer.")
]

# A server to start, to stop or to examine.

Engine = Annotated[
    EngineName,
    typer.Option(
        help="builtin is torchmar's own server, without Java; ray is the same with workers on the nodes of a cluster; "
        "torchserve is TorchServe itself.",
        envvar="TORCHMAR_ENGINE",
        show_envvar=False,
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="With --engine ray: the head of the cluster; default: a cluster of this machine alone.",
        show_default=False,
    ),
]
Platform = Annotated[
    PlatformName | None,
    typer.Option(
        help="Follow the contract of a platform for containers: its variables, addresses and paths.",
        envvar=VARIABLE,
        show_default=False,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The server's configuration; default: config.properties, if there is one.",
        show_default=False,
    ),
]
ModelStore = Annotated[
    Path | None,
    typer.Option(
        "--model-store",
        help="The folder with the archives; default: the configuration's, or model_store.",
        show_default=False,
    ),
]
ServerFolder = Annotated[
    Path,
    typer.Option(
        "--run-folder",
        help="The folder of the server's token and logs.",
        envvar="TORCHMAR_RUN_FOLDER",
        show_envvar=False,
    ),
]
Port = Annotated[
    int | None,
    typer.Option(
        metavar="PORT",
        min=1,
        max=65535,
        help="The inference API's port; the other ports change with it.",
        show_default=False,
    ),
]

# Checks of archives.

Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Load only archives in which torchmar check finds no error.")
]
CHECKS = "docs/checks.md"


def _known_codes(codes: list[str] | None) -> list[str] | None:
    from torchmar.checks.finding import unknown

    if strangers := unknown(codes or ()):
        raise typer.BadParameter(f"no code is called {strangers[0]}, and none starts with it; {CHECKS} lists all")
    return codes


Ignore = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE",
        help="Ignore findings with this code, or with this prefix: MAR3. May be repeated.",
        callback=_known_codes,
        show_default=False,
    ),
]
Select = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE",
        help="Only findings with this code, or with this prefix. May be repeated.",
        callback=_known_codes,
        show_default=False,
    ),
]

# Explanations.

HOW = "How to explain"
Method = Annotated[
    str | None,
    typer.Option(
        help="integrated_gradients, saliency, gradient_shap, occlusion, feature_ablation, grad_cam or "
        "attention_rollout; default: the handler's.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        help="The class to explain, by label or index; default: the one predicted.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
Steps = Annotated[
    int | None,
    typer.Option(
        "--n-steps", metavar="N", min=1, help="Steps of the integral.", show_default=False, rich_help_panel=HOW
    ),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="The baseline to compare the input with: zeros, mean, blur or values.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]


def explain_headers(
    method: str | None, target: str | None, n_steps: int | None, baseline: str | None
) -> dict[str, str]:
    """Return the ``Explain-*`` headers of a request for an explanation."""
    options = {"Method": method, "Target": target, "N-Steps": n_steps, "Baseline": baseline}
    return {f"Explain-{name}": str(value) for name, value in options.items() if value is not None}


def share(text: str) -> float:
    """Return a share that is written as ``5%`` or ``0.05``.

    Raises:
        typer.BadParameter: the text has another form, or is negative.
    """
    try:
        value = float(text.strip().removesuffix("%")) / (100 if text.strip().endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise typer.BadParameter(f"{text!r} is no share: 5%, or 0.05")
    return value
