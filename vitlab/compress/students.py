"""From a teacher's finished run to a student's, as one call."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from vitlab.compress.distillation import distill
from vitlab.data import load_dataset
from vitlab.models import build_model, load_model
from vitlab.runs import Run
from vitlab.training import fit_options, recipe
from vitlab.training.experiment import train_in_run

NOTHING: Mapping = MappingProxyType({})
SPLIT = ("split_by", "folds", "fold")  # parameters of a run by which its images were split


def finetune_student(
    teacher: Run, model: str, seed: int = 0, name: str = "", *, options: Mapping = NOTHING, how: Mapping = NOTHING, **overrides
) -> Run:
    """Distil the model of a finished run into a new one, and keep everything in a run with variant "distilled from <teacher>".

    The student is trained, validated and tested on the images that the teacher was, so neither has seen a test image.
    options: of `build_model`; how: of `distill`, such as temperature and alpha; overrides: of the student's recipe.
    """
    dataset = teacher.parameters["dataset"]
    data = load_dataset(dataset, samples=teacher.read_table("splits.csv"))
    config = recipe(model, data, seed=seed, **overrides)
    big = load_model(teacher.path, data.classes)
    student = build_model(model, data.classes, seed=seed, **fit_options(model, data, options))
    split = {key: teacher.parameters[key] for key in SPLIT if teacher.parameters.get(key) is not None}
    parameters = {"dataset": dataset, "model": model, "seed": seed, "variant": f"distilled from {teacher.title}", **split}
    parameters |= {"teacher": teacher.name, **options, **how, **overrides}
    return train_in_run(partial(distill, big, **how), student, data, config, parameters, name)
