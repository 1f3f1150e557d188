"""Notebook kernels that start at once: forked from one warm process that has imported the heavy libraries.

Importing torch, timm and their like takes seconds, in every notebook of a batch anew. Here one process imports them once and
then forks a kernel whenever it is asked to; the kernel is the ordinary one of ipykernel, and every kernel starts from the same
fresh copy. The warm process reads requests from a socket and ends when the batch closes it or dies, by SIGKILL too; the kernels
are its children and end with it (ipykernel's parent poller). Linux only: elsewhere libraries do not survive a fork. There, and
whenever the warm process does not answer, kernels start the ordinary way.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

from jupyter_client.manager import KernelManager
from jupyter_client.provisioning import LocalProvisioner

LAUNCHER = ["-m", "ipykernel_launcher"]


class WarmProcess:
    """A process that has `modules` imported and forks kernels. Use it in a `with` block; what it forked ends with it."""

    def __init__(self, modules: list[str]):
        self._lock = threading.Lock()
        self._process = None
        if sys.platform != "linux":
            return
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-c", "from vitlab.kernels import serve; serve()", "ipykernel.kernelapp", *modules]
            # torch may look for a GPU while it is imported; by this it asks the driver without starting CUDA, which no fork survives
            self._process = subprocess.Popen(command, stdin=theirs, env={**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"})
        self._socket, self._channel = ours, ours.makefile("rw", encoding="utf-8")

    def ask(self, **request) -> int | None:
        """Send a request to `serve`, give its answer; OSError when there is nobody to answer."""
        if self._process is None:
            raise ConnectionError("there is no warm process")
        with self._lock:
            self._channel.write(json.dumps(request) + "\n")
            self._channel.flush()
            answer = self._channel.readline()
        if not answer:
            raise ConnectionError("the warm process has ended")
        return json.loads(answer)

    def attach(self, manager: KernelManager) -> KernelManager:
        """Let the manager start its kernel from here."""
        manager.provisioner = WarmProvisioner(kernel_spec=manager.kernel_spec, parent=manager)
        manager.provisioner.warm = self
        return manager

    def close(self) -> None:
        if self._process is not None:
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes a thread that waits for an answer
            self._process.wait()

    def __enter__(self) -> WarmProcess:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


class ForkedKernel:
    """A kernel forked by the warm process, with the part of the interface of subprocess.Popen that a provisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, warm: WarmProcess, pid: int):
        self.warm, self.pid, self.returncode = warm, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                self.returncode = self.warm.ask(poll=self.pid)
            except OSError:
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
    """Starts an ipykernel of this Python from the warm process, and anything else the ordinary way."""

    warm: WarmProcess

    async def launch_kernel(self, cmd, **kwargs):
        if cmd[:3] == [sys.executable, *LAUNCHER]:
            with contextlib.suppress(OSError):
                pid = self.warm.ask(arguments=cmd[3:], environment=kwargs["env"], folder=str(kwargs.get("cwd") or os.getcwd()))
                self.process, self.pid, self.pgid = ForkedKernel(self.warm, pid), pid, pid
                return self.connection_info
        return await super().launch_kernel(cmd, **kwargs)


def serve() -> None:
    """The life of the warm process: import the modules named on the command line, then answer requests until the channel closes.

    {"poll": pid} is answered by the exit code or null, any other request by the id of a forked kernel.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the batch, which then ends this process
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(0), "w")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for name in sys.argv[1:]:
        with contextlib.suppress(Exception):  # the notebook that imports it shows the error
            importlib.import_module(name)
    for line in requests:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                requests.close()
                answers.close()
                return become_kernel(**request)  # and from there to the ordinary end of a Python process
        print(json.dumps(answer), file=answers, flush=True)


def become_kernel(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    """In the forked process: put right what a newly started process would have of its own, then run ipykernel until shutdown."""
    os.setsid()  # a process group of its own, so that an interrupt reaches what the notebook starts, too
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = [LAUNCHER[1], *arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # or else all kernels would draw the same numbers
    from ipykernel.kernelapp import IPKernelApp

    IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])
