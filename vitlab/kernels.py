"""Notebook kernels that start at once: forked from one warm process that has imported the heavy
libraries.

Importing torch, timm and their like takes seconds, in every notebook of a batch anew. Here one
process imports them once and forks a kernel whenever it is asked to; the kernel is ipykernel's
ordinary one, and each starts from the same fresh copy. The warm process ends when the batch closes
it or dies, by SIGKILL too; the kernels are its children and end with it (ipykernel's parent
poller). Linux only: elsewhere the libraries do not survive a fork. There, and whenever the warm
process does not answer, kernels start the ordinary way."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import pickle
import pkgutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.pool import ExceptionWithTraceback
from typing import Any

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import LocalProvisioner

from vitlab.errors import UserError

ANSWER_SECONDS = 600  # that the warm process has for a call; importing libraries takes seconds
END_SECONDS = 10  # that it has to end once it is killed
GONE = (OSError, EOFError)  # what a connection raises when its other end is closed


class RemoteError(RuntimeError):
    """Stands for an exception of another process that cannot be sent; it has the same text."""


class NoAnswer(ConnectionError):
    """The warm process does not answer; an OSError may come from the called function."""


class WarmProcess:
    """A process that imports modules and forks kernels. It ends with its `with` block."""

    def __init__(self):
        self._lock, self._process, self._unread = threading.Lock(), None, 0
        self._connection, theirs = Pipe()
        if sys.platform == "linux":
            # torch may look for a GPU while it is imported: through NVML it does so without
            # starting CUDA, which no fork survives
            self._process = subprocess.Popen(
                [sys.executable, "-c", "from vitlab.kernels import serve; serve()"],
                env={**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        theirs.close()

    def call(self, function: str, *arguments) -> Any:
        """Call `module:name` in the warm process, else here; gives or raises what it does, with the
        traceback as cause (RemoteError for an error that pickle cannot send)."""
        try:
            return self.ask(function, *arguments)
        except NoAnswer:
            return pkgutil.resolve_name(function)(*arguments)

    def preload(self, modules: list[str]) -> None:
        """Import modules for the kernels to come, without waiting; failures are ignored."""
        with self._lock, suppress(*GONE):
            self._connection.send(("vitlab.kernels:import_modules", [modules]))
            self._unread += 1

    def ask(self, function: str, *arguments) -> Any:
        """Call `module:name` there. NoAnswer where that cannot be, or not in time."""
        try:
            with self._lock:
                self._connection.send((function, arguments))
                while self._unread:
                    self._receive()
                    self._unread -= 1
                fine, answer = self._receive()
        except GONE as error:
            raise NoAnswer from error
        if fine:
            return answer
        raise answer

    def _receive(self) -> tuple[bool, Any]:
        if not self._connection.poll(ANSWER_SECONDS):
            self.close()
            raise NoAnswer
        return self._connection.recv()

    def attach(self, manager: KernelManager) -> KernelManager:
        """Let the manager start ipykernel of this Python from here, whatever `python3` is."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        manager._kernel_spec = KernelSpec(argv=command, display_name="Python 3", language="python")
        manager.provisioner = WarmProvisioner(kernel_spec=manager.kernel_spec, parent=manager)
        manager.provisioner.warm = self
        return manager

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_SECONDS)
        self._connection.close()

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class ForkedKernel:
    """A forked kernel with the part of subprocess.Popen that a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, warm: WarmProcess, pid: int):
        self.warm, self.pid, self.returncode = warm, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self.warm.ask("vitlab.kernels:exit_code", self.pid)
            except GONE:
                self.returncode = -signal.SIGKILL  # without its parent the kernel ends, too
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class WarmProvisioner(LocalProvisioner):
    """Starts ipykernel from the warm process, and anything else the ordinary way; silent."""

    warm: WarmProcess

    async def launch_kernel(self, cmd, **kwargs):
        if cmd[:3] == [sys.executable, "-m", "ipykernel_launcher"]:
            with suppress(*GONE):
                folder = str(kwargs.get("cwd") or os.getcwd())
                pid = self.warm.ask("vitlab.kernels:fork_kernel", cmd[3:], kwargs["env"], folder)
                self.process, self.pid, self.pgid, self.cwd = (
                    ForkedKernel(self.warm, pid),
                    pid,
                    pid,
                    folder,
                )
                return self.connection_info
        return await super().launch_kernel(
            cmd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **kwargs
        )


def serve() -> None:
    """The warm process: call the functions asked for on standard input, until it closes."""
    # Ctrl-C is for the batch, which then ends this process
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(0)
    while True:
        try:
            function, arguments = connection.recv()
        except GONE:
            os._exit(0)
        try:
            connection.send((True, pkgutil.resolve_name(function)(*arguments)))
        except Exception as error:
            connection.send((False, pack_error(error)))


def pack_error(error: Exception) -> ExceptionWithTraceback:
    """An exception and its traceback in a form that can be pickled; unpickled, it is the exception,
    with the traceback as cause.

    One that pickle loses or changes, as when its constructor needs keyword arguments, becomes a
    RemoteError (or UserError) with the same text."""
    sent = error
    try:
        copy = pickle.loads(pickle.dumps(error))
        travels = type(copy) is type(error) and str(copy) == str(error)
    except Exception:
        travels = False
    if not travels and isinstance(error, UserError):
        sent = UserError(str(error))
    elif not travels:
        sent = RemoteError("".join(traceback.format_exception_only(error)).strip())
    return ExceptionWithTraceback(sent, error.__traceback__)


def import_modules(names: list[str]) -> None:
    """Import them, and what packages of vitlab would import when a name of theirs is used."""
    # ipykernel last: libraries that see it loaded take this for a notebook
    for name in [*names, "ipykernel.kernelapp"]:
        with suppress(Exception):
            module = importlib.import_module(name)
            for lazy in getattr(module, "__all__", ()) if name.startswith("vitlab.") else ():
                with suppress(Exception):
                    getattr(module, lazy)
    gc.freeze()  # no kernel's garbage collector need walk over, and so copy, what all kernels share


def exit_code(pid: int) -> int | None:
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def fork_kernel(arguments: list[str], environment: dict[str, str], folder: str) -> int:
    """Fork, and give the child's id. The child runs ipykernel until shutdown."""
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
        raise OSError("something has started CUDA here, and a fork could not use it")
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # a group of its own, so that an interrupt reaches what the notebook starts, too
        os.setsid()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # the connection is the parent's
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["ipykernel_launcher", *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed()  # or else all kernels would draw the same numbers
        from ipykernel.kernelapp import IPKernelApp

        IPKernelApp.launch_instance(
            argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"]
        )
        atexit._run_exitfuncs()
        code = 0
    finally:
        # as multiprocessing does: taking the libraries down piece by piece would cost seconds
        os._exit(code)
