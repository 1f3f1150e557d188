"""Smaller and faster models, and proof of it: pruning, distillation, quantisation, ONNX, token
merging, and what each costs.

Names are looked up when they are first used, so that what runs without torch
(`vitlab.compress.session`) loads none."""

import lazy_loader

# the names stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
