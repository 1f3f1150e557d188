# Each target does its own set-up; a second call installs nothing.
PYTHON ?= python3
ifeq ($(OS),Windows_NT)
BIN := .venv/Scripts
else
BIN := .venv/bin
endif
READY := .venv/.ready

.PHONY: check report study sample test lab lint bench clean

check: $(READY)             ## a first answer about your own images: make check DATA=photos/
	$(BIN)/vitlab check $(or $(DATA),elpv)

report: $(READY)            ## one ViT and one CNN on ELPV, from the data to the report, in about ten minutes
	$(BIN)/vitlab batch elpv
	$(BIN)/vitlab report elpv

study: $(READY)             ## the full comparison: four models, two seeds, full training
	$(BIN)/vitlab batch elpv-study
	$(BIN)/vitlab report elpv-study

sample: check report        ## renew the sample in the README (needs Chromium)
	$(BIN)/python reports/sample/make_sample.py

test: $(READY)              ## the whole test suite
	$(BIN)/python -m pytest

lab: $(READY)               ## JupyterLab, on its start page
	$(BIN)/jupyter lab workspaces import notebooks/vitlab.jupyterlab-workspace
	$(BIN)/jupyter lab --LabApp.default_url=/lab/workspaces/vitlab

lint: $(READY)              ## ruff over package, tests and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(READY)             ## the benchmarks, one after the other
	$(BIN)/python benchmarks/bench_check.py
	$(BIN)/python benchmarks/bench_batch.py
	$(BIN)/python benchmarks/bench_training.py
	$(BIN)/python benchmarks/bench_evaluation.py
	$(BIN)/python benchmarks/bench_explain.py
	$(BIN)/python benchmarks/bench_faithfulness.py
	$(BIN)/python benchmarks/bench_compress.py
	$(BIN)/python benchmarks/bench_geometry.py geometry
	$(BIN)/python benchmarks/bench_app.py

clean:                      ## what runs and reports made; the environment stays
	$(PYTHON) -c "import shutil; [shutil.rmtree('reports/' + name, ignore_errors=True) for name in ('runs', 'tuning', 'cache', '_build', '_site')]"

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -c "import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 14) else 'vitlab needs Python 3.11, 3.12 or 3.13, and %s is %s: call make PYTHON=/path/to/python3.12' % (sys.executable, sys.version.split()[0]))"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -c "import pathlib; pathlib.Path('$(READY)').touch()"
