"""Execute a notebook with papermill in a kernel process of its own, and describe in plain data how
it ended.
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
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
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

from vitlab.batch.display import Display
from vitlab.batch.plan import Task
from vitlab.batch.specs import Limits
from vitlab.batch.state import Outcome, describe_error
from vitlab.batch.watch import Stopped, Watch, read_peak_mb
from vitlab.errors import UserError
from vitlab.files import atomic
from vitlab.kernels import WarmProcess
from vitlab.notebook import read_cells

# in IPython's traceback, the cell's own line comes first; the other form is that of UserError
CELL_LINE = re.compile(r"(?:Cell In\[\d+\], |^\w+ \()line (\d+)")
NOT_STARTED = ("Kernel died before", "Kernel didn't respond")  # as jupyter_client puts it
ANSI_COLOR = re.compile(r"\x1b\[[\d;]*m")
LOG = logging.getLogger("vitlab.batch")


class LocalExecutor:
    """Executes up to `workers` notebooks at a time here, in kernels forked from one process."""

    def __init__(self, workers: int, warm: WarmProcess, reports: Path, display: Display):
        self.workers, self.warm, self.reports, self.display = workers, warm, reports, display
        self._threads = ThreadPoolExecutor(workers)
        self._running: dict[Future, tuple[int, Execution]] = {}

    def has_place(self, task: Task) -> bool:
        return len(self._running) < self.workers

    def start(self, number: int, task: Task) -> None:
        execution = Execution(
            task.step.source,
            self.reports / task.path,
            task.parameters,
            self.warm,
            task.label,
            limits=task.step.limits,
            on_progress=partial(self.display.show, number, task.label),
        )
        self._running[self._threads.submit(execution.run)] = number, execution

    def collect(self) -> list[tuple[int, Outcome]]:
        ended = wait(self._running, timeout=1, return_when=FIRST_COMPLETED).done
        return [(self._running.pop(future)[0], _read_outcome(future)) for future in ended]

    def stop(self) -> list[tuple[int, Outcome]]:
        # an interrupt between two cells is lost: send it again, and kill in the end
        for attempt in range(6):
            for future, (_, execution) in self._running.items():
                if not future.done():
                    execution.stop(force=attempt == 5)
            if not wait(self._running, timeout=1).not_done:
                break
        self._threads.shutdown(cancel_futures=True)
        return [
            (number, _read_outcome(future))
            for future, (number, _) in self._running.items()
            if not future.cancelled()
        ]

    def close(self) -> None:
        self._threads.shutdown()


def _read_outcome(future: Future) -> Outcome:
    try:
        return future.result()
    except Exception as error:  # the kernel did not start, or the disk is full
        return describe_error(error)


@dataclass(eq=False)
class Execution:
    """One execution of a notebook. `run` blocks until it has ended; `stop` and `end`, from another
    thread, end it early.

    environment: variables for its kernel beside those of this process. folder: where the kernel
    works, by default here. on_progress: called with the number of the cell that begins and that of
    all cells. unwanted: asked twice a second; once it is true, the execution is stopped."""

    source: Path
    copy: Path
    parameters: dict[str, Any]
    warm: WarmProcess
    label: str = ""
    limits: Limits = field(default_factory=Limits)
    environment: dict[str, str] = field(default_factory=dict)
    folder: str | None = None
    on_progress: Callable[[int, int], None] | None = None
    unwanted: Callable[[], bool] | None = None

    def __post_init__(self):
        self.client: PapermillNotebookClient | None = None
        self.cell, self.number, self.cells, self.peak_memory_mb = None, 0, 0, None
        self.stopped, self.ended = False, None

    @property
    def pid(self) -> int | None:
        """The kernel's, while there is one."""
        manager = self.client and self.client.km
        return manager.provisioner.pid if manager and manager.has_kernel else None

    def run(self) -> Outcome:
        """Execute and give status (done or failed), seconds, peak_memory_mb of the kernel, and
        error (cell, line, name, value).

        The executed copy gets its name when the notebook has ended, with the error in it if it
        failed. Stopped: by `stop`."""
        start = time.perf_counter()
        code = [cell for cell in read_cells(self.source) if cell["cell_type"] == "code"]
        self.cells = len(code) + bool(self.parameters)  # papermill adds a cell for them
        with tempfile.TemporaryDirectory(prefix="vitlab-") as folder:
            temporary = Path(folder) / self.copy.name
            with Watch(self, self.limits, self.unwanted):
                error = self._execute(temporary)
            if temporary.is_file():
                with atomic(self.copy) as beside:
                    shutil.copyfile(temporary, beside)
        return {
            "status": "failed" if error else "done",
            "seconds": round(time.perf_counter() - start, 1),
            "peak_memory_mb": self.peak_memory_mb,
            "error": error,
        }

    def stop(self, force: bool = False) -> None:
        """Interrupt the kernel as Ctrl-C would, or kill it; one yet to start executes nothing."""
        self.stopped = True
        self._kill() if force else self._signal(signal.SIGINT)

    def end(self, name: str, value: str) -> None:
        """Kill the kernel and what it has started; the notebook failed with this error."""
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
        """The error, or None."""
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
            return self._describe_death(temporary)
        return None

    def _describe_death(self, temporary: Path) -> dict[str, Any]:
        """The error of a kernel that died or was ended; it is written into the executed copy."""
        held = f", it held {self.peak_memory_mb} MB" if self.peak_memory_mb else ""
        text = f"the kernel died{held}; too little memory is the usual reason"
        error = self._describe(**(self.ended or {"name": "DeadKernelError", "value": text}))
        if self.cell is not None:
            output = new_output("error", ename=error["name"], evalue=error["value"], traceback=[])
            self.cell.outputs.append(output)
        write_ipynb(self.client.nb, str(temporary))
        return error

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
        """An error with the cell and the line that raised it, else the first line of the cell."""
        if self.cell is None:
            return {"cell": None, "line": "", "name": name, "value": value}
        lines = self.cell.source.splitlines()
        raised = CELL_LINE.search(ANSI_COLOR.sub("", traceback))
        if raised and int(raised[1]) <= len(lines):
            line = lines[int(raised[1]) - 1]
        else:
            code = (line for line in lines if line.strip() and not line.lstrip().startswith("#"))
            line = next(code, "")
        number = self.cell.execution_count or self.number  # a kernel that died may not have told
        return {"cell": number, "line": line.strip(), "name": name, "value": value}


class WatchedEngine(NBClientEngine):
    """papermill's own engine; an Execution starts the kernel and follows the progress."""

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


# the executed copy and the table at the end say what went wrong
LOG.addHandler(logging.NullHandler())
LOG.propagate = False
# it warns of parameters whose annotation it cannot read
logging.getLogger("papermill").setLevel(logging.ERROR)
papermill_engines.register("vitlab", WatchedEngine)
