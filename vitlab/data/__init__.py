"""Data sets: registry, splits, transforms, and what to know about the images before training.

Names are looked up when they are first used, so that listing data sets loads no torch.
"""

import lazy_loader

# the names stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
