"""A submission as one zip to hand in, and the checks that a marker runs on it.

Threat model. A bundle may come from a student who is careless (a cell not executed, a file missing,
an empty answer), who edits results by hand (a metric, a prediction, a split, weights, a cell), or
who wants to harm the marker's machine. `verify` therefore reads a bundle within limits of count,
size and compression ratio, writes nothing outside its own folder, follows no links, and loads no
pickle and no code; only `--rerun` executes the notebooks. Whatever follows from other files of the
bundle or from the data is computed again and compared. Three things are only detected by a rerun,
if at all: a bundle forged so that its files agree with each other, outputs edited in an executed
notebook or a rendered page, and invented predictions. So use the metrics that `verify` prints, not
those on a page. Who made a bundle is not shown, because checksums are not signatures."""

from vitlab.submission.bundle import make_bundle
from vitlab.submission.junit import write_junit
from vitlab.submission.printing import print_verdict
from vitlab.submission.verify import verify_bundle

__all__ = ["make_bundle", "print_verdict", "verify_bundle", "write_junit"]
