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
from vitlab.models.anatomy import find_anatomy
from vitlab.registry import Registry, unknown
from vitlab.schema import Anatomy, AttributionMap, ModelBundle

methods = Registry("explanation method")


@dataclass(frozen=True)
class Method:
    """An explanation method and its properties.

    compute(model, images, targets, **options): from the bundle, normalised images (B, 3, h, w) and
        the index of each image's target class (B,) to maps (B, rows, columns), as coarse as the
        method sees them. It is called with the model in evaluation mode, its parameters frozen and
        gradients on, and must treat every image by itself.
    shows: one sentence on what the map shows, with `{target}` for the class if the map depends on
        it.
    signed: whether negative values are evidence against the target.
    needs: fields of Anatomy of which at least one must not be empty.
    class_specific: whether the map depends on the target.
    complete: whether the values of a map add up to the target logit of the image minus that of a
        baseline image. Such a method has an option `baseline`.
    """

    compute: Callable[..., torch.Tensor]
    shows: str
    signed: bool
    needs: tuple[str, ...] = ()
    class_specific: bool = True
    complete: bool = False

    def suits(self, anatomy: Anatomy) -> bool:
        return not self.needs or any(getattr(anatomy, part) for part in self.needs)


def explanation(**properties):
    """Decorator: register a function as an explanation method of its own name, with these
    properties of Method.
    """

    def register(function):
        methods.register(Method(function, **properties), name=function.__name__)
        return function

    return register


def available() -> list[str]:
    """Names of all explanation methods."""
    return methods.names()


def suitable_methods(model: ModelBundle, among: Sequence[str] | None = None) -> list[str]:
    """Those of all methods, or of `among`, that can explain this model."""
    names = available() if among is None else among
    return [name for name in names if methods[name].suits(model.anatomy)]


def describe_map(method: str, target: str = "the class asked for") -> str:
    """One sentence on what a map of this method shows.

    >>> describe_map("saliency", "defective")  # doctest: +ELLIPSIS
    'Brighter areas are pixels whose small changes ... the score of defective, up or down.'
    """
    return methods[method].shows.replace("{target}", target)


def describe_methods(model: ModelBundle | None = None) -> pd.DataFrame:
    """One row for each method (that can explain the model, if given): method, family, signed,
    class_specific, complete, shows.

    family: attention, cam, gradients or perturbation. shows: see `describe_map`; the docstring of
    each method names its source and options.

    >>> describe_methods().set_index("method").loc["rollout", "family"]
    'attention'
    """
    rows = []
    for name in available() if model is None else suitable_methods(model):
        method = methods[name]
        row = {"method": name, "family": method.compute.__module__.rpartition(".")[2]}
        row |= {key: getattr(method, key) for key in ("signed", "class_specific", "complete")}
        rows.append({**row, "shows": describe_map(name)})
    return pd.DataFrame(rows).sort_values(["family", "method"], ignore_index=True)


