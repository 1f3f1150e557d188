"""A submission with its proof: one zip to hand in, and the check that it is whole, executed, and gives its numbers."""

from vitlab.submission.bundle import make_bundle
from vitlab.submission.junit import write_junit
from vitlab.submission.printing import print_verdict
from vitlab.submission.verify import verify_bundle

__all__ = ["make_bundle", "print_verdict", "verify_bundle", "write_junit"]
