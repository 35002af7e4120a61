"""ONNX graphs rewritten for the runtimes that run them: passes in onnx_ir, without torch and without an engine."""