def explain(
    model: ModelBundle,
    images: torch.Tensor,
    method: str,
    target: str | Sequence[str] | None = None,
    sample_ids: Sequence[str] | None = None,
    *,
    batch_size: int = 8,
    progress: bool = False,
    **options,
) -> AttributionMap:
    """One map for each image, enlarged to the size of the images; `describe_map` says what it
    shows.

    images: (N, 3, h, w), normalised by the model's transform, on any device. target: a class name
    for all images, one for each, or None for the predicted class. batch_size: images at once, which
    bounds the memory. progress: show a bar. options: of the method. The map of an image does not
    depend on the other images, and the model is left as it was.

    UserError for an unknown method, option or target, for a model or images that the method cannot
    take, where the target logit does not depend on what the method looks at, and for NaN in images,
    weights or maps.

    >>> from vitlab.models import build_model
    >>> model = build_model("vit_scratch", ["a", "b"], size=16, patch_size=8, embed_dim=8, depth=1)
    >>> images = torch.zeros(2, 3, 16, 16)
    >>> explain(model, images, "rollout").values.shape
    (2, 16, 16)
    """
    chosen = methods[method]
    _check_options(method, options)
    sample_ids = check_images(images, sample_ids, batch_size)
    _check_weights(model)
    size = tuple(images.shape[-2:])
    model = fit_anatomy(model, size)
    if not chosen.suits(model.anatomy):
        raise UserError(
            f"{method} needs {' or '.join(chosen.needs)}, and {model.name} has none"
            f" ({model.anatomy.reason}); methods that can explain it:"
            f" {', '.join(suitable_methods(model))}"
        )
    targets = None if target is None else _read_targets(model, target, len(images))
    weight = next(model.module.parameters())
    starts = range(0, len(images), batch_size)
    maps, indices = [], []
    with inspecting(model.module):
        for start in tqdm(starts, method, leave=False, unit="batch", disable=not progress):
            part = slice(start, start + batch_size)
            batch = images[part].to(weight.device, weight.dtype).detach().clone()
            if targets is None:
                with torch.no_grad():
                    index = model.module(batch).argmax(dim=1)
            else:
                index = torch.tensor(targets[part], device=weight.device)
            maps.append(_enlarge(chosen.compute(model, batch, index, **options), size))
            indices += index.tolist()
    names = tuple(model.classes[index] for index in indices)
    return AttributionMap(np.concatenate(maps), method, names, sample_ids, chosen.signed)


def check_images(
    images: torch.Tensor, sample_ids: Sequence[str] | None = None, batch_size: int = 1
) -> tuple[str, ...]:
    """The sample_ids, by default the numbers of the images; UserError for anything but finite float
    images (N, 3, h, w).
    """
    is_tensor = isinstance(images, torch.Tensor)
    if not is_tensor or images.ndim != 4 or not len(images) or not images.is_floating_point():
        what = f"{images.dtype} {tuple(images.shape)}" if is_tensor else type(images).__name__
        raise UserError(
            f"images must be a float tensor (N, 3, h, w) with at least one image, not {what}"
        )
    check_count("batch_size", batch_size)
    sample_ids = tuple(map(str, range(len(images)) if sample_ids is None else sample_ids))
    if len(sample_ids) != len(images):
        raise UserError(f"{len(sample_ids)} sample_ids for {len(images)} images; give one for each")
    bad = ~images.isfinite().flatten(1).all(dim=1)
    if bad.any():
        raise UserError(
            f"the image of sample {sample_ids[int(bad.int().argmax())]} holds NaN or infinite"
            f" values ({int(bad.sum())} of {len(images)} images do)"
        )
    return sample_ids


def fit_anatomy(model: ModelBundle, size: tuple[int, int]) -> ModelBundle:
    """The bundle with its anatomy for images of this size; UserError where the model cannot take
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


def _read_targets(model, target, count) -> list[int]:
    """The class index of each image."""
    names = [target] * count if isinstance(target, str) else list(target)
    if len(names) != count:
        raise UserError(f"{len(names)} targets for {count} images; name one class, or one for each")
    for name in names:
        if name not in model.classes:
            raise UserError(unknown("target", str(name), list(model.classes)))
    return [model.classes.index(name) for name in names]


def _enlarge(maps: torch.Tensor, size) -> np.ndarray:
    """(B, rows, columns) to (B, h, w), bilinear between the centres of the patches."""
    maps = maps.detach().float()[:, None]
    if maps.shape[-2:] != size:
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return maps[:, 0].cpu().numpy()


def _check_options(name, options) -> None:
    # after model, images and targets
    known = list(inspect.signature(methods[name].compute).parameters)[3:]
    for option in options:
        if option not in known:
            raise UserError(unknown(f"option of {name}", option, known))


def _check_weights(model) -> None:
    """Maps of NaN would not say where they come from."""
    for name, tensor in model.module.state_dict().items():
        if tensor.isnan().any():
            raise UserError(
                f"{name} of {model.name} holds NaN, as after training that diverged; load an"
                " earlier checkpoint"
            )
