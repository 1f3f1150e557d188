"""Explanation methods by name, and the one function that applies them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from vitlab.errors import UserError
from vitlab.explain.inspection import check_count, inspecting
from vitlab.models import find_anatomy
from vitlab.registry import Registry, unknown
from vitlab.schema import Anatomy, AttributionMap, ModelBundle

methods = Registry("explanation method")


@dataclass(frozen=True)
class Method:
    """A way to explain and its properties.

    compute(model, images, targets, **options): from the bundle, normalised images (B, 3, h, w) and
        the weights (B, num_classes) of the logits whose sum is to be explained (1 for the target
        class, -1 for one it is held against), to maps (B, rows, columns), as coarse as the method
        sees them. It is called with the model in evaluation mode, its parameters frozen and
        gradients on, and must treat every image by itself.
    signed: whether negative values mean evidence against the target. needs: fields of Anatomy of
    which one at least must not be empty. class_specific: whether the map depends on the class asked
    for. complete: whether the map's values claim to add up to the difference between the score of
    the image and that of a baseline. shows: one sentence that is true of the map; `{target}` in it
    stands for the class asked for, in class-specific methods only."""

    compute: Callable[..., torch.Tensor]
    signed: bool
    needs: tuple[str, ...]
    shows: str
    class_specific: bool = True
    complete: bool = False

    def suits(self, anatomy: Anatomy) -> bool:
        return not self.needs or any(getattr(anatomy, part) for part in self.needs)


def explanation(
    *,
    signed: bool,
    shows: str,
    needs: tuple[str, ...] = (),
    class_specific: bool = True,
    complete: bool = False,
):
    """Decorator: make a function available as an explanation method under its own name (see
    Method).
    """

    def register(function):
        methods.register(
            Method(function, signed, needs, shows, class_specific, complete), name=function.__name__
        )
        return function

    return register


def available() -> list[str]:
    """Names of all explanation methods."""
    return methods.names()


def suitable_methods(model: ModelBundle, among: Sequence[str] | None = None) -> list[str]:
    """Those methods (of all, or of `among`, in that order) that can explain this model: rollout,
    say, needs attention.
    """
    return [
        name
        for name in (available() if among is None else among)
        if methods[name].suits(model.anatomy)
    ]


def describe_map(method: str, target: str = "the class asked for") -> str:
    """One sentence on what a map of this method shows.

    >>> describe_map("saliency", "defective")  # doctest: +ELLIPSIS
    'Brighter areas are pixels whose small changes ... the score of defective, up or down.'
    """
    return methods[method].shows.replace("{target}", target)


def describe_methods(model: ModelBundle | None = None) -> pd.DataFrame:
    """One row for each method: method, family, signed, class_specific, complete, shows.

    Given a model, only methods that can explain it. family: attention, cam, gradients or
    perturbation. shows: see `describe_map`; sources and options are in the docstrings.

    >>> table = describe_methods().set_index("method")
    >>> table.loc["rollout", "family"]
    'attention'
    """
    rows = []
    for name in available() if model is None else suitable_methods(model):
        method = methods[name]
        module = method.compute.__module__.rpartition(".")[2]
        rows.append(
            {
                "method": name,
                "family": "attention" if module == "rollout" else module,
                "signed": method.signed,
                "class_specific": method.class_specific,
                "complete": method.complete,
                "shows": describe_map(name),
            }
        )
    return pd.DataFrame(rows).sort_values(["family", "method"], ignore_index=True)


def explain(
    model: ModelBundle,
    images: torch.Tensor,
    method: str,
    target: str | Sequence[str] | None = None,
    sample_ids: Sequence[str] | None = None,
    *,
    versus: str | Sequence[str] | None = None,
    batch_size: int = 8,
    progress: bool = False,
    **options,
) -> AttributionMap:
    """One map for each image, enlarged to the images' size; `describe_map` says what it shows.

    images: (N, 3, h, w), normalised by the model's transform, on any device. target: a class name
    for all images, one for each, or None for the class that the model predicts; pass the labels to
    explain the true class. versus: a class (for all, or one for each) whose logit is subtracted:
    what speaks for the target rather than for this one? batch_size: images at once, which bounds
    the memory. progress: show a bar. options: of the method. The map of an image does not depend on
    the others, and the model is left as it was.

    ValueError for an unknown method, option or target, for a method that needs parts that this
    model does not have, for images of a size that it cannot take, where no gradient reaches what a
    method looks at, and for NaN in images, weights or maps.

    >>> from vitlab.models import build_model
    >>> model = build_model("vit_scratch", ["a", "b"], size=16, patch_size=8, embed_dim=8, depth=1)
    >>> images = torch.zeros(2, 3, 16, 16)
    >>> explain(model, images, "rollout").values.shape
    (2, 16, 16)
    """
    chosen = methods[method]
    _check_options(method, chosen, options)
    sample_ids = check_images(images, sample_ids, batch_size)
    model = fit_anatomy(model, tuple(images.shape[-2:]))
    if not chosen.suits(model.anatomy):
        raise UserError(
            f"{method} needs {' or '.join(chosen.needs)}, and {model.name} has none"
            f" ({model.anatomy.reason}); methods that can explain it:"
            f" {', '.join(suitable_methods(model))}"
        )
    targets = _read_classes(model, target, len(images), "target")
    against = _read_classes(model, versus, len(images), "versus")
    _check_weights(model)
    weight = next(model.module.parameters())
    maps = []
    starts = tqdm(
        range(0, len(images), batch_size),
        desc=method,
        leave=False,
        unit="batch",
        disable=not progress,
    )
    with inspecting(model.module):
        for start in starts:
            batch = (
                images[start : start + batch_size].to(weight.device, weight.dtype).detach().clone()
            )
            if target is None:
                targets += _predict(model, batch)
            part = slice(start, start + batch_size)
            # (B, num_classes)
            weights = _weigh_logits(model, targets[part], against[part], sample_ids[part]).to(batch)
            found = _enlarge(chosen.compute(model, batch, weights, **options), images.shape[-2:])
            _check_maps(method, found, sample_ids[part])
            maps.append(found)
    names, others = (
        tuple(model.classes[index] for index in indices) for indices in (targets, against)
    )
    return AttributionMap(np.concatenate(maps), method, names, sample_ids, chosen.signed, others)


@torch.no_grad()
def _predict(model, images) -> list[int]:
    return model.module(images).argmax(dim=1).tolist()


def _weigh_logits(model, targets, against, sample_ids) -> torch.Tensor:
    """(B, num_classes): 1 for the target, -1 for the class it is held against, 0 for the others."""
    weights = F.one_hot(torch.tensor(targets), len(model.classes))
    if not against:
        return weights
    for sample_id, index, other in zip(sample_ids, targets, against, strict=True):
        if index == other:
            raise UserError(
                f"target and versus of sample {sample_id} are both {model.classes[index]!r}, and"
                " the difference of a logit and itself is always 0; leave versus out, or name"
                " another class for this image"
            )
    return weights - F.one_hot(torch.tensor(against), len(model.classes))


def _enlarge(maps: torch.Tensor, size) -> np.ndarray:
    """(B, rows, columns) to (B, h, w), bilinear between the centres of the cells."""
    maps = maps.detach().float()[:, None]
    if maps.shape[-2:] != size:
        maps = F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
    return maps[:, 0].cpu().numpy()


def _check_options(name, method, options) -> None:
    known = list(inspect.signature(method.compute).parameters)[3:]  # after model, images, targets
    for option in options:
        if option not in known:
            raise UserError(
                unknown(f"option of {name}", option, known)
                if known
                else f"{name} has no options; leave {option} out"
            )


def check_images(
    images: torch.Tensor, sample_ids: Sequence[str] | None, batch_size: int
) -> tuple[str, ...]:
    """The images' sample_ids, by default their numbers; ValueError for anything but finite float
    images (N, 3, h, w).
    """
    if (
        not isinstance(images, torch.Tensor)
        or images.ndim != 4
        or not len(images)
        or not images.is_floating_point()
    ):
        what = (
            f"{images.dtype} {tuple(images.shape)}"
            if isinstance(images, torch.Tensor)
            else type(images).__name__
        )
        raise UserError(
            f"images must be a float tensor (N, 3, h, w) with at least one image, not {what}"
        )
    check_count("batch_size", batch_size)
    sample_ids = tuple(map(str, range(len(images)) if sample_ids is None else sample_ids))
    if len(sample_ids) != len(images):
        raise UserError(
            f"{len(sample_ids)} sample_ids for {len(images)} images; give one for each, in their"
            " order"
        )
    bad = ~images.isfinite().flatten(1).all(dim=1)
    if bad.any():
        raise UserError(
            f"the image of sample {sample_ids[int(bad.int().argmax())]} holds NaN or infinite"
            f" values ({int(bad.sum())} of {len(images)} images do); vitlab.data.preprocess(image,"
            " model.transform) gives finite ones"
        )
    return sample_ids


def _check_weights(model) -> None:
    """Maps of NaN would not say where they come from."""
    for name, tensor in model.module.state_dict().items():
        if tensor.isnan().any():
            raise UserError(
                f"{name} of {model.name} holds NaN, as after a training that diverged; load a"
                " checkpoint from before, or train again with a lower learning rate"
            )


def _check_maps(method, maps, sample_ids) -> None:
    bad = ~np.isfinite(maps).all(axis=(1, 2))
    if bad.any():
        raise UserError(
            f"the {method} map of sample {sample_ids[int(bad.argmax())]} holds NaN or infinite"
            " values, though image and weights do not: a number overflows on the way;"
            " model.module.float() computes in full precision"
        )


def fit_anatomy(model: ModelBundle, size: tuple[int, int]) -> ModelBundle:
    """The bundle with its anatomy for images of this size; ValueError where the model cannot take
    them.
    """
    if size == tuple(model.transform.size):
        return model
    try:
        return replace(model, anatomy=find_anatomy(model.module, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        height, width = model.transform.size
        raise UserError(
            f"{model.name} takes images of {height}x{width} pixels and cannot take"
            f" {size[0]}x{size[1]}; vitlab.data.preprocess(image, model.transform) makes them fit"
        ) from error


def _read_classes(model, given, count, what) -> list[int]:
    """Class indices, one for each image; none where nothing is given."""
    if given is None:
        return []
    if isinstance(given, int | np.integer):
        raise UserError(
            f"{what} takes the names of classes, not the index {given}; write"
            f" {what}=model.classes[{given}]"
        )
    names = [given] * count if isinstance(given, str) else list(given)
    if len(names) != count:
        raise UserError(
            f"{len(names)} names in {what} for {count} images; give one class name for all, or one"
            " for each image"
        )
    for name in names:
        if name not in model.classes:
            raise UserError(
                unknown(
                    what, str(name), list(model.classes), "model.classes[i] is the name of class i."
                )
            )
    return [model.classes.index(name) for name in names]
