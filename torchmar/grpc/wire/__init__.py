"""Messages of TorchServe's services: contracts (``.proto``), and what is generated from them."""
