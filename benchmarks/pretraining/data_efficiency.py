"""How much data a model needs: its scores on the test split when it is trained on a few images of
each class, and on more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from vitlab.data import load_dataset
from vitlab.data.splits import hash_number
from vitlab.errors import UserError
from vitlab.models import build_model
from vitlab.schema import DataBundle
from vitlab.training.config import recipe
from vitlab.training.experiment import predict
from vitlab.training.loop import fit

STEPS = 200  # of the optimizer at the least: few images are seen more often


def data_efficiency_table(
    dataset: str,
    models: Mapping[str, Mapping],
    images_per_class: Sequence[int],
    seeds: Sequence[int] = (0,),
    **overrides,
) -> Iterator[dict]:
    """A row for each model, number of images and seed, as it is measured: model, images_per_class,
    seed, epochs, accuracy, balanced_accuracy, roc_auc (one against the rest) on the test split.

    models: the name a row gets, to the arguments of `build_model`, `name` among them. The images of
    a smaller number are among those of a larger one, and the same for all models. 0 means all.
    overrides: of the recipe."""
    for seed in seeds:
        data = load_dataset(dataset, seed=seed)
        for count in images_per_class:
            few = keep_few(data, count, seed)
            for label, arguments in models.items():
                arguments = dict(arguments)
                model = build_model(arguments.pop("name"), data.classes, seed=seed, **arguments)
                config = recipe(model.name, data, seed=seed, **overrides)
                steps = -(-int((few.samples["split"] == "train").sum()) // config.batch_size)
                epochs = max(config.epochs, -(-STEPS // steps)) if count else config.epochs
                fit(model, few, config=replace(config, epochs=epochs))
                yield {
                    "model": label,
                    "images_per_class": count,
                    "seed": seed,
                    "epochs": epochs,
                    **_score(model, few),
                }


def keep_few(data: DataBundle, count: int, seed: int) -> DataBundle:
    """The data with `count` training images of each class (all where 0), which a hash of seed and
    sample_id chooses.

    Raises ValueError for a class that has fewer.
    """
    if not count:
        return data
    samples = data.samples
    train = samples[samples["split"] == "train"]
    sizes = train["label"].value_counts().reindex(list(data.classes), fill_value=0)
    if sizes.min() < count:
        raise UserError(
            f"{data.name} has {sizes.min()} training images of {sizes.idxmin()}, not {count}:"
            " choose fewer, or 0 for all"
        )
    order = train.iloc[
        np.argsort([hash_number(f"few {seed}", sample) for sample in train["sample_id"]])
    ]
    kept = order.groupby("label").head(count).index
    return replace(
        data,
        samples=samples[(samples["split"] != "train") | samples.index.isin(kept)].reset_index(
            drop=True
        ),
    )


def _score(model, data) -> dict[str, float]:
    table = predict(model, data, splits=("test",))
    probabilities = table[[f"prob_{name}" for name in data.classes]].to_numpy()
    truth = table["label"].to_numpy()
    order = np.argsort(data.classes)  # scikit-learn wants the classes sorted
    if len(data.classes) == 2:
        area = roc_auc_score(truth == data.classes[1], probabilities[:, 1])
    else:
        names = np.array(data.classes)[order]
        area = roc_auc_score(truth, probabilities[:, order], multi_class="ovr", labels=names)
    return {
        "accuracy": accuracy_score(truth, table["pred"]),
        "balanced_accuracy": balanced_accuracy_score(truth, table["pred"]),
        "roc_auc": float(area),
    }
