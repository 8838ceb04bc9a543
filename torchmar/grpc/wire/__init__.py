"""Messages of TorchServe's services: contracts (``.proto``), and the generated modules."""
