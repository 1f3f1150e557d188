"""The numbered checks VL001 to VL019: what is wrong with data, scores, explanations, or the way to
them, and what to do about it.

Each check is one function that takes tables and gives a `CheckResult`. `check_data`,
`check_scores` and their like run those that belong together. What a check means, with an example,
is in reports/guide/0_checks.md."""

from vitlab.checks.baseline import Probe, can_probe, cluster_images, probe_data
from vitlab.checks.data_checks import check_data, doubtful_labels, find_group
from vitlab.checks.facts import fact_table
from vitlab.checks.model_checks import check_compression, check_explanations, check_runs
from vitlab.checks.result import (
    CHECKS,
    GUIDE,
    CheckResult,
    describe_checks,
    describe_run_checks,
    explain_checks,
    read_checks,
    silence,
    write_checks,
)
from vitlab.checks.score_checks import check_comparison, check_scores
from vitlab.checks.splits import compare_splits, describe_tests, predictions_by_split
from vitlab.checks.verdict import describe_data, describe_next, describe_verdict

__all__ = [
    "CHECKS",
    "GUIDE",
    "CheckResult",
    "Probe",
    "can_probe",
    "check_comparison",
    "check_compression",
    "check_data",
    "check_explanations",
    "check_runs",
    "check_scores",
    "cluster_images",
    "compare_splits",
    "describe_checks",
    "describe_data",
    "describe_next",
    "describe_run_checks",
    "describe_tests",
    "describe_verdict",
    "doubtful_labels",
    "explain_checks",
    "fact_table",
    "find_group",
    "predictions_by_split",
    "probe_data",
    "read_checks",
    "silence",
    "write_checks",
]
