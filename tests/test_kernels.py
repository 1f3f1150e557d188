import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback

import pytest
from jupyter_client.manager import KernelManager
from nbformat import write
from nbformat.v4 import new_code_cell, new_notebook

from tests.child_processes import start_python, wait_until
from vitlab.batch.execute import Execution
from vitlab.batch.run import kernel_environment
from vitlab.errors import UserError
from vitlab.kernels import ForkedKernel, NoAnswer, RemoteError, WarmProcess

linux = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")


class Kernel:
    """A running kernel and its client; `run` gives what a cell has printed, shown or raised."""

    def __init__(self, warm):
        self.manager = warm.attach(KernelManager(kernel_name="python3"))
        self.manager.start_kernel(extra_arguments=["--HistoryManager.hist_file=:memory:"])
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=30)
        self.process = self.manager.provisioner.process

    def run(self, code):
        outputs = {"stdout": "", "stderr": ""}

        def keep(message):
            content = message["content"]
            if message["msg_type"] == "stream":
                outputs[content["name"]] += content["text"]
            elif message["msg_type"] in ("display_data", "execute_result"):
                outputs["data"] = content["data"]
            elif message["msg_type"] == "error":
                outputs["error"] = content["ename"]

        self.client.execute_interactive(code, output_hook=keep, timeout=30)
        return outputs

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_wait_time = 60  # a busy machine takes longer than 5 s
        self.manager.shutdown_kernel()


@pytest.fixture(scope="module")
def warm():
    with kernel_environment(), WarmProcess() as process:
        process.preload(["numpy", "matplotlib.pyplot", "no_such_module"])
        yield process


@pytest.fixture(scope="module")
def kernel(warm):
    kernel = Kernel(warm)
    yield kernel
    kernel.close()


def is_running(pid):
    """Whether a process does anything yet; one that has ended but was not waited for does not
    count.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@linux
def test_forked_kernel_has_the_libraries_and_a_life_of_its_own(warm, kernel):
    assert isinstance(kernel.process, ForkedKernel)
    shown = kernel.run(
        "import os, sys; print('matplotlib.pyplot' in sys.modules, os.getpid(), os.getppid(),"
        " os.getsid(0))"
    )
    assert shown["stdout"].split() == [
        "True",
        str(kernel.process.pid),
        str(warm._process.pid),
        str(kernel.process.pid),
    ]
    assert (
        kernel.run("os.read(0, 9)")["data"]["text/plain"] == "b''"
    )  # standard input is empty, not the channel of the warm process
    assert kernel.run("__name__")["data"]["text/plain"] == "'__main__'"


def test_streams_and_figures_arrive(kernel):
    printed = kernel.run("import sys; print('out'); print('err', file=sys.stderr)")
    assert printed == {"stdout": "out\n", "stderr": "err\n"}
    shown = kernel.run("import matplotlib.pyplot as plt\nplt.plot([1, 2]);")
    assert set(shown["data"]) == {"image/png", "text/plain"}


def test_interrupt_ends_the_cell_and_not_the_kernel(kernel):
    kernel.run("import time; answer = 41")
    # else what follows at once is dropped
    message = kernel.client.execute("while True: time.sleep(0.01)", stop_on_error=False)
    time.sleep(0.3)
    kernel.manager.interrupt_kernel()
    while (reply := kernel.client.get_shell_msg(timeout=10))["parent_header"]["msg_id"] != message:
        pass
    assert reply["content"]["ename"] == "KeyboardInterrupt"
    shown = kernel.run("answer + 1")
    assert shown.get("data", shown) == {"text/plain": "42"}


def test_kernels_draw_different_numbers(warm, kernel):
    other = Kernel(warm)
    code = "import numpy; numpy.random.rand()"
    assert kernel.run(code)["data"]["text/plain"] != other.run(code)["data"]["text/plain"]
    other.close()


def test_shutdown_runs_exit_handlers_and_leaves_no_process(warm, tmp_path):
    kernel = Kernel(warm)
    kernel.run(
        f"import atexit, pathlib; atexit.register(pathlib.Path({str(tmp_path / 'left')!r}).touch);"
    )
    process = kernel.process
    kernel.close()
    assert process.poll() == 0
    assert (tmp_path / "left").exists()
    assert not is_running(process.pid)


@linux
def test_a_killed_kernel_is_seen_as_dead(warm):
    kernel = Kernel(warm)
    os.kill(kernel.process.pid, signal.SIGKILL)
    wait_until(lambda: kernel.process.poll() is not None)
    assert kernel.process.returncode == -signal.SIGKILL
    assert not kernel.manager.is_alive()
    kernel.close()


def test_without_warm_process_kernels_start_the_ordinary_way(monkeypatch):
    monkeypatch.setattr(sys, "platform", "elsewhere")
    with kernel_environment(), WarmProcess() as nothing:
        monkeypatch.undo()
        nothing.preload(["json"])
        assert nothing.call("operator:add", 1, 2) == 3
        kernel = Kernel(nothing)
        assert isinstance(kernel.process, subprocess.Popen)
        assert kernel.run("print(6 * 7)")["stdout"] == "42\n"
        kernel.close()


def write_kernelspec(folder, text):
    (folder / "kernels" / "python3").mkdir(parents=True)
    (folder / "kernels" / "python3" / "kernel.json").write_text(text)


ENDS_AT_ONCE = json.dumps(
    {
        "argv": [sys.executable, "-c", "raise SystemExit('broken')"],
        "display_name": "x",
        "language": "python",
    }
)


@pytest.mark.parametrize(
    ("text", "alive"), [("{", True), (ENDS_AT_ONCE, True), (ENDS_AT_ONCE, False)]
)
def test_the_kernel_is_this_python_whatever_is_installed_as_python3(
    tmp_path, monkeypatch, text, alive
):
    """Case C17."""
    write_kernelspec(tmp_path, text)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    with kernel_environment(), WarmProcess() as warm:
        if not alive and warm._process:
            warm._process.kill()
            warm._process.wait(timeout=30)
        kernel = Kernel(warm)
        assert kernel.run("import sys; print(sys.executable)")["stdout"] == f"{sys.executable}\n"
        kernel.close()


def test_a_kernel_that_does_not_start_is_one_sentence(tmp_path, monkeypatch):
    shadow = tmp_path / "ipykernel_launcher.py"
    shadow.write_text("raise SystemExit('broken')")
    write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "toy.ipynb")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.setattr(sys, "platform", "elsewhere")
    with WarmProcess() as nothing:
        monkeypatch.undo()
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        )
        with pytest.raises(
            UserError,
            match=(
                r"^Kernel died before replying to kernel_info; `.*python.* -m ipykernel_launcher`"
                r" shows why$"
            ),
        ):
            Execution(tmp_path / "toy.ipynb", tmp_path / "out" / "toy.ipynb", {}, nothing).run()


@linux
def test_a_warm_process_that_does_not_answer_in_time_is_replaced(monkeypatch):
    monkeypatch.setattr("vitlab.kernels.ANSWER_SECONDS", 0.5)
    with WarmProcess() as warm:
        with pytest.raises(NoAnswer):
            warm.ask("time:sleep", 60)
        assert not is_running(warm._process.pid)
        assert warm.call("os:getpid") == os.getpid()
        kernel = Kernel(warm)
        assert isinstance(kernel.process, subprocess.Popen)
        kernel.close()


@linux
def test_call_runs_in_the_other_process_and_brings_errors_back(warm):
    assert warm.call("os:getpid") == warm._process.pid
    with pytest.raises(ValueError, match="invalid literal"):
        warm.call("builtins:int", "x")
    assert warm.call("os:getpid") == warm._process.pid


class KeywordError(Exception):
    """Pickle can send it and not build it again."""

    def __init__(self, *, code):
        super().__init__(f"code {code}")


class KeywordMistake(UserError):
    def __init__(self, *, name):
        super().__init__(f"there is no {name}")


class LockedError(Exception):
    """Pickle cannot even send it."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


