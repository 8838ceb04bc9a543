"""Write the pages of the documentation that are made from code: docs/reference/ and docs/project/.

``scripts/docs`` runs this before it builds the site. Git ignores both folders.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import typer

from torchmar import recipe
from torchmar.cli import archiver, tensorflow_serving_flags, torchserve_flags
from torchmar.cli.app import app
from torchmar.deployment import desired
from torchmar.load import results
from torchmar.server.api import inference_openapi, management_openapi, metrics_openapi
from torchmar.server.api.console import openapi as console_openapi
from torchmar.server.config import key_descriptions, keys, settings

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

Schema = Mapping[str, Any]


def main() -> None:
    """Write all generated pages."""
    for folder in ("reference", "project"):
        shutil.rmtree(DOCS / folder, ignore_errors=True)
        (DOCS / folder).mkdir()
    for name, page in PAGES.items():
        (DOCS / name).write_text(page().rstrip() + "\n", encoding="utf-8")
        print(f"wrote docs/{name}")


# Commands


def commands() -> str:
    """Return the page of commands: Typer's own Markdown, with the commands listed by group first."""
    generator = [sys.executable, "-m", "typer", "torchmar.cli.app", "utils", "docs", "--name", "torchmar"]
    generated = subprocess.run(generator, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    sections = generated[generated.index("## `torchmar ") :]
    panels: dict[str, list[tuple[str, str]]] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        summary = (command.help or "").partition("\n\n")[0].replace("\n", " ")
        panels.setdefault(command.rich_help_panel or "", []).append((name, summary))
    lines = ["# Commands", "", COMMANDS_INTRODUCTION, ""]
    for panel, listed in panels.items():
        rows = [(f"[`torchmar {name}`](#torchmar-{name})", summary) for name, summary in listed]
        lines += [f"**{panel}**", "", *table(("command", "does"), rows), ""]
    for name, link in (("checks", "../checks.md"), ("differences", "../differences.md")):
        sections = sections.replace(f"docs/{name}.md", f"[{name}]({link})")
    lines.append(sections)
    for name, parser, introduction in (
        ("torchmar-archiver", archiver.argument_parser(), "The flags of torch-model-archiver, with the same meaning."),
        ("torchmar-serve", torchserve_flags.argument_parser(), "The flags of `torchserve`, for the built-in server."),
        (
            "torchmar-tfserving",
            tensorflow_serving_flags.argument_parser(),
            "The flags of `tensorflow_model_server`, for the built-in server.",
        ),
    ):
        parser.prog = name
        lines += [f"## `{name}`", "", introduction, "", "```text", parser.format_help().rstrip(), "```", ""]
    return "\n".join(lines)


COMMANDS_INTRODUCTION = """\
`torchmar COMMAND --help` prints the same. Results go to stdout, messages to stderr. Exit codes: 0 done, 1 an error or a
refusal, 2 wrong usage; `torchmar plan` exits with 2 when `apply` would change something."""


# Files that are described by a schema


def recipe_page() -> str:
    """Return the page of ``archive.yaml``."""
    return "\n".join(
        ["# Recipe: archive.yaml", "", RECIPE_INTRODUCTION, "", *schema_sections(recipe.schema(), "The recipe")]
    )


RECIPE_INTRODUCTION = """\
A recipe describes one archive: `archives/NAME/archive.yaml`. File names in it are relative to its folder.
`torchmar build` reports all problems of a recipe at once, each with its line. `torchmar schema` prints the JSON Schema
that this page is made from; editors complete and check recipes with it. [Package a model](../how-to/package-a-model.md)
explains the steps."""


def deployment_page() -> str:
    """Return the page of ``deployment.yaml``."""
    sections = schema_sections(desired.schema(), "The deployment")
    return "\n".join(["# Deployment: deployment.yaml", "", DEPLOYMENT_INTRODUCTION, "", *sections])


DEPLOYMENT_INTRODUCTION = """\
`deployment.yaml` lists what a server should serve. `torchmar deployment-schema` prints the JSON Schema that this page
is made from. [Deploy](../how-to/deploy.md) explains how `plan` and `apply` use it."""


def bench_report_page() -> str:
    """Return the page of the reports of ``torchmar bench``."""
    sections = schema_sections(results.json_schema(), "The report")
    return "\n".join(["# Reports of load", "", BENCH_REPORT_INTRODUCTION, "", *sections])


BENCH_REPORT_INTRODUCTION = """\
`torchmar bench` writes a report as JSON; `torchmar bench compare` reads two of them.
[bench-report.schema.json](../bench-report.schema.json) is the JSON Schema that this page is made from. Later versions
add keys, which readers must ignore; after any other change, `schema` has another value than `torchmar-bench/1`.
[Measure](../how-to/measure.md) explains how to read a report. Times are in milliseconds or seconds, by the names of
keys, which end in `_ms` or `_s`; the histogram is in microseconds."""


def schema_sections(schema: Schema, title: str) -> list[str]:
    """Return a table of keys for an object's schema and for each object that it refers to."""
    lines: list[str] = []
    for heading, described in [(title, schema), *_by_first_use(schema)]:
        if "properties" not in described:
            continue
        if described is not schema:
            heading = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", heading).capitalize()
        lines += [f"## {heading}", "", described.get("description", ""), ""]
        required = described.get("required", ())
        rows = [
            (f"`{key}`", type_of(value), default_of(value, key in required), value.get("description", ""))
            for key, value in described["properties"].items()
        ]
        lines += [*table(("key", "type", "default", "meaning"), rows), ""]
    return lines


def _by_first_use(schema: Schema) -> Iterator[tuple[str, Schema]]:
    """Yield the objects that a schema refers to, each after the first object that refers to it."""
    seen: list[str] = []
    waiting = [schema]
    while waiting:
        for name in re.findall(r'"#/\$defs/(\w+)"', json.dumps({**waiting.pop(0), "$defs": None})):
            if name not in seen:
                seen.append(name)
                waiting.append(schema["$defs"][name])
                yield name, schema["$defs"][name]


def type_of(schema: Schema) -> str:
    """Return the type of a JSON Schema in words."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).capitalize()
        return f"[{words}](#{words.lower().replace(' ', '-')})"
    if arms := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(type_of(arm) for arm in arms if arm.get("type") != "null"))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type")
    if kind == "array" and "prefixItems" in schema:
        return f"[{', '.join(type_of(item) for item in schema['prefixItems'])}]"
    if kind == "array":
        return f"list of {type_of(schema.get('items', {}))}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {type_of(values)}" if isinstance(values, dict) and values else "mapping"
    low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1 if "exclusiveMinimum" in schema else None)
    high = schema.get("maximum")
    bounds = [] if low is None else [f"≥ {low:g}" if high in (None, 2**31 - 1) else f"from {low:g} to {high:g}"]
    names = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    return " ".join([names.get(str(kind), "any value"), *bounds])


def default_of(schema: Schema, required: bool) -> str:
    """Return the default of a key, or that it is required; empty: no value is the default."""
    if required:
        return "required"
    default = schema.get("default")
    return "" if default is None or isinstance(default, dict | list) else f"`{json.dumps(default)}`"


# config.properties


def configuration() -> str:
    """Return the page of the keys of ``config.properties``."""
    lines = ["# Configuration: config.properties", "", CONFIGURATION_INTRODUCTION, ""]
    described = key_descriptions.DESCRIPTIONS
    for group in key_descriptions.GROUPS:
        rows = [
            (
                f"`{key}`",
                described[key].text,
                described[key].default or _default(keys.SUPPORTED_KEYS[key].field),
                f"`{keys.SUPPORTED_KEYS[key].example}`",
            )
            for key in sorted(keys.SUPPORTED_KEYS)
            if described[key].group == group
        ]
        lines += [f"## {group}", "", *table(("key", "meaning", "default", "example"), rows), ""]
    irregular = sorted({*keys.SUPPORTED_KEYS} - {*keys.VARIABLES.values()} - {"ts_open_inference_protocol"})
    without_variable = ", ".join(f"`{key}`" for key in irregular if not key.startswith(keys.OWN_PREFIX))
    lines += [
        "## Variables",
        "",
        VARIABLES_INTRODUCTION,
        f"- These keys have no variable: {without_variable}, and those of torchmar.",
        "",
    ]
    ignored = ", ".join(f"`{key}`" for key in sorted(keys.IGNORED_KEYS))
    lines += ["## Keys without effect", "", IGNORED_INTRODUCTION, "", f"{ignored}."]
    return "\n".join(lines)


def _default(field: str) -> str:
    """Return the default of a field of the server's settings, in the form of a configuration file."""
    default = next(setting.default for setting in dataclasses.fields(settings.Settings) if setting.name == field)
    if default is None or default == "":
        return "none"
    return f"`{default:g}`" if isinstance(default, float) else f"`{str(default).lower()}`"


CONFIGURATION_INTRODUCTION = """\
`torchmar serve` and `torchmar-serve` read TorchServe's `config.properties`. This page lists the keys that the built-in
server uses. Keys that begin with `torchmar_` are its own.

The value of a key is the first of these that exists:

1. The variable [with the key's name](#variables), if the file has `enable_envvars_config=true`.
2. The command line, such as `torchmar-serve --model-store ...`.
3. The file. `$$NAME$$` in a value is replaced by the environment variable `NAME`.

A wrong value keeps the server from starting. All wrong values are reported at once:

```text
error: config.properties: max_request_size=lots: not a whole number of at least 1
hint: write it like max_request_size=6553500
```

An unknown key is reported with the most similar known one: in `logs/server.log`, by `torchmar-serve` and by
`torchmar doctor`."""

VARIABLES_INTRODUCTION = """\
The variable of a key is `TS_` and the key in capitals: `TS_JOB_QUEUE_SIZE` sets `job_queue_size`. The exceptions are
TorchServe's:

- `TS_TOKEN_EXPIRATION_TIME_MIN` sets `token_expiration_min`.
- `TS_ALLOWED_URLS` also needs `use_env_allowed_urls=true` in the file.
- `TS_OPEN_INFERENCE_PROTOCOL=oip` needs no `enable_envvars_config`."""
IGNORED_INTRODUCTION = """\
These keys of TorchServe configure Java, its threads, or features that the built-in server does not have (workflows,
plugins, sequences, the C++ backend). The server logs each of them once at the start. A `keystore` is refused if an
address is https; the error contains the two `openssl` commands that convert it to a key and a certificate."""


# HTTP


def http() -> str:
    """Return the page of the HTTP APIs, from the OpenAPI documents that the server returns."""
    lines = ["# HTTP APIs", "", HTTP_INTRODUCTION, ""]
    for title, document in (
        ("Inference", inference_openapi.describe(tokens=True)),
        ("Management", management_openapi.management(True)),
        ("Metrics", metrics_openapi.description()),
        ("Console", console_openapi.description(True)),
    ):
        lines += [f"## {title} API", "", document["info"].get("description", ""), ""]
        schemas = document.get("components", {}).get("schemas", {})
        for paths, method, operation in _operations(document):
            lines += _operation(title, paths, method, operation)
        for name, schema in schemas.items():
            lines += [f"### {title} schema {name} {{ #{title.lower()}-{name.lower()} }}", ""]
            if "properties" not in schema:
                lines += [f"A {_linked(title, schema)}.", ""]
                continue
            rows = [
                (f"`{key}`", _linked(title, value), value.get("description", ""))
                for key, value in schema["properties"].items()
            ]
            lines += [*table(("key", "type", "meaning"), rows), ""]
    return "\n".join(lines)


HTTP_INTRODUCTION = """\
The APIs of the built-in server, from the OpenAPI documents that it returns. `OPTIONS /` of the inference and of
the management API returns its document, without a token; client generators read it. Paths and answers are
TorchServe's; [Differences from TorchServe](../differences.md) lists the exceptions. Requests send a token as
`Authorization: Bearer TOKEN` if the entry says so ([Secure a server](../how-to/secure-a-server.md))."""


def _operations(document: Schema) -> Iterator[tuple[list[str], str, Schema]]:
    """Yield the operations with their paths; the paths of a model and of one of its versions are one operation."""
    merged: dict[str, tuple[list[str], str, Schema]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            common = {**operation, "operationId": "", "parameters": _parameters(operation)}
            key = json.dumps([method, common], sort_keys=True)
            merged.setdefault(key, ([], method, operation))[0].append(path)
    yield from merged.values()


def _parameters(operation: Schema) -> list[Schema]:
    return [parameter for parameter in operation.get("parameters", ()) if parameter["in"] != "path"]


def _operation(title: str, paths: Sequence[str], method: str, operation: Schema) -> list[str]:
    lines = [f"### `{method.upper()} {paths[0]}`", "", operation["description"]]
    if others := ", ".join(f"`{path}`" for path in paths[1:]):
        lines[-1] += f" Also {others}."
    if operation.get("security"):
        lines[-1] += f" Needs the {title.lower()} token."
    lines.append("")
    if parameters := _parameters(operation):
        rows = [
            (
                f"`{parameter['name']}`",
                parameter["in"],
                _linked(title, parameter["schema"]) + (", required" if parameter.get("required") else ""),
                parameter.get("description", ""),
            )
            for parameter in parameters
        ]
        lines += [*table(("parameter", "in", "type", "meaning"), rows), ""]
    if body := operation.get("requestBody"):
        kinds = ", ".join(f"`{kind}`" for kind in body["content"])
        lines += [f"Request body{'' if body.get('required') else ' (may be empty)'}: {kinds}.", ""]
    responses: list[tuple[str, str, str]] = []
    for status, response in operation["responses"].items():
        content = response.get("content", {})
        schema = next((media_type.get("schema") or {} for media_type in content.values()), {})
        described = _linked(title, schema) if "$ref" in schema or schema.get("type") == "array" else ""
        responses.append((status, response["description"], described or ", ".join(f"`{kind}`" for kind in content)))
    return [*lines, *table(("status", "meaning", "body"), responses), ""]


def _linked(title: str, schema: Schema) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{title.lower()}-{name.lower()})"
    if schema.get("type") == "array":
        return f"list of {_linked(title, schema.get('items', {}))}"
    if arms := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_linked(title, arm) for arm in arms)
    if isinstance(values := schema.get("additionalProperties"), dict) and values:
        return f"mapping to {_linked(title, values)}"
    return type_of(schema)


