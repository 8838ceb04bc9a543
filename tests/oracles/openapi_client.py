"""Use the clients that openapi-python-client has generated: print what their calls return, as JSON.

Arguments: the folder with the packages ``inference_client`` and ``management_client``, the address and the token of
each API, a file with a request of KServe's first protocol.
"""

from __future__ import annotations

import json
import sys

folder, inference, inference_token, management, management_token, sample = sys.argv[1:]
sys.path.insert(0, folder)

from inference_client import AuthenticatedClient, Client  # noqa: E402
from inference_client.api.default import (  # noqa: E402
    kserve_v1_live,
    kserve_v1_models,
    kserve_v1_predictions,
    kserve_v2_metadata,
    ping,
)
from inference_client.models import Error, V1Request  # noqa: E402
from management_client import AuthenticatedClient as Management  # noqa: E402
from management_client.api.default import describe_model, list_models, register_model, set_auto_scale  # noqa: E402

results: dict[str, object] = {}
with Client(inference) as anybody:
    results["ping"] = ping.sync(client=anybody).to_dict()
    results["alive"] = kserve_v1_live.sync(client=anybody).to_dict()
with AuthenticatedClient(inference, inference_token) as client:
    with open(sample) as stream:
        request = V1Request.from_dict(json.load(stream))
    results["models"] = kserve_v1_models.sync(client=client).to_dict()
    results["predictions"] = kserve_v1_predictions.sync("digits", client=client, body=request).to_dict()
    results["metadata"] = kserve_v2_metadata.sync("digits", client=client).to_dict()
    missing = kserve_v1_predictions.sync("missing", client=client, body=request)
    assert isinstance(missing, Error)
    results["missing"] = missing.to_dict()
with Management(management, management_token) as client:
    (version,) = describe_model.sync("digits", client=client)
    results["described"] = {"name": version.model_name, "workers": [worker.status.value for worker in version.workers]}
    results["listed"] = [model.model_name for model in list_models.sync(client=client).models]
    results["scaled"] = set_auto_scale.sync("digits", client=client, min_worker=1, synchronous=True).to_dict()
    results["registered"] = register_model.sync(client=client, url_query="no-such.mar").to_dict()
print(json.dumps(results))
