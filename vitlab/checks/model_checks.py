"""VL015 to VL019: explanations, compression, and how the test split and the runs were used."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from vitlab.checks.result import FAIL, NOT_APPLICABLE, PASS, WARN, CheckResult, check
from vitlab.data import data_version
from vitlab.errors import UserError
from vitlab.explain.similarity import CHANGES, UNCHANGED
from vitlab.explain.trust import BETTER
from vitlab.runs import find_runs, list_versions

MIN_AGREEMENT = 0.98  # share of images to which a compressed model gives the same class
MAX_SETTINGS = 10  # of one model, scored on the same test images


def check_explanations(
    trust: pd.DataFrame, sanity: Mapping[str, pd.DataFrame]
) -> list[CheckResult]:
    """VL015 and VL016, from `trust_table` and the `sanity_verdicts` of each test by name."""
    return [check_trust(trust), check_sanity(sanity)]


@check(
    "VL015",
    "Explanations no better than a control",
    rule="Warns if no method is better than random maps, a centre blob and an edge detector on most"
    " measures; fails if none is on any measure",
    advice="Do not show these maps as reasons; test more images (test_images), or another model",
)
def check_trust(trust: pd.DataFrame) -> tuple:
    known = trust.dropna(subset=["difference"])
    if known.empty:
        return NOT_APPLICABLE, "no method was measured", {}
    share = (known["verdict"] == BETTER).groupby(known["method"]).mean()
    best = share.idxmax()
    text = f"{best.replace('_', ' ')} is better than all controls on {share.max():.0%} of the"
    text += f" measures, the best of {len(share)} methods"
    status = PASS if share.max() > 0.5 else WARN if share.max() > 0 else FAIL
    return status, text, {"method": best, "share": float(share.max())}


@check(
    "VL016",
    "Explanations that do not change with the model",
    rule="Warns if a method's maps are shown to stay the same when weights or labels are random;"
    " fails if no method's maps are shown to change",
    advice="Do not use these methods for this model: they show the image",
)
def check_sanity(sanity: Mapping[str, pd.DataFrame]) -> tuple:
    verdicts = pd.concat(list(sanity.values()))
    fixed = sorted(set(verdicts.loc[verdicts["verdict"] == UNCHANGED, "method"]))
    changing = sorted(set(verdicts.loc[verdicts["verdict"] == CHANGES, "method"]) - set(fixed))
    text = f"maps of {len(changing)} of {verdicts['method'].nunique()} methods change"
    text += f"; unchanged: {', '.join(fixed).replace('_', ' ')}" if fixed else ""
    status = FAIL if not changing else WARN if fixed else PASS
    return status, text, {"unchanged": fixed}


@check(
    "VL017",
    "The compressed model answers otherwise, or is slower",
    rule=f"Warns if the smallest file gives another class for more than {1 - MIN_AGREEMENT:.0%} of"
    " the test images or is slower for one image; fails if its balanced accuracy is worse",
    advice="Take another variant, as notebook 06 recommends",
)
def check_compression(benchmark: pd.DataFrame) -> tuple:
    """VL017, from the `benchmark_table` of the test split; its first variant is the full model."""
    single = benchmark[benchmark["batch_size"] == benchmark["batch_size"].min()]
    row = single.loc[single["size_mb"].idxmin()]
    text = f"{row['variant']} ({row['size_mb']:.1f} MB) gives the same class for"
    text += f" {row['agreement']:.1%} of the images; {row['quality'] or 'quality not compared'}"
    numbers = {"variant": row["variant"], "agreement": float(row["agreement"])}
    if row["quality"] == "worse":
        return FAIL, text, numbers
    changed = row["agreement"] < MIN_AGREEMENT or row["speed"] == "slower"
    return WARN if changed else PASS, text, numbers


def check_runs(dataset: str) -> list[CheckResult]:
    """VL018 and VL019 for the finished runs of a data set."""
    runs = find_runs(dataset)
    return [check_test_use(runs), check_current(runs, dataset)]


@check(
    "VL018",
    "The test split was used more than once",
    rule=f"Warns if more than {MAX_SETTINGS} settings of one model were scored on the test images"
    " of one seed: whoever takes the best of them has fitted the test split",
    advice="Choose on the validation split (notebook 07), and score the test split once",
)
def check_test_use(runs: list) -> tuple:
    settings: dict[tuple, set] = {}
    for run in runs:
        options = repr(sorted(run.options.items(), key=str))
        settings.setdefault((run.title, run.draw), set()).add(options)
    if not settings:
        return NOT_APPLICABLE, "there are no runs", {}
    (model, draw), most = max(settings.items(), key=lambda item: len(item[1]))
    text = f"the most settings of one model on the same test images: {len(most)}"
    if len(most) > MAX_SETTINGS:
        text = f"{len(most)} settings of {model} were scored on the test images of seed {draw}"
        return WARN, text, {"settings": len(most)}
    return PASS, text, {"settings": len(most)}


@check(
    "VL019",
    "Results older than the data",
    rule="Warns if a run was made with another version of the data set, of vitlab, Python or a"
    " package that results depend on (torch, timm, scikit-learn, ...) than the present ones",
    advice="Run the batch again; it repeats what is out of date",
)
def check_current(runs: list, dataset: str) -> tuple:
    if not runs:
        return NOT_APPLICABLE, "there are no runs", {}
    try:
        present = data_version(dataset)
    except UserError:
        present = ""
    versions = list_versions()
    old = [
        run.name
        for run in runs
        if run.info.get("versions", versions) != versions
        or (present and run.facts.get("data_version", present) != present)
    ]
    text = f"{len(old)} of {len(runs)} runs were made with other versions of data or packages"
    return WARN if old else PASS, text, {"runs": old}