# gRPC


def grpc() -> str:
    """Return the page of the gRPC services, from the ``.proto`` files."""
    lines = ["# gRPC APIs", "", GRPC_INTRODUCTION, ""]
    for name, heading in (
        ("inference", "Inference"),
        ("management", "Management"),
        ("open_inference", "Open Inference Protocol"),
    ):
        source = (ROOT / "torchmar" / "grpc" / "wire" / f"{name}.proto").read_text(encoding="utf-8")
        package = re.findall(r"^package ([\w.]+);", source, re.MULTILINE)[0]
        service = re.findall(r"^service (\w+)", source, re.MULTILINE)[0]
        rows = [
            (f"`{call}`", f"`{request}`", f"`{response}`")
            for call, request, response in re.findall(r"rpc (\w+)\s*\(([^)]*)\)\s*returns\s*\(([^)]*)\)", source)
        ]
        lines += [f"## {heading}", "", f"Service `{package}.{service}`.", ""]
        lines += [*table(("call", "request", "response"), rows), ""]
        lines += [f'```proto title="torchmar/grpc/wire/{name}.proto"', source.rstrip(), "```", ""]
    return "\n".join(lines)


GRPC_INTRODUCTION = """\
The inference services answer at port 7070, the management service at port 7071. Both ports also have
`grpc.health.v1.Health` and server reflection. A token is metadata: `authorization: Bearer TOKEN`. `torchmar.grpc` has
Python clients ([Python API](python.md#torchmar.grpc.GrpcInference)); clients in other languages are generated from
these files."""


