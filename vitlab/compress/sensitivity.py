"""Which nodes of a graph suffer from 8 bits, and how few of them have to stay in float."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import norm
from tqdm import tqdm

from vitlab.compress.converting import Converter
from vitlab.compress.export import Export
from vitlab.compress.parity import Gate, PixelSet, compare_logits, measure_sqnr, summarise_parity
from vitlab.compress.session import open_session, run_pixels
from vitlab.schema import Transform

RANKING = 16  # images on which nodes are ranked: noise is a mean square, and needs few
# nodes spared at the first try, or fewer where fewer are planned: images near the border make the
# plan cautious
START = 4
HALF = 0.5  # of the answers that the gate lets change: what is planned for, the rest being reserve


def measure_variant(
    converter: Converter,
    float_nodes,
    testing: PixelSet,
    reference,
    transform: Transform,
    classes,
    gate: Gate,
) -> Export:
    """Convert, and compare with the reference's logits on the images of the gate."""
    target = converter.convert(float_nodes)
    logits = run_pixels(open_session(target), testing.pixels, transform)
    table = compare_logits(testing.sample_ids, reference, logits, classes)
    return Export(target, summarise_parity(table, reference, logits, gate), table)


def rank_nodes(
    converter: Converter, testing: PixelSet, reference: np.ndarray, transform: Transform
) -> pd.DataFrame:
    """A row a node, quantised by itself, the most sensitive first.

    Columns node, sqnr_db (of the logits), noise (mean square of the change in the margin of the
    reference's class over the next)."""
    margin, rows = measure_margins(reference, reference), []
    for name in tqdm(
        converter.nodes, desc="sensitivity of nodes", unit="node", delay=10, leave=False
    ):
        logits = run_pixels(open_session(converter.isolate(name)), testing.pixels, transform)
        noise = float(((measure_margins(reference, logits) - margin) ** 2).mean())
        rows.append({"node": name, "sqnr_db": measure_sqnr(reference, logits), "noise": noise})
    return pd.DataFrame(rows).sort_values("sqnr_db", ignore_index=True)


def measure_margins(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """By how much `logits` (N, classes) prefer the reference's first class to its second, (N,);
    below 0 it has changed.
    """
    order = np.argsort(reference, axis=1)[:, -2:]
    second, first = np.take_along_axis(logits, order, axis=1).T
    return first - second


def plan_float_nodes(noise: np.ndarray, margins: np.ndarray, agreement: float) -> int:
    """How many of the nodes, the noisiest first, have to stay in float so that at most half of the
    allowed answers change.

    noise: of each node, sorted; margins: of the images. The noise of nodes adds up as that of
    independent errors does, and an answer changes where a normal error of that size exceeds the
    image's margin."""
    left = np.append(np.cumsum(noise[::-1])[::-1], 0.0)  # what remains after the first k are spared
    for count, variance in enumerate(left):
        changed = norm.cdf(-margins / np.sqrt(max(variance, 1e-30))).mean()
        if changed <= HALF * (1 - agreement):
            return count
    return len(noise)


def spare_nodes(
    converter: Converter,
    result: Export,
    testing: PixelSet,
    reference,
    transform,
    classes,
    gate: Gate,
) -> tuple[Export, list[str]]:
    """The most sensitive nodes left in float until the gate is passed: four, or fewer where their
    noise lets expect so, then twice as many, up to half of them; where those do not help, the best
    try, of equals that with the fewest in float."""
    few = np.arange(min(RANKING, len(testing)))
    ranking = rank_nodes(converter, testing.take(few), reference[few], transform)
    names, most = ranking["node"].tolist(), max(1, len(ranking) // 2)
    planned = plan_float_nodes(
        np.sort(ranking["noise"])[::-1], measure_margins(reference, reference), gate.agreement
    )
    best, spared, count = result, [], min(max(1, planned), START, most)
    while True:
        tried = measure_variant(
            converter, names[:count], testing, reference, transform, classes, gate
        )
        if tried.summary["passed"] or _rank(tried, gate) > _rank(best, gate):
            best, spared = tried, names[:count]
        if best.summary["passed"] or count == most:
            return best, spared
        count = min(2 * count, most)


def _rank(result: Export, gate: Gate) -> tuple[float, float]:
    """What the gate looks at, larger being better."""
    difference = result.summary["relative_difference"] if np.isfinite(gate.difference) else 0.0
    return result.summary["agreement"], -difference
