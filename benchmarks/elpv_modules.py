"""Which cell of ELPV belongs to which module: makes vitlab/data/elpv_modules.csv.

`python benchmarks/elpv_modules.py [--write]`. The cells of the package elpv-dataset come from 44
modules, 18 monocrystalline and 26 polycrystalline, but no file says which cell from which. The
rows of its labels.csv form ten runs of one cell type. Eight have the length of whole modules: 60
cells or a multiple, 72 and 48. Together they are 6 mono and 17 poly modules, so the other two
runs, of 714 mono and 530 poly cells, are 12 and 9 modules of 60 cells, with 6 and 10 cells missing.

Their borders are estimated from the images. A module is a block of neighbouring rows, at most 60,
whose features have a common mean: y ~ N(mean, 1), mean ~ N(0, tau^2), in the directions that
tell the 23 sure modules apart (linear discriminant analysis). A block has 60 cells with prior
probability .9. The forward-backward algorithm gives the posterior of every border. Neighbouring
cells are not independent, so the likelihood is raised to a power, chosen where the posterior is
calibrated in simulations: sure runs from which 1 to 10 cells were taken.

One module is there twice, sharp and blurred: rows 1734 to 1783 are near-duplicates, in this order,
of the first 50 rows of a sure module, 542 rows on. Its last ten have no partner, so a module of 50
cells ends there. Both photographs get one name. That leaves 43 modules."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from records import RESULTS, describe_machine
from scipy.linalg import eigh
from scipy.special import logsumexp
from sklearn.decomposition import PCA

import vitlab
from vitlab.checks.facts import fact_table
from vitlab.data.quality import _hash_images
from vitlab.files import write_json
from vitlab.training import embed_images

FULL = 60  # cells of a module
FULL_PRIOR = 0.9
UNSURE = {714: 12, 530: 9}  # cells of a run -> modules in it
DIRECTIONS = 24
POWERS = (1.0, 0.5, 0.25)
POWER = 0.25
REPEAT_DISTANCE = 40  # bits; other pairs of rows so far apart are rare
OUTPUT = Path(vitlab.__file__).parent / "data" / "elpv_modules.csv"


def discriminate(features: np.ndarray, module: np.ndarray, without=()) -> tuple:
    """Features (N, D) -> directions (N, k) in which the sure modules (`module` >= 0), but for those
    in `without`, have unit variance, and the variance (k,) of their means."""
    features = np.asarray(features, dtype=float)
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-9)
    if features.shape[1] > 64:
        features = PCA(64, svd_solver="full").fit_transform(features)
    sure = (module >= 0) & ~np.isin(module, without)
    rows = pd.DataFrame(features[sure])
    means = rows.groupby(module[sure])
    within = np.cov((rows - means.transform("mean")).T) + 1e-3 * np.eye(features.shape[1])
    values, vectors = eigh(np.cov(means.mean().T), within)
    best = np.argsort(-values)[:DIRECTIONS]
    return features @ vectors[:, best], np.maximum(values[best], 1e-2)


def border_posterior(
    y: np.ndarray, variance: np.ndarray, blocks: int, power: float, known: Sequence[int] = ()
) -> np.ndarray:
    """(blocks - 1, N + 1): the probability that block k + 1 begins at each row. known: rows at
    which some block begins."""
    n = len(y)
    missing = FULL * blocks - n
    y = y - y.mean(axis=0)
    sums = np.vstack([np.zeros(y.shape[1]), np.cumsum(y, axis=0)])
    squares = np.append(0.0, np.cumsum((y**2).sum(axis=1)))

    def block(a: int, b: int) -> float:
        size, total = b - a, sums[b] - sums[a]
        fit = -(squares[b] - squares[a]) + np.sum(total**2 / (size + 1 / variance))
        prior = FULL_PRIOR if size == FULL else (1 - FULL_PRIOR) / 10
        return np.log(prior) + power * (fit - np.log1p(size * variance).sum()) / 2

    def places(k: int) -> range:
        return range(max(0, k * FULL - missing), min(n, k * FULL) + 1)

    score = {
        (a, b): block(a, b)
        for k in range(blocks)
        for a in places(k)
        for b in places(k + 1)
        if 0 < b - a <= FULL and not any(a < row < b for row in known)
    }
    forward = np.full((blocks + 1, n + 1), -np.inf)
    backward = np.full((blocks + 1, n + 1), -np.inf)
    forward[0, 0] = backward[blocks, n] = 0
    for k in range(blocks):
        for b in places(k + 1):
            ways = [forward[k, a] + score[a, b] for a in places(k) if (a, b) in score]
            forward[k + 1, b] = logsumexp(ways) if ways else -np.inf
    for k in reversed(range(blocks)):
        for a in places(k):
            ways = [backward[k + 1, b] + score[a, b] for b in places(k + 1) if (a, b) in score]
            backward[k, a] = logsumexp(ways) if ways else -np.inf
    return np.exp(forward[1:blocks] + backward[1:blocks] - forward[blocks, n])


def image_confidence(posterior: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The block of each row with the likeliest borders, and its posterior probability."""
    n = posterior.shape[1] - 1
    block = np.searchsorted(posterior.argmax(axis=1), np.arange(n), side="right")
    begun = np.vstack([np.ones(n), posterior.cumsum(axis=1)[:, :n], np.zeros(n)])
    return block, begun[block, range(n)] - begun[block + 1, range(n)]