# Python


def python() -> str:
    """Return the page of the public Python API: one directive per name, which mkdocstrings replaces."""
    lines = ["# Python API", "", PYTHON_INTRODUCTION, ""]
    for heading, names in PUBLIC_NAMES.items():
        lines += [f"## {heading}", ""]
        for name in names:
            lines += [f"::: {name}", "    options:", f"      toc_label: {name.rpartition('.')[2]}", ""]
    lines += ["## Errors", "", "::: torchmar.errors", "    options:", "      show_root_heading: false", ""]
    return "\n".join(lines)


PUBLIC_NAMES = {
    "Build and inspect archives": (
        *("torchmar.build", "torchmar.BuiltArchive", "torchmar.Note", "torchmar.derive", "torchmar.import_archive"),
        *("torchmar.Archive", "torchmar.Member"),
    ),
    "Check archives": (
        *("torchmar.check", "torchmar.Finding", "torchmar.Code"),
        *("torchmar.run_samples", "torchmar.SampleReport", "torchmar.SampleResult"),
    ),
    "Run an archive without a server": ("torchmar.Worker", "torchmar.Request", "torchmar.Response"),
    "Test an archive with pytest": ("torchmar.testing.ArchiveWorker", "torchmar.testing.Answer"),
    "Use a running server": (
        *("torchmar.InferenceClient", "torchmar.Tensor", "torchmar.ManagementClient", "torchmar.RegisteredModel"),
        *("torchmar.ModelVersion", "torchmar.WorkerState", "torchmar.JobQueue", "torchmar.Endpoint"),
    ),
    "Use a running server over gRPC": (
        *("torchmar.grpc.GrpcInference", "torchmar.grpc.GrpcManagement", "torchmar.grpc.GrpcOpenInference"),
        *("torchmar.grpc.ModelMetadata", "torchmar.grpc.TensorMetadata"),
    ),
    "Guard a web application": (
        *("torchmar.guard.Guard", "torchmar.guard.Verdict", "torchmar.guard.as_text"),
        *("torchmar.guard.AsgiGuard", "torchmar.guard.WsgiGuard", "torchmar.guard.django.GuardMiddleware"),
    ),
    "Write a handler": ("torchmar_handlers.base.BaseHandler", "torchmar_handlers.request.Request"),
}
PYTHON_INTRODUCTION = """\
These names are the public Python API. All other names in `torchmar` are internal and may change in any version.

- `import torchmar` takes milliseconds: a name is imported when it is first used. torch is not imported.
- `torchmar.grpc` needs `pip install 'torchmar[grpc]'`, `Worker` and `run_samples` need `'torchmar[worker]'`.
- Every failure is a `torchmar.errors.TorchmarError` with a `message` and a `hint`.
- `torchmar.model_archiver` has torch-model-archiver's Python calls
  ([Move from TorchServe](../migrate/from-torchserve.md)).
- In a handler, `torchmar_handlers.base`, `torchmar_handlers.request` and the [handlers](../handlers.md) are
  public."""


# Files at the top of the repository

PROJECT_FILES = tuple(ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING", "SECURITY"))


def project_page(file: Path) -> str:
    """Return a top-level file of the repository with links that are valid in docs/project/."""
    text = file.read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/", "](../", text)
    for other in PROJECT_FILES:
        text = text.replace(f"]({other.name}", f"]({other.stem.lower()}.md")
    return text


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        cells = (" ".join(cell.split()).replace("|", "\\|") for cell in row)
        yield f"| {' | '.join(cells)} |"


PAGES: Mapping[str, Callable[[], str]] = {
    "reference/commands.md": commands,
    "reference/recipe.md": recipe_page,
    "reference/deployment.md": deployment_page,
    "reference/bench-report.md": bench_report_page,
    "reference/configuration.md": configuration,
    "reference/http.md": http,
    "reference/grpc.md": grpc,
    "reference/python.md": python,
    **{f"project/{file.stem.lower()}.md": partial(project_page, file) for file in PROJECT_FILES},
}

if __name__ == "__main__":
    main()
