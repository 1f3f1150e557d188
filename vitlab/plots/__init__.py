"""Every figure, from tables, arrays and maps; never from models. Never imports torch.

`plot_` functions draw with matplotlib on the axes given or on a new figure and return the axes;
they never call `show`. `iplot_` functions return an `Interactive` (Plotly or plain HTML) with a
matplotlib twin for where HTML cannot go."""

import lazy_loader

# the names stand in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
