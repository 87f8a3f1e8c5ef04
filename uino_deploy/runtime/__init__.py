"""Run a bundle without torch, triton or onnx."""
