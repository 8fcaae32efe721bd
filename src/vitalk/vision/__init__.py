"""Images, token sets, quantization, cost accounting and the classifier that trains."""
