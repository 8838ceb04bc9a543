"""Routes and documents of the inference, management and metrics APIs over HTTP."""
