"""Options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
        help="The API's address; default: what the run folder says.",
        show_default=False,
        rich_help_panel=WHERE,
    ),
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        help="The server's key_file.json; default: the run folder's.", show_default=False, rich_help_panel=WHERE
    ),
]

Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Load only archives that torchmar check has no error for.")
]
CHECKS = "docs/checks.md"


def _known_codes(codes: list[str] | None) -> list[str] | None:
    from torchmar.checks.finding import unknown

    if strangers := unknown(codes or ()):
        raise typer.BadParameter(f"no code is called {strangers[0]} or starts so; they are in {CHECKS}")
    return codes


Ignore = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE",
        help="Ignore findings of this code, or of all that start so: MAR3; may be repeated.",
        callback=_known_codes,
        show_default=False,
    ),
]
Select = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CODE",
        help="Only findings of this code, or of all that start so; may be repeated.",
        callback=_known_codes,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
ServedFrom = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The server's configuration; default: config.properties, if there is one.",
        show_default=False,
    ),
]

HOW = "How to explain"
Method = Annotated[
    str | None,
    typer.Option(
        help="integrated_gradients, saliency, gradient_shap, occlusion, feature_ablation or grad_cam; "
        "default: the handler's.",
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
    typer.Option("--n-steps", min=1, help="Steps of the integral.", show_default=False, rich_help_panel=HOW),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        help="What the input is compared with: zeros, mean, blur or values.", show_default=False, rich_help_panel=HOW
    ),
]


def explanation(method: str | None, target: str | None, n_steps: int | None, baseline: str | None) -> dict[str, str]:
    """Return the headers by which a request says how it wants to be explained."""
    asked = {"Method": method, "Target": target, "N-Steps": n_steps, "Baseline": baseline}
    return {f"Explain-{name}": str(value) for name, value in asked.items() if value is not None}
