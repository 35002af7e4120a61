"""ONNX graphs rewritten for those who run them: passes in onnx_ir, without torch and without an engine."""
