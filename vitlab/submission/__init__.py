"""A submission as one zip to hand in, and the checks that a marker runs on it.

Threat model. A bundle may come from a student who is careless (a cell not executed, a file missing,
an empty answer), or who edits results by hand (a metric, a prediction, a split, weights, a cell).
`verify` computes whatever follows from other files of the bundle or from the data again, and
compares. It opens a zip within limits of count, size and compression ratio, writes nothing outside
its own folder, follows no links, and loads no pickle and no code; only `--rerun` executes the
notebooks. Not defended against: files within these limits that are made to take much memory or
time, and a bundle forged so that its files agree with each other. Outputs edited in an executed
notebook or a rendered page, and invented predictions, are only detected by a rerun, if at all. So
use the metrics that `verify` prints, not those on a page. Checksums are not signatures: they do not
show who made a bundle."""

from vitlab.submission.bundle import make_bundle
from vitlab.submission.verify import print_verdict, verify_bundle, write_junit

__all__ = ["make_bundle", "print_verdict", "verify_bundle", "write_junit"]
