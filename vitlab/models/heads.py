"""The classifier of a model: the linear layer it was built with, or a small network in its
place.
"""

from __future__ import annotations

from collections import OrderedDict

from timm.layers import trunc_normal_
from torch import nn

from vitlab.errors import UserError


def set_head(module: nn.Module, hidden: int = 0, dropout: float = 0.0) -> None:
    """Replace each linear classifier of the model by linear(hidden), Tanh, dropout, linear;
    hidden=0 changes nothing.

    Raises ValueError for a model whose classifier is not linear, and for numbers that make no
    network."""
    if hidden < 0 or not 0 <= dropout < 1:
        raise UserError(
            f"head_hidden={hidden}, head_dropout={dropout}: choose a width of at least 0 and a"
            " share below 1"
        )
    if not hidden:
        if dropout:
            raise UserError(
                "head_dropout is of the hidden layer in the head: set head_hidden as well, or use"
                " drop_rate"
            )
        return
    classifiers = module.get_classifier()
    for classifier in classifiers if isinstance(classifiers, tuple) else (classifiers,):
        if not isinstance(classifier, nn.Linear):
            raise UserError(
                f"head_hidden: the classifier of a {type(module).__name__} is not linear; leave"
                " head_hidden at 0"
            )
        path = next(name for name, part in module.named_modules() if part is classifier)
        parent, _, name = path.rpartition(".")
        setattr(
            module.get_submodule(parent),
            name,
            _build(classifier.in_features, hidden, classifier.out_features, dropout),
        )


def _build(width: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    hidden_layer, out = nn.Linear(width, hidden), nn.Linear(hidden, num_classes)
    head = nn.Sequential(
        OrderedDict(hidden=hidden_layer, act=nn.Tanh(), drop=nn.Dropout(dropout), out=out)
    )
    for layer in (hidden_layer, out):
        trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return head
