"""KV-shared attention for released ONNX Runtime."""
