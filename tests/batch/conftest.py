import pkgutil
from contextlib import contextmanager

import pytest

from tests.batch.toys import write_chain
from vitlab.batch import run as run_module
from vitlab.batch.execute import Execution
from vitlab.batch.state import describe_error
from vitlab.files import atomic
from vitlab.kernels import WarmProcess
from vitlab.notebook import read_cells


def call_here(self, function, *arguments):
    return pkgutil.resolve_name(function)(*arguments)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The working folder, with the notebooks of a toy chain. Values are checked in this process."""
    monkeypatch.setenv("TOY_LOG", str(tmp_path / "log"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WarmProcess, "call", call_here)
    write_chain(tmp_path / "notebooks")
    (tmp_path / "notebooks" / "batches").mkdir()
    return tmp_path


class NoWarmProcess:
    call = call_here

    def preload(self, modules): ...


@pytest.fixture
def no_kernels(monkeypatch):
    """Notebooks are executed in this process, in milliseconds."""

    def run(self):
        scope = {"__name__": "__main__"}
        outcome = {"status": "done", "seconds": 0.1, "peak_memory_mb": 1, "error": None}
        try:
            for cell in read_cells(self.source):
                if cell["cell_type"] == "code":
                    exec(cell["source"], scope)
                if "parameters" in cell["tags"]:
                    scope |= self.parameters
        except Exception as error:
            outcome = describe_error(error)
        with atomic(self.copy) as copy:
            copy.write_text("{}")
        return outcome

    @contextmanager
    def no_warm_process():
        yield NoWarmProcess()

    monkeypatch.setattr(Execution, "run", run)
    monkeypatch.setattr(run_module, "WarmProcess", no_warm_process)