class ChangedError(Exception):
    """Pickle builds it again with another text."""

    def __init__(self, text="nothing"):
        super().__init__()
        self.text = text

    def __str__(self):
        return self.text

    def __reduce__(self):
        return ChangedError, ()


class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("no text")


def fail(kind):
    if kind == "keyword":
        raise KeywordError(code=7)
    if kind == "mistake":
        raise KeywordMistake(name="data set x")
    if kind == "locked":
        raise LockedError("held")
    if kind == "changed":
        raise ChangedError("something")
    if kind == "silent":
        raise SilentError
    if kind == "answer":
        return threading.Lock()
    raise LookupError("plain")


@linux
@pytest.mark.parametrize(
    ("kind", "error", "text"),
    [
        ("keyword", RemoteError, "tests.test_kernels.KeywordError: code 7"),
        ("mistake", UserError, "there is no data set x"),
        ("locked", RemoteError, "tests.test_kernels.LockedError: held"),
        ("changed", RemoteError, "tests.test_kernels.ChangedError: something"),
        ("silent", RemoteError, "tests.test_kernels.SilentError: <exception str() failed>"),
        ("answer", TypeError, "cannot pickle '_thread.lock' object"),
        ("plain", LookupError, "plain"),
    ],
)
def test_every_error_arrives_with_its_type_text_and_traceback(warm, monkeypatch, kind, error, text):
    monkeypatch.setattr("vitlab.kernels.pkgutil.resolve_name", None)  # it must not be called here
    with pytest.raises(error) as caught:
        warm.call("tests.test_kernels:fail", kind)
    assert (type(caught.value), str(caught.value)) == (error, text)
    shown = "".join(traceback.format_exception(caught.value))
    assert kind == "answer" or ("in fail" in shown and "test_kernels.py" in shown)
    assert warm.ask("os:getpid") == warm._process.pid


@linux
def test_an_error_of_the_function_itself_is_no_reason_to_call_it_here_too(
    warm, tmp_path, monkeypatch
):
    called_here = []
    monkeypatch.setattr("vitlab.kernels.pkgutil.resolve_name", called_here.append)
    with pytest.raises(FileNotFoundError):
        warm.call("os:listdir", str(tmp_path / "none"))
    assert called_here == []


@linux
def test_kernels_end_when_their_batch_is_killed():
    """SIGKILL leaves no time to tidy up: the warm process sees its channel close, the kernels see
    the warm process end.
    """
    code = """
        import time
        from jupyter_client.manager import KernelManager
        from vitlab.kernels import WarmProcess
        warm = WarmProcess()
        manager = warm.attach(KernelManager(kernel_name="python3"))
        manager.start_kernel()
        client = manager.client(); client.start_channels(); client.wait_for_ready(timeout=30)
        client.execute("while True: pass")
        print(warm._process.pid, manager.provisioner.pid, flush=True)
        time.sleep(60)
    """
    with start_python(textwrap.dedent(code), stderr=None) as batch:
        pids = [int(pid) for pid in batch.stdout.readline().split()]
        assert len(pids) == 2 and all(is_running(pid) for pid in pids)
    wait_until(lambda: not any(is_running(pid) for pid in pids))
