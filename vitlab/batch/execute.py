"""Execute one notebook by papermill in a kernel process, show how far it is, and say in plain data how it ended."""

from __future__ import annotations

import logging
import os
import re
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import papermill
import zmq
from nbclient.exceptions import DeadKernelError
from nbformat.v4 import new_output
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from papermill.exceptions import PapermillExecutionError
from papermill.iorw import write_ipynb
from tqdm import tqdm

from vitlab.kernels import WarmProcess
from vitlab.notebook import read_cells
from vitlab.runs import atomic

CELL_LINE = re.compile(r"Cell In\[\d+\], line (\d+)")  # in IPython's traceback, the cell's own line comes first
ANSI_COLOR = re.compile(r"\x1b\[[\d;]*m")
BAR = "{desc}  {bar:24} cell {n_fmt} of {total_fmt}, {elapsed}"


class Stopped(Exception):
    """The execution was ended from outside; what it did counts for nothing."""


class Execution:
    """A notebook on its way. `run` blocks until it has ended; `stop`, from another thread, ends it early."""

    def __init__(
        self, source: Path, copy: Path, parameters: dict[str, Any], warm: WarmProcess, label: str = "", position: int = 0
    ):
        self.source, self.copy, self.parameters, self.warm = source, copy, parameters, warm
        self.label, self.position = label or source.stem, position
        self.client: PapermillNotebookClient | None = None
        self.bar: tqdm | None = None
        self.cell, self.number, self.peak_memory_mb, self.stopped = None, 0, None, False

    def run(self) -> dict[str, Any]:
        """Execute and give status (done or failed), seconds, peak_memory_mb of the kernel, and error (cell, line, name, value).

        The executed copy gets its name when the notebook has ended, with the error in it if it failed. Stopped: by `stop`.
        """
        start = time.perf_counter()
        error = None
        cells = sum(cell["cell_type"] == "code" for cell in read_cells(self.source)) + bool(self.parameters)  # papermill adds one
        with (
            tqdm(desc=self.label, total=cells, position=self.position, leave=False, disable=None, bar_format=BAR) as self.bar,
            atomic(self.copy) as temporary,
        ):
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
                error = self._describe(failure.ename, failure.evalue, "".join(failure.traceback))
            except DeadKernelError:
                self._raise_when_stopped()
                error = self._describe("DeadKernelError", "the kernel died; too little memory is the usual reason")
                self.cell.outputs.append(new_output("error", ename=error["name"], evalue=error["value"], traceback=[]))
                write_ipynb(self.client.nb, str(temporary))
        seconds = round(time.perf_counter() - start, 1)
        return {
            "status": "failed" if error else "done",
            "seconds": seconds,
            "peak_memory_mb": self.peak_memory_mb,
            "error": error,
        }

    def stop(self, force: bool = False) -> None:
        """Interrupt the kernel as Ctrl-C would, or kill it; a kernel that has yet to start will not execute anything."""
        self.stopped = True
        manager = self.client and self.client.km
        if manager and manager.has_kernel:
            with suppress(ProcessLookupError):
                if hasattr(os, "killpg"):  # a kernel leads a process group: what the notebook has started ends with it
                    os.killpg(manager.provisioner.pid, signal.SIGKILL if force else signal.SIGINT)
                else:
                    manager.provisioner.process.terminate()

    def tick(self) -> None:
        """Let the clock of the progress bar go on during a long cell."""
        if self.bar is not None:
            self.bar.refresh()

    def execute(self, client: PapermillNotebookClient) -> None:
        """Called by the engine: start the kernel from the warm process and execute every cell."""
        self.client = client
        manager = self.warm.attach(client.create_kernel_manager())
        manager.transport_encryption = "auto" if zmq.has("curve") else "disabled"
        client.on_cell_start, client.on_cell_executed = self._cell_starts, self._cell_ended
        client.execute()

    def _cell_starts(self, cell, cell_index):
        self._raise_when_stopped()
        if cell.cell_type == "code":
            self.cell, self.number = cell, self.number + 1
            self.bar.update(1)

    def _cell_ended(self, cell, cell_index, execute_reply):
        status = Path(f"/proc/{self.client.km.provisioner.pid}/status")
        if status.is_file():  # Linux; nowhere else does the system keep this for another process
            lines = status.read_text().splitlines()
            self.peak_memory_mb = next((int(line.split()[1]) // 1000 for line in lines if line.startswith("VmHWM")), None)

    def _raise_when_stopped(self):
        if self.stopped:
            raise Stopped(self.label)

    def _describe(self, name: str, value: str, traceback: str = "") -> dict[str, Any]:
        lines = self.cell.source.splitlines()
        raised = CELL_LINE.search(ANSI_COLOR.sub("", traceback))
        if raised and int(raised[1]) <= len(lines):
            line = lines[int(raised[1]) - 1]
        else:
            line = next((line for line in lines if line.strip() and not line.lstrip().startswith("#")), "")
        number = self.cell.execution_count or self.number  # a kernel that died may not have told
        return {"cell": number, "line": line.strip(), "name": name, "value": value}


class WatchedEngine(NBClientEngine):
    """papermill's own engine, with the kernel and the progress in the hands of an Execution."""

    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, *, execution: Execution, start_timeout: int, **options):
        execution.execute(
            PapermillNotebookClient(nb_man, kernel_name=kernel_name, iopub_timeout=60, startup_timeout=start_timeout, log=LOG)
        )


LOG = logging.getLogger("vitlab.batch")
LOG.addHandler(logging.NullHandler())  # what went wrong is told by the executed copy and by the table at the end
LOG.propagate = False
papermill_engines.register("vitlab", WatchedEngine)
