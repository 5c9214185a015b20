"""PyTorch to ONNX: exact rewrites, passes over graphs, export, precisions, and what is made from what."""
