"""Strict validators of objects of Kubernetes, KServe and KubeRay: an unknown key is an error. Nothing is downloaded."""

from __future__ import annotations

import gzip
import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

_SCHEMAS = Path(__file__).with_name("kserve_schemas")
_KUBERNETES = "1.37"
# They are read from their files for every object.
kubernetes_validate.utils.schema_contents = cache(kubernetes_validate.utils.schema_contents)
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # of libyaml, in a tenth of the time
# The used part of a ServiceMonitor, written by hand: its schema is in no package.
# https://github.com/prometheus-operator/prometheus-operator/blob/main/Documentation/api-reference/api.md
_SERVICE_MONITOR = {
    "properties": {
        "apiVersion": {"const": "monitoring.coreos.com/v1"},
        "kind": {"const": "ServiceMonitor"},
        "metadata": {"type": "object"},
        "spec": {
            "properties": {
                "selector": {"properties": {"matchLabels": {"type": "object"}}, "additionalProperties": False},
                "endpoints": {
                    "items": {
                        "properties": {name: {"type": "string"} for name in ("port", "interval", "path")},
                        "additionalProperties": False,
                    },
                    "minItems": 1,
                },
            },
            "required": ["selector", "endpoints"],
            "additionalProperties": False,
        },
    },
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
}
# The used part of a RayService, written by hand from its types in https://github.com/ray-project/kuberay
# (ray-operator/apis). Templates of pods are checked like those of Kubernetes.
_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_RAY_GROUP = {"rayStartParams": _STRINGS, "template": {"type": "object"}}
_RAY_SERVICE = {
    "properties": {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayService"},
        "metadata": {"type": "object"},
        "spec": {
            "properties": {
                "serveConfigV2": {"type": "string"},
                "upgradeStrategy": {
                    "properties": {"type": {"enum": ["NewCluster", "None"]}},
                    "additionalProperties": False,
                },
                "rayClusterConfig": {
                    "properties": {
                        "rayVersion": {"type": "string"},
                        "authOptions": {
                            "properties": {"mode": {"enum": ["token", "disabled"]}},
                            "additionalProperties": False,
                        },
                        "gcsFaultToleranceOptions": {
                            "properties": {
                                "redisAddress": {"type": "string"},
                                "redisPassword": {"type": "object", "required": ["valueFrom"]},
                            },
                            "required": ["redisAddress"],
                            "additionalProperties": False,
                        },
                        "headGroupSpec": {
                            "properties": _RAY_GROUP,
                            "required": ["template"],
                            "additionalProperties": False,
                        },
                        "workerGroupSpecs": {
                            "items": {
                                "properties": {
                                    "groupName": {"type": "string"},
                                    **{f"{name}eplicas": {"type": "integer"} for name in ("r", "minR", "maxR")},
                                    **_RAY_GROUP,
                                },
                                "required": ["groupName", "minReplicas", "maxReplicas", "template"],
                                "additionalProperties": False,
                            }
                        },
                    },
                    "required": ["headGroupSpec"],
                    "additionalProperties": False,
                },
            },
            "required": ["serveConfigV2", "rayClusterConfig"],
            "additionalProperties": False,
        },
    },
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
}


def objects(text: str) -> list[dict[str, Any]]:
    """Return the objects of a file, after a check of each.

    Raises:
        Exception: an object is not valid.
    """
    return deepcopy(_valid(text))


@cache
def _valid(text: str) -> list[dict[str, Any]]:
    documents = read(text)
    for document in documents:
        check(document)
    return documents


def read(text: str) -> list[dict[str, Any]]:
    """Return the objects of a file, without a check."""
    return deepcopy(_documents(text))


@cache
def _documents(text: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, Loader=_LOADER))


def check(document: dict[str, Any]) -> None:
    """Raise an error if an object is not valid, or has a key that its kind does not have."""
    if document["apiVersion"].startswith("serving.kserve.io/"):
        kind = document["kind"].replace("ClusterServing", "Serving").replace("Serving", "ClusterServing")
        error = next(_validator(f"{kind}-{document['apiVersion'].rpartition('/')[2]}").iter_errors(document), None)
        assert error is None, f"{error.json_path}: {error.message}"
    elif document["kind"] == "ServiceMonitor":
        jsonschema.validate(document, _SERVICE_MONITOR)
    elif document["kind"] == "RayService":
        jsonschema.validate(document, _RAY_SERVICE)
        cluster = document["spec"]["rayClusterConfig"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
            kubernetes_validate.validate(pod, _KUBERNETES, strict=True)
    else:
        kubernetes_validate.validate(document, _KUBERNETES, strict=True)


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    with gzip.open(_SCHEMAS / f"{name}.json.gz", "rt", encoding="utf-8") as stream:
        return jsonschema.Draft202012Validator(_closed(json.load(stream)))


def _closed(schema: Any) -> Any:
    """Return a schema whose objects permit only the keys that it lists."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        closed.setdefault("additionalProperties", False)
    return closed
