"""The client of the clinic model: a request with a timeout, and every failure as a status and a message."""

from __future__ import annotations

from typing import Any

import requests
from django.conf import settings


def predict(body: bytes) -> tuple[int, dict[str, Any]]:
    """Send a JSON body to the model.

    Args:
        body: ``{"image_data": [...], "text_data": "...", "patient_id": "...", "metadata": {...}}``.

    Returns:
        A status and the document of the contract: ``{"success": true, "data": {...}}`` or
        ``{"success": false, "error": "..."}``. The status is 200, 400 or 413 (the request is at fault), 502 (the server
        failed), 503 (it is down or busy) or 504 (it did not answer in time).
    """
    headers = {"Content-Type": "application/json"}
    if settings.CLINIC_TOKEN:
        headers["Authorization"] = f"Bearer {settings.CLINIC_TOKEN}"
    timeout = (settings.CLINIC_CONNECT_TIMEOUT, settings.CLINIC_TIMEOUT)
    try:
        response = requests.post(settings.CLINIC_URL, data=body, headers=headers, timeout=timeout)
        document = response.json()
    except requests.ReadTimeout:
        return _failed(504, f"the model did not answer within {settings.CLINIC_TIMEOUT:g} s")
    except (requests.ConnectionError, requests.ConnectTimeout):
        return _failed(503, "the server of the model cannot be reached")
    except requests.RequestException as error:  # an answer that is no HTTP or no JSON
        return _failed(502, f"the server of the model sent no answer that can be read: {type(error).__name__}")
    status = response.status_code
    if not isinstance(document, dict):
        return _failed(502, f"the server of the model sent {type(document).__name__}, not an object")
    if status == 200:
        return status, document
    # Errors of the server itself have no `success`. A wrong token is 400 there, and not the client's fault.
    passed = (400, 413) if "success" in document else (413, 503)
    message = str(document.get("error") or document.get("message") or response.reason)
    return _failed(status if status in passed else 502, message)


def _failed(status: int, message: str) -> tuple[int, dict[str, Any]]:
    return status, {"success": False, "error": message}
