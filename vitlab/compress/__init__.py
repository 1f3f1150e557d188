"""Small and fast: pruning, distillation, quantisation and ONNX.

Nothing is imported here: `vitlab.compress.session` must work where there is no torch. Import from the modules.
"""
