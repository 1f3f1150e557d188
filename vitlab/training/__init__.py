"""Training: recipes, strategies, the loop, the frozen part computed once, checkpoints, predictions,
and whole runs.

Names are looked up when they are first used, so that checking the options of a run loads no torch.
"""

import lazy_loader

# the names are listed in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
