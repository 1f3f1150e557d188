"""What do bootstrap intervals cost? 10,000 replicates of ten metrics on 10,000 predictions in at
most 5 s on two cores.

Ours computes all replicates by counts in chunks, on as many threads as there are cores. The peer is
the usual loop: draw indices, take the samples, call the ten functions of scikit-learn. `--loop` of
its replicates are timed and scaled up to all of them, for the whole loop takes minutes. Both sides
then compute the same resamples, and the largest difference of any metric in any of them is a record
too.

    taskset -c 0,1 python benchmarks/bench_evaluation.py [--samples N] [--replicates N] [--loop N]
        [--repeats N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from records import record, write_records
from sklearn import metrics as sk

from vitlab.evaluation.inference import bootstrap, count_cores
from vitlab.evaluation.metrics import METRICS, prepare_metrics
from vitlab.evaluation.scores import Scores

SECONDS, DIFFERENCE = "<= 5", "<= 1e-9"


def make_scores(num_samples: int, seed: int = 0) -> Scores:
    """Binary predictions of a mediocre classifier, a third of them positive; one score in a hundred
    is shared with another.
    """
    generator = np.random.default_rng(seed)
    label = (generator.random(num_samples) < 1 / 3).astype(int)
    prob = 1 / (1 + np.exp(-generator.normal(size=num_samples) - 1.5 * label + 0.75))
    tied = generator.random(num_samples) < 0.1
    prob[tied] = prob[tied].round(2)
    return Scores(
        ("functional", "defective"),
        label,
        (prob >= 0.5).astype(int),
        np.stack([1 - prob, prob], axis=1),
    )


def loop_over_sklearn(scores: Scores, rows: list[np.ndarray]) -> np.ndarray:
    """METRICS of each resample (indices), one function call after the other."""
    values = []
    for drawn in rows:
        label, pred, score = scores.label[drawn], scores.pred[drawn], scores.prob[drawn, 1]
        measured = {
            "accuracy": sk.accuracy_score(label, pred),
            "balanced_accuracy": sk.balanced_accuracy_score(label, pred),
            "precision": sk.precision_score(label, pred, zero_division=0),
            "recall": sk.recall_score(label, pred),
            "specificity": sk.recall_score(label, pred, pos_label=0),
            "f1": sk.f1_score(label, pred),
            "weighted_f1": sk.f1_score(label, pred, average="weighted"),
            "roc_auc": sk.roc_auc_score(label, score),
            "average_precision": sk.average_precision_score(label, score),
            "mcc": sk.matthews_corrcoef(label, pred),
        }
        values.append([measured[name] for name in METRICS])
    return np.array(values)


def measure_false_alarms(trials: int) -> list[dict]:
    """A record for each kind of split and number of seeds; the accuracy is .8, its s.d. over seeds
    about what the images make.
    """
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from tests.test_evaluation_comparison import share_of_verdicts

    records = []
    for images, test, fixed, seed_sd in (
        (200, 200, True, 0.01),
        (10_000, 10_000, True, 0.003),
        (2000, 400, False, 0.01),
    ):
        for seeds in (2, 3, 5, 10):
            share = share_of_verdicts(images, test, seeds, fixed, trials, seed_sd)
            case = (
                f"{'fixed test split' if fixed else f'splits of {images:,} images'}, {test:,} test"
                f" images, {seeds} seeds"
            )
            records.append(
                record(
                    case,
                    f"share of verdicts without a difference, {trials} trials",
                    share,
                    0.05,
                    "nominal",
                    share,
                    "<= 0.07",
                )
            )
            print(records[-1], flush=True)
    return records


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--samples", type=int, default=10_000, help="predictions (default: %(default)s)"
    )
    parser.add_argument(
        "--replicates", type=int, default=10_000, help="bootstrap replicates (default: %(default)s)"
    )
    parser.add_argument(
        "--loop",
        type=int,
        default=20,
        help="replicates of the loop that are timed (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="how often ours is timed (default: %(default)s)"
    )
    parser.add_argument(
        "--trials",
        type=int,
        default=0,
        help="of the simulation of false alarms (default: %(default)s, none)",
    )
    options = parser.parse_args()
    if options.trials:
        write_records("evaluation", measure_false_alarms(options.trials))
        return
    scores = make_scores(options.samples)

    ours, loop = [], []
    counts = bootstrap(lambda counts: counts, options.samples, options.loop, seed=0)
    rows = [np.repeat(np.arange(options.samples), row.astype(int)) for row in counts]
    for _ in range(options.repeats):
        start = time.perf_counter()
        values = bootstrap(prepare_metrics(scores), options.samples, options.replicates, seed=0)
        ours.append(time.perf_counter() - start)
        start = time.perf_counter()
        expected = loop_over_sklearn(scores, rows)
        loop.append((time.perf_counter() - start) / options.loop * options.replicates)
        print(
            f"ours {ours[-1]:.2f} s, loop {loop[-1]:.0f} s (from {options.loop} replicates)",
            flush=True,
        )
    difference = np.abs(prepare_metrics(scores)(counts) - expected).max()
    # the timed run drew these same resamples first
    same = np.abs(values[: len(expected)] - expected).max()

    seconds, peer = statistics.median(ours), statistics.median(loop)
    cores = count_cores()
    case = (
        f"{options.replicates:,} replicates of {len(METRICS)} metrics, {options.samples:,} binary"
        " predictions"
    )
    name = f"loop over scikit-learn, scaled from {options.loop} replicates"
    print(
        f"cores: {cores}; {peer / seconds:.0f} times as fast as the loop; largest difference"
        f" {max(difference, same):.1e}"
    )
    write_records(
        "evaluation",
        [
            record(case, f"seconds on {cores} cores", seconds, peer, name, seconds, SECONDS),
            record(case, "times as fast", seconds, peer, name, peer / seconds, ">= 1"),
            record(
                case,
                "largest difference",
                0,
                0,
                "scikit-learn on the same resamples",
                max(difference, same),
                DIFFERENCE,
            ),
        ],
        largest_difference=float(max(difference, same)),
    )


if __name__ == "__main__":
    main()
