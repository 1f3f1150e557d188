"""Datasets: registry, splits, transforms, and what there is to know of the images before a model
sees them.

Names are looked up when they are first used: what only asks which data there are loads no torch.
"""

import lazy_loader

# the names stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