def find_repeat(hashes: np.ndarray) -> tuple[int, int, int]:
    """(first row, rows, distance in rows) of the longest stretch whose perceptual hashes (N, 255)
    are near those of another stretch, in the same order."""
    best = (0, 0, 0)
    for offset in range(FULL, len(hashes)):
        alike = (hashes[:-offset] != hashes[offset:]).sum(axis=1) <= REPEAT_DISTANCE
        ends = np.flatnonzero(np.diff(np.concatenate([[False], alike, [False]]).astype(int)))
        for start, end in ends.reshape(-1, 2):
            best = max(best, (start, end - start, offset), key=lambda found: found[1])
    return best


def simulate(features: np.ndarray, module: np.ndarray, runs: list, power: float) -> dict:
    """How often the likeliest border is right where 1 to 10 cells of a sure run are taken out."""
    rng = np.random.default_rng(1)
    confidence, right = [], []
    for blocks in runs:
        y, variance = discriminate(features, module, without=blocks)
        for repeat in range(30):
            parts = [np.flatnonzero(module == number) for number in blocks]
            count, place = rng.integers(1, 11), rng.integers(len(blocks))
            start = rng.integers(0, FULL - count + 1)
            gone = np.arange(start, start + count)
            gone = gone if repeat % 2 else rng.choice(FULL, count, replace=False)
            parts[place] = np.delete(parts[place], gone)
            truth = np.cumsum([len(part) for part in parts])[:-1]
            found = border_posterior(y[np.concatenate(parts)], variance, len(blocks), power)
            confidence += found.max(axis=1).tolist()
            right += (found.argmax(axis=1) == truth).tolist()
    confidence, right = np.array(confidence), np.array(right)
    sure = confidence > 0.95
    return {
        "borders": len(right),
        "mean confidence": confidence.mean(),
        "right": right.mean(),
        "confidence over .95": sure.mean(),
        "of these right": right[sure].mean(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    data = vitlab.load_dataset("elpv", split_by="image")
    kind = data.samples["group"].to_numpy()
    starts = np.flatnonzero(np.append(True, kind[1:] != kind[:-1]))
    runs = list(zip(starts, [*starts[1:], len(kind)], strict=True))
    sure, names, number = np.full(len(kind), -1), [], 0
    for a, b in runs:
        count = UNSURE.get(b - a) or max(1, (b - a) // FULL)
        names.append(range(number, number + count))
        if b - a not in UNSURE:
            sure[a:b] = number + np.arange(b - a) * count // (b - a)
        number += count
    facts = fact_table(data).drop(columns="sample_id").to_numpy(float)
    kinds = {"embedding": embed_images(data), "facts of the files": facts}
    chains = [one for (a, b), one in zip(runs, names, strict=True) if b - a in (300, 180, 360)]
    calibration = [
        {"features": name, "power": power, **simulate(features, sure, chains, power)}
        for name, features in kinds.items()
        for power in POWERS
    ]
    print(pd.DataFrame(calibration).round(3).to_string(index=False))
    module, confidence, borders = sure.copy(), np.ones(len(kind)), []
    y, variance = discriminate(kinds["embedding"], sure)
    first, rows, offset = find_repeat(_hash_images(data))
    print(f"rows {first} to {first + rows - 1} come again {offset} rows later")
    for (a, b), own in zip(runs, names, strict=True):
        if b - a in UNSURE:
            known = [row - a for row in (first, first + rows) if a < row < b]
            posterior = border_posterior(y[a:b], variance, len(own), POWER, known)
            block, confidence[a:b] = image_confidence(posterior)
            module[a:b] = own[0] + block
            for place, row in enumerate(posterior):
                after = f"m{own[place]:02d}"
                borders.append({"after": after, "first row": a + row.argmax(), "p": row.max()})
    print(pd.DataFrame(borders).round(3).to_string(index=False))
    module[module == module[first + offset]] = module[first]  # both photographs of one module
    images = pd.DataFrame({"module": [f"m{one:02d}" for one in module]})
    images["confidence"] = confidence.round(2)
    part = (images != images.shift()).any(axis=1).cumsum()
    table = images.groupby(part).agg(
        module=("module", "first"), images=("module", "size"), confidence=("confidence", "first")
    )
    print(f"{(confidence < 0.95).sum()} of {len(images)} images have a confidence below .95")
    if write:
        note = "# Rows of labels.csv of elpv-dataset in their order: inferred modules, see"
        text = f"{note} benchmarks/elpv_modules.py\n{table.to_csv(index=False)}"
        OUTPUT.write_text(text, encoding="utf-8")
        repeat = {"first row": first, "rows": rows, "offset": offset}
        results = {"machine": describe_machine(), "calibration": calibration, "borders": borders}
        results |= {"repeat": repeat}
        write_json(RESULTS / "elpv_modules.json", results)


if __name__ == "__main__":
    main()
