"""The commands that deploy archives on SageMaker: one model, or several behind one endpoint.

https://docs.aws.amazon.com/cli/latest/reference/sagemaker/create-model.html
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence

from torchmar.exporting import identifiers

#: The file with the only model of an endpoint; SageMaker extracts it to ``/opt/ml/model``.
FILE_NAME = "model.tar.gz"

_LONGEST = 63  # characters of a name

_HEAD = """\
#!/bin/sh
# Deploys {what} on SageMaker. Before: aws configure, and
#   export ROLE=arn:aws:iam::...:role/... BUCKET=...{image_example}
set -eu
cd "$(dirname "$0")"
: "${{ROLE:?export ROLE=the ARN of a role that SageMaker assumes}}"
: "${{BUCKET:?export BUCKET=a bucket, without s3://}}"
"""
_OWN = """\
region="${{AWS_REGION:-$(aws configure get region)}}"
registry="$(aws sts get-caller-identity --query Account --output text).dkr.ecr.$region.amazonaws.com"
IMAGE="$registry/torchmar:{configuration}"
aws ecr describe-repositories --repository-names torchmar >/dev/null 2>&1 ||
  aws ecr create-repository --repository-name torchmar
aws ecr get-login-password | docker login --username AWS --password-stdin "$registry"
docker build -t "$IMAGE" .
docker push "$IMAGE"
"""
_OTHER = """\
: "${{IMAGE:?export IMAGE=the URI of an image, such as one of the PyTorch containers of AWS with TorchServe}}"
"""
_ENDPOINT = """\
missing() {{
  ! aws sagemaker "describe-$1" "--$1-name" "$2" >/dev/null 2>&1
}}
if missing model {configuration}; then
  aws sagemaker create-model --model-name {configuration} --execution-role-arn "$ROLE" \\
    --primary-container "{{\\"Image\\": \\"$IMAGE\\", {data}}}"
fi
if missing endpoint-config {configuration}; then
  aws sagemaker create-endpoint-config --endpoint-config-name {configuration} \\
    --production-variants '{variants}'
fi
current=$(aws sagemaker describe-endpoint --endpoint-name {id} --query EndpointConfigName --output text 2>/dev/null ||
  true)
if [ -z "$current" ]; then
  aws sagemaker create-endpoint --endpoint-name {id} --endpoint-config-name {configuration}
elif [ "$current" != {configuration} ]; then
  aws sagemaker update-endpoint --endpoint-name {id} --endpoint-config-name {configuration}
else
  echo "{kept}"
fi
aws sagemaker wait endpoint-in-service --endpoint-name {id}
echo "aws sagemaker-runtime invoke-endpoint --endpoint-name {id}{target} --body fileb://FILE --content-type TYPE answer"
"""


def commands(names: Sequence[str], version: str = "", *, content: str = "", own_image: bool, gpus: bool = False) -> str:
    """Return a shell script that uploads models, and creates or updates an endpoint for them.

    Args:
        names: names of the models; several models are behind one endpoint, which loads each at its first request.
        version: version of the only model.
        content: digest of all deployed files of the only model. SageMaker's models cannot be changed, so that each
            content is a new model.
        own_image: whether an image of torchmar is built, pushed and used; otherwise the user names an image.
        gpus: whether the endpoint has a GPU.
    """
    several = len(names) > 1
    endpoint = identifier("models" if several else names[0])
    configuration = endpoint if several else _of_content(endpoint, version, content)
    variant = {
        "VariantName": "all",
        "ModelName": configuration,
        "InstanceType": "ml.g5.xlarge" if gpus else "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    files = [file_name(name) for name in names] if several else [FILE_NAME]
    folder = f"s3://$BUCKET/{configuration}"
    uploads = "".join(f'aws s3 cp {file} "{folder}/{file}"\n' for file in files)
    mode = '\\"Mode\\": \\"MultiModel\\", ' if several else ""
    url = f"{folder}/" if several else f"{folder}/{FILE_NAME}"
    values = {
        "what": f"{len(names)} models" if several else f"the model {names[0]}",
        "id": endpoint,
        "configuration": configuration,
        "image_example": "" if own_image else " IMAGE=...",
        "data": f'{mode}\\"ModelDataUrl\\": \\"{url}\\"',
        "variants": json.dumps([variant], indent=2),
        "kept": f"the endpoint {endpoint} stays as it is: it loads models from the bucket when they are called"
        if several
        else f"the endpoint {endpoint} stays as it is: it serves this archive already",
        "target": f" --target-model {files[0]}" if several else "",
    }
    image = _OWN if own_image else _OTHER
    return _HEAD.format(**values) + image.format(**values) + uploads + _ENDPOINT.format(**values)


def file_name(model: str) -> str:
    """Return the file of one of several models; requests name the model by it."""
    return f"{model}.tar.gz"


def identifier(name: str) -> str:
    """Return a model's name as a name of SageMaker: letters, digits and ``-``, a letter or digit at both ends."""
    return identifiers.identifier(name, allowed="A-Za-z0-9", longest=_LONGEST)


def _of_content(endpoint: str, version: str, content: str) -> str:
    """Return an identifier of SageMaker that is unique for the endpoint, the version and the content."""
    digest = hashlib.sha256(f"{endpoint} {version} {content}".encode()).hexdigest()[:8]
    plain = re.sub("[^A-Za-z0-9]+", "-", f"{endpoint}-{version}")[: _LONGEST - 9].strip("-")
    return f"{plain}-{digest}"
