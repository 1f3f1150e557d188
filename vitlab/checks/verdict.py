"""The verdict on a data set in sentences, and what to do next as commands."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import pandas as pd

from vitlab.checks.baseline import Probe
from vitlab.checks.result import FAIL, PASS, WARN, CheckResult
from vitlab.notebook import format_call
from vitlab.schema import DataBundle

METRIC = "balanced_accuracy"


def describe_verdict(results: Sequence[CheckResult], probe: Probe) -> str:
    """One or two sentences: whether scores on these data can be trusted, and what a simple model
    reaches. Where a check failed, the score is given with a warning.
    """
    counts = {
        status: [result for result in results if result.status == status]
        for status in (FAIL, WARN, PASS)
    }
    value, low, high = probe.value(METRIC)
    chance = 1 / len(probe.classes)
    score = f"a balanced accuracy of {value:.1%} [{low:.1%}, {high:.1%}]; chance is {chance:.1%}"
    if counts[FAIL]:
        names = ", ".join(result.title[0].lower() + result.title[1:] for result in counts[FAIL])
        opening = f"**Not ready: {_count(counts[FAIL])} failed** ({names})."
        closing = f"Until this is repaired, read the result of a simple model with care: {score}."
    elif low <= chance:
        opening = "**No signal found.**"
        closing = f"A simple model is not better than chance: {score}."
    elif counts[WARN]:
        opening = f"**Usable, with {_count(counts[WARN])} to look at.**"
        closing = f"A simple model reaches {score}."
    else:
        opening = f"**Ready: all {len(counts[PASS])} checks that apply passed.**"
        closing = f"A simple model reaches {score}."
    return f"{opening} {closing}"


def describe_data(data: DataBundle, facts: pd.DataFrame, group: str = "group") -> str:
    """How many images, classes and groups there are, and how large the images are."""
    first = data.read(data.samples["sample_id"].iloc[0])
    ends = []
    for name, all_alike in (("width", first.width), ("height", first.height)):
        values = facts[name] if name in facts else pd.Series([all_alike])
        ends.append((values.min(), values.max()))
    (narrow, wide), (low, high) = ends
    size = f"{narrow} × {low}" if (narrow, low) == (wide, high) else ""
    size = size or f"{narrow} to {wide} × {low} to {high}"
    groups = data.samples[group].nunique()
    of = f" and {groups:,} values of {group}" if groups > 1 else ""
    return f"{len(data.samples):,} images of {size} pixels in {len(data.classes)} classes{of}."


def _count(results: Sequence[CheckResult]) -> str:
    return f"{len(results)} check{'s' * (len(results) != 1)}"


def describe_next(results: Sequence[CheckResult], dataset: str, group: str = "") -> str:
    """What to do next, as Markdown with commands to paste; data that leak get a split that does
    not.
    """
    failed = {result.id for result in results if result.status in (FAIL, WARN)}
    split = group if "VL003" in failed else "cluster" if "VL002" in failed else ""
    given = {"dataset": dataset, **({"split_by": split} if split else {})}
    calls = [
        format_call("03_finetune", {**given, "preset": "quick", "model": model})
        for model in ("hybrid_vit", "efficientnet_lite0")
    ]
    calls.append(format_call("08_compare", {"dataset": dataset}))
    return "\n\n".join(
        [
            "Look at the images closely:",
            _block(format_call("01_explore_data", given)),
            "Fine-tune a Vision Transformer, then a CNN, and compare them:",
            _block("\n".join(calls)),
            "Or make a project with a batch file and a report of its own:",
            _block(f"vitlab new my-project --data {shlex.quote(dataset)}"),
        ]
    )


def _block(text: str) -> str:
    return f"```\n{text}\n```"
