"""Parts of OpenAPI 3.0.1 documents (https://spec.openapis.org/oas/v3.0.1): operations, responses, schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torchmar

JSON = "application/json"
Schema = dict[str, Any]
Operation = dict[str, Any]

TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
ANYTHING: Schema = {}
BINARY: Schema = {"type": "string", "format": "binary"}
_INT32_MAX = (1 << 31) - 1


class Parameter(NamedTuple):
    """A parameter of an operation; parameters in the path are required.

    Attributes:
        location: ``path`` or ``query``.
        name: name of the parameter.
        schema: schema of its value.
        description: purpose of the parameter.
        required: whether the operation needs it.
    """

    location: str
    name: str
    schema: Schema
    description: str
    required: bool = False


def whole_number(least: int, most: int = _INT32_MAX) -> Schema:
    """Return the schema of a number of 32 bits."""
    return {"type": "integer", "format": "int32", "minimum": least, "maximum": most}


def array(items: Schema) -> Schema:
    """Return the schema of an array."""
    return {"type": "array", "items": items}


def record(properties: Mapping[str, Schema], optional: Mapping[str, Schema] | None = None) -> Schema:
    """Return the schema of an object with these properties; it may also have others.

    Args:
        properties: properties that are always present.
        optional: properties that may be missing.
    """
    required = {"required": list(properties)} if properties else {}  # OpenAPI 3.0 does not allow an empty one
    return {"type": "object", **required, "properties": {**properties, **(optional or {})}}


def reference(name: str) -> Schema:
    """Return a reference to a schema of the document's components."""
    return {"$ref": f"#/components/schemas/{name}"}


def response(description: str, schema: Schema | None = None, *content_types: str) -> dict[str, Any]:
    """Return a response, by default in JSON; without a schema, its content is not described."""
    if schema is None:
        return {"description": description}
    content = {content_type: {"schema": schema} for content_type in content_types or (JSON,)}
    return {"description": description, "content": content}


def operation(
    identity: str,
    description: str,
    responses: Mapping[str, Any],
    *,
    errors: Mapping[str, str] | None = None,
    parameters: tuple[Parameter, ...] = (),
    body: Mapping[str, Schema] | None = None,
    body_required: bool = True,
    token: str = "",
) -> Operation:
    """Return an operation.

    Args:
        identity: its id, unique in the document.
        description: its summary.
        responses: its responses, by status.
        errors: descriptions, by status, of responses with TorchServe's error body.
        parameters: parameters in the path and the query.
        body: schema of the request, by content type.
        body_required: whether a request needs a body.
        token: name of the security scheme; empty: no token is needed.
    """
    described: Operation = {
        "description": description,
        "operationId": identity,
        "parameters": [
            {
                "in": parameter.location,
                "name": parameter.name,
                "description": parameter.description,
                "required": parameter.required or parameter.location == "path",
                "schema": parameter.schema,
            }
            for parameter in parameters
        ],
        "responses": {
            **responses,
            **{status: response(text, reference("Error")) for status, text in (errors or {}).items()},
        },
    }
    if body is not None:
        content = {content_type: {"schema": schema} for content_type, schema in body.items()}
        described["requestBody"] = {"required": body_required, "content": content}
    if token:
        described["security"] = [{token: []}]
    return described


def document(
    title: str,
    description: str,
    paths: Mapping[str, Any],
    schemas: Mapping[str, Schema],
    *,
    token: str = "",
) -> dict[str, Any]:
    """Return a document; its schemas include that of errors.

    Args:
        title: title of the API.
        description: description of the API.
        paths: operations, by path and method.
        schemas: schemas of the components, by name.
        token: name of the security scheme; empty: the server has no tokens.
    """
    components: dict[str, Any] = {"schemas": {"Error": _ERROR, **schemas}}
    if token:
        text = f"The {token} token: of key_file.json, or the one that the server was configured with."
        components["securitySchemes"] = {token: {"type": "http", "scheme": "bearer", "description": text}}
    info = {"title": title, "description": description, "version": torchmar.__version__}
    return {"openapi": "3.0.1", "info": info, "paths": dict(paths), "components": components}


_ERROR = record(
    {
        "code": {"type": "integer", "description": "The HTTP status."},
        "type": {"type": "string", "description": "TorchServe's name of the error."},
        "message": {"type": "string", "description": "What is wrong."},
    }
)
