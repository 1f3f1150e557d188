"""vitlab: a Jupyter-first workbook for Vision Transformers.

Import what you need from the subpackages: `vitlab.data`, `vitlab.models`, `vitlab.training`,
`vitlab.evaluation`, `vitlab.explain`, `vitlab.plots`, `vitlab.runs`. Importing `vitlab` itself
loads none of them.

Import vitlab before torch. The OpenMP threads of torch spin while they wait, which takes the core
from other programs. This import shortens the spin (GOMP_SPINCOUNT, read by GNU OpenMP when torch is
loaded) for this process and its children, unless GOMP_SPINCOUNT or OMP_WAIT_POLICY is set already.
Measured in benchmarks/results/training.json: as fast as the default on two quiet cores, and about
three times as fast beside one busy process of low priority.
"""

import os

__version__ = "0.1.0"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
