"""Execute one notebook by papermill in a kernel process, show how far it is, and say in plain data
how it ended.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import papermill
import psutil
import zmq
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_output
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import write_ipynb

from vitlab.batch.limits import Limits, Stopped, Watch, read_peak_mb
from vitlab.errors import UserError
from vitlab.files import atomic
from vitlab.kernels import WarmProcess
from vitlab.notebook import read_cells

# in IPython's traceback, the cell's own line comes first; the other form is that of UserError
CELL_LINE = re.compile(r"(?:Cell In\[\d+\], |^\w+ \()line (\d+)")
NOT_STARTED = ("Kernel died before", "Kernel didn't respond")  # as jupyter_client puts it
ANSI_COLOR = re.compile(r"\x1b\[[\d;]*m")


class Execution:
    """A notebook on its way. `run` blocks until it has ended; `stop` and `end`, from another
    thread, end it early.

    limits: minutes and memory it may take. environment: variables for its kernel beside those of
    this process. folder: where the kernel works, by default here. on_progress: called with the
    number of the cell that begins and that of all cells. unwanted: asked twice a second; once it
    says True, the execution is stopped."""

    def __init__(
        self,
        source: Path,
        copy: Path,
        parameters: dict[str, Any],
        warm: WarmProcess,
        label: str = "",
        *,
        limits: Limits | None = None,
        environment: dict[str, str] | None = None,
        folder: str | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        unwanted: Callable[[], bool] | None = None,
    ):
        self.source, self.copy, self.parameters, self.warm = source, copy, parameters, warm
        self.label, self.limits, self.unwanted = label or source.stem, limits or Limits(), unwanted
        self.environment, self.folder, self.on_progress = environment, folder, on_progress
        self.client: PapermillNotebookClient | None = None
        self.cell, self.number, self.cells, self.peak_memory_mb = None, 0, 0, None
        self.stopped, self.ended = False, None

    @property
    def pid(self) -> int | None:
        """The kernel's, while there is one."""
        manager = self.client and self.client.km
        return manager.provisioner.pid if manager and manager.has_kernel else None

    def run(self) -> dict[str, Any]:
        """Execute and give status (done or failed), seconds, peak_memory_mb of the kernel, and
        error (cell, line, name, value).

        The executed copy gets its name when the notebook has ended, with the error in it if it
        failed. Stopped: by `stop`."""
        start = time.perf_counter()
        # papermill's
        self.cells = sum(cell["cell_type"] == "code" for cell in read_cells(self.source)) + bool(
            self.parameters
        )
        with (
            tempfile.TemporaryDirectory(prefix="vitlab-") as folder,
            watch_folder(self.copy.parent) as is_there,
        ):
            temporary = Path(folder) / self.copy.name
            with Watch(self, self.limits, self.unwanted):
                error = self._execute(temporary)
            if not is_there():
                error = self._describe_removal(error)
            if temporary.is_file():
                with atomic(self.copy) as beside:
                    shutil.copyfile(temporary, beside)
        seconds = round(time.perf_counter() - start, 1)
        return {
            "status": "failed" if error else "done",
            "seconds": seconds,
            "peak_memory_mb": self.peak_memory_mb,
            "error": error,
        }

    def stop(self, force: bool = False) -> None:
        """Interrupt the kernel as Ctrl-C would, or kill it; a kernel that has yet to start will not
        execute anything.
        """
        self.stopped = True
        self._kill() if force else self._signal(signal.SIGINT)

    def end(self, name: str, value: str) -> None:
        """Kill the kernel with all that it has started; the notebook has failed, with an error of
        this name and text.
        """
        self.ended = self.ended or {"name": name, "value": value}
        self._kill()

    def execute(self, client: PapermillNotebookClient) -> None:
        """Called by the engine: start the kernel from the warm process and execute every cell."""
        self.client = client
        manager = self.warm.attach(client.create_kernel_manager())
        manager.transport_encryption = "auto" if zmq.has("curve") else "disabled"
        client.on_cell_start, client.on_cell_executed = self._cell_starts, self._cell_ended
        options = {"env": {**os.environ, **self.environment}} if self.environment else {}
        client.execute(**options, **({"cwd": self.folder} if self.folder else {}))

    def _execute(self, temporary: Path, retry: bool = True) -> dict[str, Any] | None:
        try:
            papermill.execute_notebook(
                self.source,
                temporary,
                self.parameters,
                engine_name="vitlab",
                kernel_name="python3",
                language="python",
                progress_bar=False,
                request_save_on_cell_execute=False,
                execution=self,
            )
        except PapermillExecutionError as failure:
            self._raise_when_stopped()
            return self._describe(failure.ename, failure.evalue, "".join(failure.traceback))
        # DeadKernelError; or the kernel was ended before its first cell
        except Exception as failure:
            self._raise_when_stopped()
            if str(failure).startswith(NOT_STARTED) and not self.ended:
                if retry:  # another process may have taken one of its ports meanwhile
                    return self._execute(temporary, retry=False)
                raise UserError(
                    f"{failure}; `{shlex.quote(sys.executable)} -m ipykernel_launcher` shows why"
                ) from failure
            if not (self.ended or isinstance(failure, DeadKernelError)):
                raise
            held = f", it held {self.peak_memory_mb} MB" if self.peak_memory_mb else ""
            dead = {
                "name": "DeadKernelError",
                "value": f"the kernel died{held}; too little memory is the usual reason",
            }
            error = self._describe(**(self.ended or dead))
            if self.cell is not None:
                self.cell.outputs.append(
                    new_output("error", ename=error["name"], evalue=error["value"], traceback=[])
                )
            write_ipynb(self.client.nb, str(temporary))
            return error
        return None

    def _signal(self, number: int) -> None:
        pid = self.pid
        with suppress(ProcessLookupError):
            # a kernel leads a process group: what the notebook has started ends with it
            if pid and hasattr(os, "killpg"):
                os.killpg(pid, number)
            elif pid:
                self.client.km.provisioner.process.terminate()

    def _kill(self) -> None:
        below = []
        with suppress(psutil.Error):
            below = psutil.Process(self.pid).children(recursive=True) if self.pid else []
        self._signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        for process in below:  # one that has left the group
            with suppress(psutil.Error):
                process.kill()

    def _cell_starts(self, cell, cell_index):
        self._raise_when_stopped()
        if self.ended:
            raise DeadKernelError(self.ended["value"])
        if cell.cell_type == "code":
            self.cell, self.number = cell, self.number + 1
            if self.on_progress is not None:
                self.on_progress(self.number, self.cells)

    def _cell_ended(self, cell, cell_index, execute_reply):
        self.peak_memory_mb = read_peak_mb(self.pid) or self.peak_memory_mb

    def _raise_when_stopped(self):
        if self.stopped:
            raise Stopped(self.label)

    def _describe(self, name: str, value: str, traceback: str = "") -> dict[str, Any]:
        if self.cell is None:
            return {"cell": None, "line": "", "name": name, "value": value}
        lines = self.cell.source.splitlines()
        raised = CELL_LINE.search(ANSI_COLOR.sub("", traceback))
        if raised and int(raised[1]) <= len(lines):
            line = lines[int(raised[1]) - 1]
        else:
            line = next(
                (line for line in lines if line.strip() and not line.lstrip().startswith("#")), ""
            )
        number = self.cell.execution_count or self.number  # a kernel that died may not have told
        return {"cell": number, "line": line.strip(), "name": name, "value": value}

    def _describe_removal(self, error: dict[str, Any] | None) -> dict[str, Any]:
        place = (
            {"cell": None, "line": ""}
            if error is None
            else {"cell": error["cell"], "line": error["line"]}
        )
        seen = f" ({error['name']}: {error['value']})" if error else ""
        told = (
            f"the folder {self.copy.parent.parent} was removed while the notebook ran{seen}; the"
            " same command makes it again"
        )
        return {**place, "name": "RunFolderRemoved", "value": told}


