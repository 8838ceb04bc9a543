"""The common parts of the handlers that run packages of other tools: SageMaker's PyTorch toolkit, and MLflow."""
