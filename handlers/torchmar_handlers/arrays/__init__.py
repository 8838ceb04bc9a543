"""Arrays of requests and answers, for models of tensors."""
