"""The commands that deploy an archive on Vertex AI.

https://cloud.google.com/sdk/gcloud/reference/ai/models/upload and .../ai/endpoints/deploy-model
"""

from __future__ import annotations

from torchmar.exporting import identifiers
from torchmar.platforms.vertex import FILE_NAME, HEALTH_ROUTE, PREDICT_ROUTE

#: Google's container with TorchServe, of https://cloud.google.com/vertex-ai/docs/predictions/pre-built-containers.
PREBUILT = "us-docker.pkg.dev/vertex-ai/prediction/pytorch-{device}.2-4:latest"

_HEAD = """\
#!/bin/sh
# Deploys the model {name} {version} on Vertex AI, or a new version of it. Before: gcloud auth login, and
#   export PROJECT=... REGION=us-central1 {variable}=...
set -eu
cd "$(dirname "$0")"
: "${{PROJECT:?export PROJECT=the id of your project}}"
: "${{REGION:=us-central1}}"
{required}
if gcloud ai models describe {id} --project="$PROJECT" --region="$REGION" >/dev/null 2>&1; then
  model="--parent-model=projects/$PROJECT/locations/$REGION/models/{id}"
else
  model=--model-id={id}
fi
"""
_OWN = """\
# The image has the model. The repository: gcloud artifacts repositories create NAME --repository-format=docker
image="$REGION-docker.pkg.dev/$PROJECT/$REPOSITORY/{id}:{tag}"
docker build -t "$image" .
docker push "$image"
gcloud ai models upload --project="$PROJECT" --region="$REGION" "$model" --display-name={id} \\
  --container-image-uri="$image" --container-ports=8080 \\
  --container-health-route={health} --container-predict-route={predict}
"""
_GOOGLES = """\
# Google's container with TorchServe demands a folder with a file of exactly this name.
gcloud storage cp {file} "gs://$BUCKET/{id}/{tag}/{file}"
gcloud ai models upload --project="$PROJECT" --region="$REGION" "$model" --display-name={id} \\
  --container-image-uri={image} \\
  --artifact-uri="gs://$BUCKET/{id}/{tag}"
"""
_DEPLOY = """\
find_endpoint() {{
  gcloud ai endpoints list --project="$PROJECT" --region="$REGION" \\
    --filter=displayName={id} --format='value(name)' --limit=1
}}
if [ -z "$(find_endpoint)" ]; then
  gcloud ai endpoints create --project="$PROJECT" --region="$REGION" --display-name={id}
fi
endpoint=$(find_endpoint)
gcloud ai endpoints deploy-model "$endpoint" --project="$PROJECT" --region="$REGION" --model={id} \\
  --display-name={id} --machine-type={machine}{accelerator} \\
  --min-replica-count=1 --traffic-split=0=100
echo "gcloud ai endpoints predict $endpoint --project=$PROJECT --region=$REGION --json-request=FILE"
"""


def commands(name: str, version: str, *, own_image: bool, gpus: bool = False) -> str:
    """Return a shell script that uploads a model, creates an endpoint and deploys the model there.

    Args:
        name: name of the model.
        version: version of the archive.
        own_image: whether an image of torchmar is built, pushed and used; otherwise Google's image.
        gpus: whether the endpoint has a GPU.
    """
    model_id = identifier(name)
    values = {
        "name": name,
        "version": version,
        "id": model_id,
        "tag": identifiers.identifier(version, allowed="A-Za-z0-9_.", longest=128),
        "file": FILE_NAME,
        "health": HEALTH_ROUTE,
        "predict": PREDICT_ROUTE,
        "image": PREBUILT.format(device="gpu" if gpus else "cpu"),
        "machine": "g2-standard-4" if gpus else "n1-standard-4",
        "accelerator": " --accelerator=type=nvidia-l4,count=1" if gpus else "",
        "variable": "REPOSITORY" if own_image else "BUCKET",
    }
    required = (
        ': "${REPOSITORY:?export REPOSITORY=a Docker repository of Artifact Registry}"'
        if own_image
        else ': "${BUCKET:?export BUCKET=a bucket, without gs://}"'
    )
    return "".join(
        part.format(**values, required=required) for part in (_HEAD, _OWN if own_image else _GOOGLES, _DEPLOY)
    )


def identifier(name: str) -> str:
    """Return a model's name as an identifier of Vertex AI: lower case, digits, ``-``, ``_``, a letter first."""
    return identifiers.identifier(name, allowed="a-z0-9_", longest=63, letter_first=True)
