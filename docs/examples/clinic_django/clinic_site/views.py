"""The page that assesses a sample."""

from __future__ import annotations

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from clinic_site import inference


@csrf_exempt  # it is called by programs, changes nothing and reads no cookie
@require_POST
def assess(request: HttpRequest) -> JsonResponse:
    """Return the model's answer to the JSON body of a request."""
    try:
        body = request.body
    except RequestDataTooBig:
        return JsonResponse({"success": False, "error": "the request is too large"}, status=413)
    status, document = inference.predict(body)
    return JsonResponse(document, status=status)
