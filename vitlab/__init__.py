"""vitlab: a Jupyter-first workbook for Vision Transformers.

The names below and the sub-packages (`vitlab.data`, `vitlab.explain`, ...) are loaded when they are
first used, so `import vitlab` is quick and loads no torch.

    data = vitlab.load_dataset("elpv")
    model = vitlab.build_model("hybrid_vit", data.classes)
    history = vitlab.fit(model, data)
    vitlab.evaluate(vitlab.predict(model, data))

Import vitlab before torch. The OpenMP threads of torch spin for some milliseconds whenever they
wait, which takes the core from other programs. This import shortens the spin (GOMP_SPINCOUNT, read
by GNU OpenMP when torch is loaded) for this process and its children, unless GOMP_SPINCOUNT or
OMP_WAIT_POLICY is set already. What that gains or costs depends on the machine: see
`benchmarks/bench_training.py spin` and its record."""

import os

import lazy_loader

__version__ = "0.1.0"

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

# the names are listed in __init__.pyi
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
