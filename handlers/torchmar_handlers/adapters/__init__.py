"""What the handlers that run packages of other tools have in common: SageMaker's PyTorch toolkit, and MLflow."""