@contextmanager
def watch_folder(folder: Path) -> Iterator[Callable[[], bool]]:
    """Make the folder, and give a function that says whether it is still the same one (on Windows:
    whether there is any).
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not hasattr(os, "O_DIRECTORY"):
        yield folder.is_dir
        return
    # held open, its number is not given to another folder
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)

    def is_there() -> bool:
        try:
            return os.path.samestat(os.fstat(held), os.stat(folder))
        except OSError:
            return False

    try:
        yield is_there
    finally:
        os.close(held)


class WatchedEngine(NBClientEngine):
    """papermill's own engine, with the kernel and the progress in the hands of an Execution."""

    @classmethod
    def execute_managed_notebook(
        cls, nb_man, kernel_name, *, execution: Execution, start_timeout: int, **options
    ):
        execution.execute(
            PapermillNotebookClient(
                nb_man,
                kernel_name=kernel_name,
                iopub_timeout=60,
                startup_timeout=start_timeout,
                log=LOG,
            )
        )


LOG = logging.getLogger("vitlab.batch")
# what went wrong is told by the executed copy and by the table at the end
LOG.addHandler(logging.NullHandler())
LOG.propagate = False
# it warns of parameters whose annotation it cannot read
logging.getLogger("papermill").setLevel(logging.ERROR)
papermill_engines.register("vitlab", WatchedEngine)
