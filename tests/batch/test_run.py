"""Running a batch: what is out of date, what is executed, and how it ends."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import nbformat
import numpy as np
import pandas as pd
import psutil
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from tests.batch.toys import CHAIN, LOG, log_lines, write_batch, write_notebook
from tests.child_processes import start_python, start_vitlab, wait_until
from vitlab.batch import execute as execute_module, load_batch, plan_tasks, run_batch, run_notebook
from vitlab.batch.claim import CLAIM, claim_runs
from vitlab.batch.display import Display, describe_problem, format_seconds, print_plan
from vitlab.batch.execute import LocalExecutor
from vitlab.batch.run import Ended, end_in_order, execute_tasks
from vitlab.batch.state import BatchState, find_outdated
from vitlab.batch.watch import measure_memory
from vitlab.report.gather import gather_report
from vitlab.runs import PROMISED, Run

linux = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


def notes(file, **options):
    return [task["note"] for task in run_batch(file, dry_run=True, **options)["tasks"]]


def first_words(project):
    return [line.split()[0] for line in log_lines(project)]


def state_file(reports_folder):
    return reports_folder / "runs" / "batches" / "toy" / "batch.json"


def make_whole(run):
    """Write the files that notebook 03 promises, and finish."""
    for name in PROMISED["03_finetune"]:
        (run.path / name).write_text("{}")
    pd.DataFrame({"sample_id": ["a"]}).to_parquet(run.path / "predictions.parquet")
    save_file({"weight": np.zeros(2, np.float32)}, run.path / "model.safetensors")
    run.finish()


# what is out of date


def test_a_finished_batch_is_done_once_and_written_once(project, reports_folder, no_kernels):
    file = write_batch(project)
    assert {task["status"] for task in run_batch(file)["tasks"]} == {"done"}
    assert first_words(project) == ["look", "train", "judge", "train", "judge", "compare"]
    before = state_file(reports_folder).stat()
    # with nothing to do, no cluster is started
    run_batch(file, scheduler="tcp://nobody:1")
    after = state_file(reports_folder).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert run_batch(write_batch(project, title="Another"))["title"] == "Another"
    assert json.loads(state_file(reports_folder).read_text())["title"] == "Another"
    assert log_lines(project) == []
    wrong = write_batch(project, parameters={"dataset": "digitz"}, grid={}, chain=[CHAIN[0]])
    with pytest.raises(ValueError, match="digitz"):  # before the cluster
        run_batch(wrong, scheduler="tcp://nobody:1")


def test_what_is_gone_or_changed_is_done_again(project, reports_folder, no_kernels):
    file = write_batch(project, grid={"color": ["red"]}, chain=CHAIN[:2])
    look, train = run_batch(file)["tasks"]
    (reports_folder / look["path"]).unlink()
    assert notes(file) == ["executed copy is gone", ""]
    info = reports_folder / train["run"] / "run.json"
    unfinished = json.dumps(json.loads(info.read_text()) | {"status": "running"})
    for text in ("", '{"status": "do', "[]", unfinished):
        info.write_text(text)
        assert notes(file)[1] == "run is not complete"
    write_notebook(project / "notebooks" / "look.ipynb", 'dataset = "digits"\npause = 0.0', "1")
    assert notes(file)[0] == "notebook changed"
    assert notes(file, force=True) == ["asked for", "asked for"]


def test_a_failed_task_and_those_that_need_it_run_again(project, no_kernels):
    file = write_batch(project)
    (project / "red").touch()  # makes the notebook `train` fail for this colour
    run_batch(file)
    assert len(log_lines(project)) == 5
    (project / "red").unlink()
    assert [note for note in notes(file) if note] == [
        "failed before",
        "train runs again",
        "train runs again",
    ]
    run_batch(file)
    assert first_words(project) == ["train", "judge", "compare"]


def test_a_task_that_comes_back_into_the_grid_is_not_done_again(project, no_kernels):
    for colors, lines in ((["red", "blue"], 2), (["blue"], 0), (["blue", "red"], 0)):
        run_batch(write_batch(project, grid={"color": colors}, chain=[CHAIN[1]]))
        assert len(log_lines(project)) == lines


def test_a_damaged_batch_json_says_what_to_do(project, reports_folder, no_kernels):
    file, state = write_batch(project, chain=[CHAIN[0]], grid={}), state_file(reports_folder)
    state.parent.mkdir(parents=True)
    state.write_text('{"tasks": [')
    with pytest.raises(ValueError, match=r"batch\.json is damaged \(.*\); remove it"):
        run_batch(file)
    with pytest.raises(ValueError, match=r"batch\.json is damaged"):
        gather_report()


def test_a_run_that_another_batch_made_again_is_judged_again(project, reports_folder, no_kernels):
    """toy and other share a run; what `judge` had written in it goes when `other` makes it."""
    toy = write_batch(project, grid={"color": ["red"]}, chain=CHAIN[1:3])
    run_batch(toy)
    other = write_batch(project, "other", grid={"color": ["red"]}, chain=[CHAIN[1]])
    run_batch(other)
    assert first_words(project) == ["train", "judge", "train"]
    assert notes(toy) == ["", "its run was made again since"]
    for file in (toy, other, toy):
        run_batch(file)
    assert first_words(project) == ["judge"]
    # records of before `run_start` was kept stay as they are
    content = json.loads(state_file(reports_folder).read_text())
    for record in content["tasks"]:
        del record["run_start"]
    state_file(reports_folder).write_text(json.dumps(content))
    assert notes(toy) == ["", ""]


def test_a_comparison_is_out_of_date_when_another_run_is_finished(project, no_kernels):
    reads = "from vitlab.run_tables import latest_runs\nruns, _ = latest_runs(dataset)"
    compare = project / "notebooks" / "compare.ipynb"
    write_notebook(compare, 'dataset = "digits"', reads, LOG.format("'compare', len(runs)"))
    file = write_batch(project, grid={"color": ["red"]}, chain=CHAIN[1:])
    run_batch(file)
    log_lines(project)
    assert notes(file) == ["", "", ""], "its own runs are known"
    other = Run.create(name="other", dataset="digits", model="vit")
    make_whole(Run.create(name="other", dataset="elpv", model="vit"))
    assert notes(file) == ["", "", ""], "it is not finished, or of another data set"
    make_whole(other)
    assert notes(file) == ["", "", "runs changed"]
    run_batch(file)
    assert first_words(project) == ["compare"]


def test_a_file_that_a_run_has_lost_is_made_again(project, reports_folder, no_kernels):
    makes = (
        "from tests.batch.test_run import make_whole\nfrom vitlab.runs import Run\n"
        "make_whole(Run.create(name=run_name, dataset=dataset, model='vit', seed=seed))"
    )
    judges = (
        "from vitlab.runs import Run, run_path\nrun = Run(run_path(dataset=dataset, name=run_name))"
        "\nrun.write_json('metrics.json', {'auc': 1})"
    )
    cells = {"03_finetune": makes, "04_evaluate": judges, "05_interpret": "run_name"}
    for name, cell in cells.items():
        parameters = 'dataset = "digits"\nseed = 0\nrun_name = ""'
        write_notebook(project / "notebooks" / f"{name}.ipynb", parameters, cell)
    chain = [{"notebook": name} for name in cells]
    file = write_batch(project, grid={"seed": [0]}, chain=chain)
    run = reports_folder / run_batch(file)["tasks"][0]["run"]
    for again, files in enumerate(PROMISED.values()):
        for name in files:
            whole, is_text = (run / name).read_bytes(), name.endswith((".csv", ".md"))
            damages = [("missing", None), ("empty" if is_text else "damaged", b"")]
            damages += [] if is_text else [("damaged", whole[: len(whole) // 2])]
            for state, damage in damages:
                (run / name).unlink() if damage is None else (run / name).write_bytes(damage)
                found = notes(file)
                assert found[: again + 1] == [""] * again + [f"{name} is {state}"]
                assert set(found[again + 1 :]) <= {f"{list(cells)[again]} runs again"}
            (run / name).write_bytes(whole)
    assert notes(file) == ["", "", ""]


def test_the_report_asks_what_is_out_of_date(project, reports_folder, no_kernels):
    (project / "_quarto.yml").touch()
    file = write_batch(project, grid={"color": ["red", "blue"]}, chain=[CHAIN[1]])
    red, blue = (task["path"] for task in run_batch(file)["tasks"])
    batch_json = state_file(reports_folder)
    assert find_outdated(batch_json) == {red: "", blue: ""}
    train = project / "notebooks" / "train.ipynb"
    train.write_text(train.read_text().replace("a comment", "another"))  # the report shows it
    write_batch(project, grid={"color": ["red"]}, chain=[CHAIN[1] | {"parameters": {"seed": 3}}])
    assert set(find_outdated(batch_json).values()) == {
        "`notebooks/batches/toy.yml` now asks for other parameters or points"
    }
    file.unlink()
    assert find_outdated(batch_json) == {}


# a dry run


def test_a_dry_run_fetches_nothing(project, reports_folder, no_kernels, monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError(f"asked for {arguments}")

    for owner, name in ((socket, "getaddrinfo"), (socket.socket, "connect")):
        monkeypatch.setattr(owner, name, refuse)
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("vitlab.models.zoo.packaged_checkpoint", refuse)
    monkeypatch.setattr("vitlab.models.weights.try_to_load_from_cache", refuse)
    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    monkeypatch.delenv("VITLAB_DATA", raising=False)
    grid = {"model": ["deit_small_patch16_224.fb_in1k"], "dataset": ["torchvision:CIFAR10"]}
    file = write_training(project, grid, pretrained=True, epochs=10, size=224, precision="bf16")
    content = run_batch(file, dry_run=True)
    assert [(task["status"], task["note"]) for task in content["tasks"]] == [("pending", "new")]
    assert content["measured_s"] == [None]
    assert not reports_folder.exists()


def write_training(project, grid, **parameters):
    declared = ["pretrained", "size", "epochs", "learning_rate", "strategy", "precision"]
    cell = "\n".join(f"{name} = None" for name in declared)
    cell = f'dataset = "digits"\nmodel = "vit_scratch"\nseed = 0\nrun_name = ""\n{cell}'
    write_notebook(project / "notebooks" / "train.ipynb", cell)
    return write_batch(project, grid=grid, parameters=parameters, chain=[CHAIN[1]])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"precision": "fp8"}, r"^train model=vit_scratch: unknown precision 'fp8'"),
        ({"strategy": "ful"}, r"^train model=vit_scratch: unknown strategy 'ful'. Did you mean"),
        ({"epochs": 0}, r"^train model=vit_scratch: epochs must be at least 1"),
        ({"dataset": "torchvision:CIFAR"}, r"unknown image set of torchvision 'CIFAR'"),
    ],
)
def test_mistakes_in_values_are_errors(project, no_kernels, parameters, message):
    with pytest.raises(ValueError, match=message):
        run_batch(write_training(project, {"model": ["vit_scratch"]}, **parameters), dry_run=True)


def test_a_dry_run_shows_the_seconds_of_the_last_run(project, no_kernels):
    def show(content):
        console = Console(width=160, record=True, file=io.StringIO())
        print_plan(content, console)
        return " ".join(console.export_text().split())

    file = write_batch(project, chain=[CHAIN[0]], grid={})
    shown = show(run_batch(file, dry_run=True))
    assert "To run: 1 of 1 notebooks. Never run before, so of unknown time: 1." in shown
    run_batch(file)
    assert "nothing would run" in show(run_batch(file, dry_run=True))
    again = run_batch(file, dry_run=True, force=True)
    assert again["measured_s"] == [0.1]
    assert "To run: 1 of 1 notebooks. 1 of them took 0.1 s in all" in show(again)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (3.21, "3.2 s"), (119, "119 s"), (310, "5.2 min"), (12_240, "3.4 h")],
)
def test_seconds_in_words(seconds, text):
    assert format_seconds(seconds) == text


# execution, with real kernels


def test_a_failure_is_kept_with_its_cell_and_the_rest_runs(project, reports_folder, capsys):
    (project / "red").touch()
    content = run_batch(write_batch(project))
    records = {(task["notebook"], task["point"].get("color")): task for task in content["tasks"]}
    assert {key: task["status"] for key, task in records.items()} == {
        ("look", None): "done",
        ("train", "red"): "failed",
        ("judge", "red"): "skipped",
        ("train", "blue"): "done",
        ("judge", "blue"): "done",
        ("compare", None): "done",
    }
    failed, skipped = records["train", "red"], records["judge", "red"]
    line = "raise RuntimeError(f'{color} is [b]roken')"
    assert failed["error"] == {
        "cell": 5,
        "line": line,
        "name": "RuntimeError",
        "value": "red is [b]roken",
    }
    assert describe_problem(failed) == f"cell 5: {line}\nRuntimeError: red is [b]roken"
    assert skipped["note"] == "train failed"
    assert content == json.loads(state_file(reports_folder).read_text())
    copy = nbformat.read(reports_folder / failed["path"], as_version=4)
    outputs = [output for cell in copy.cells for output in cell.get("outputs", [])]
    assert any(output.get("evalue") == "red is [b]roken" for output in outputs)
    assert not (reports_folder / skipped["path"]).exists()
    assert {path.suffix for path in reports_folder.rglob(".*")} == {".lock"}
    shown = capsys.readouterr().out
    assert "train color=red   failed " in shown and "judge color=red   skipped train" in shown
    assert sys.platform != "linux" or content["tasks"][0]["peak_memory_mb"] > 20


LIMITED = {
    "dies": ["1 + 1", "import os\nos.kill(os.getpid(), 9)", "3"],
    "long": [
        "import os, subprocess, time\nchild = subprocess.Popen(['sleep', '300'])\n"
        "open('pid', 'w').write(str(child.pid))",
        "# waits\ntime.sleep(300)",
    ],
    "large": ["import time", "block = bytearray(600_000_000)\ntime.sleep(300)"],
    "fine": ["print('fine')"],
}


@linux
def test_a_kernel_that_dies_or_exceeds_a_limit_is_a_failure_and_the_rest_runs(
    project, reports_folder
):
    for name, cells in LIMITED.items():
        write_notebook(project / "notebooks" / f"{name}.ipynb", 'dataset = "digits"', *cells)
    limits = {"long": {"minutes": 0.03}, "large": {"memory": "400 MB"}}
    chain = [{"notebook": name, "grid": {}, "limits": limits.get(name, {})} for name in LIMITED]
    file = write_batch(project, grid={}, chain=chain, limits={"minutes": 10})
    dies, long, large, fine = run_batch(file, workers=2)["tasks"]
    statuses = [task["status"] for task in (dies, long, large, fine)]
    assert statuses == ["failed", "failed", "failed", "done"]
    assert describe_problem(dies).startswith("cell 4: import os\nDeadKernelError: the kernel died")
    assert long["error"]["name"] == "OverTime"
    assert long["error"]["value"].startswith("it took longer than the 0.03 minutes")
    assert large["error"]["name"] == "OverMemory"
    assert large["error"]["line"] == "block = bytearray(600_000_000)"
    assert large["error"]["value"].endswith("of memory; the batch file gives it 400 MB")
    for task, outputs in ((dies, ["execute_result", "error", ""]), (large, ["", "error"])):
        cells = nbformat.read(reports_folder / task["path"], as_version=4).cells
        kinds = [cell.outputs[0].output_type if cell.outputs else "" for cell in cells[3:]]
        assert kinds == outputs
    if (project / "pid").exists():  # it came as far as that
        assert not is_running(int((project / "pid").read_text()))


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_two_workers_share_the_cores(project, monkeypatch):
    """Each of two notebooks waits for the other, which only works side by side."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    meet = (
        "import os, time\nopen(color, 'w').close()\n"
        "while not all(map(os.path.exists, ['red', 'blue'])):\n    time.sleep(0.02)"
    )
    shows = "print(os.environ['OMP_NUM_THREADS'], file=open(color, 'w'))"
    write_notebook(project / "notebooks" / "train.ipynb", 'color = ""', meet, shows)
    file = write_batch(project, parameters={}, chain=[{"notebook": "train"}], limits={"minutes": 5})
    assert [task["status"] for task in run_batch(file, workers=2)["tasks"]] == ["done", "done"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert (project / "red").read_text() == f"{max(1, cores // 2)}\n"
    assert "OMP_NUM_THREADS" not in os.environ


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGHUP])
def test_a_batch_ended_half_way_leaves_nothing_behind_and_continues(
    project, reports_folder, number
):
    slow = (
        "import os, time\nprint(os.getpid(), os.getppid(), file=open('pids.new', 'w'))\n"
        "os.rename('pids.new', 'pids')\ntime.sleep(delay)"
    )
    write_notebook(project / "notebooks" / "train.ipynb", 'color = ""\ndelay = 600.0', slow)
    options = {"grid": {"color": ["red"]}, "chain": [{"notebook": "train"}]}
    file = write_batch(project, parameters={}, **options)
    temporary = project / "temporary"
    temporary.mkdir()
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    environment["TMPDIR"] = str(temporary)
    with start_vitlab("batch", str(file), env=environment) as batch:
        wait_until((project / "pids").exists)
        pids = [int(pid) for pid in (project / "pids").read_text().split()]
        batch.send_signal(number)
        _, errors = batch.communicate(timeout=60)
    assert batch.returncode == (-number if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert errors == "Stopped. Run the same command to continue.\n"
        assert not list(temporary.iterdir())
    wait_until(lambda: not any(is_running(pid) for pid in pids))
    content = json.loads(state_file(reports_folder).read_text())
    assert [task["status"] for task in content["tasks"]] == ["pending"]
    assert not list(reports_folder.rglob("*.ipynb"))
    if number == signal.SIGKILL:
        file = write_batch(project, parameters={"delay": 0}, **options)
        assert [task["status"] for task in run_batch(file)["tasks"]] == ["done"]


def test_one_notebook_alone_gets_a_second_try_if_its_kernel_does_not_start(project, monkeypatch):
    """The ports of a kernel are chosen before it opens them; another process may be quicker."""
    original, calls = execute_module.papermill.execute_notebook, []

    def die_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return original(*arguments, **options)

    monkeypatch.setattr(execute_module.papermill, "execute_notebook", die_once)
    copy = project / "out" / "copy.ipynb"
    outcome = run_notebook(project / "notebooks" / "look.ipynb", copy, {"pause": 2})
    assert (outcome["status"], outcome["error"], len(calls)) == ("done", None, 2)
    cells = nbformat.read(copy, as_version=4).cells
    assert any("pause = 2.0" in cell.source for cell in cells)


def test_what_had_ended_when_the_batch_was_stopped_is_kept(project, monkeypatch, no_kernels):
    stopped = threading.Event()

    def run(self):
        stopped.wait(10)
        done = {"status": "done", "seconds": 1.0, "peak_memory_mb": None, "error": None}
        return done if "red" in self.label else 1 / 0

    def collect(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(execute_module.Execution, "run", run)
    monkeypatch.setattr(execute_module.Execution, "stop", lambda self, force: stopped.set())
    monkeypatch.setattr(LocalExecutor, "collect", collect)
    batch = load_batch(write_batch(project, chain=[CHAIN[1]]))
    tasks = plan_tasks(batch)
    state = BatchState(batch, tasks)
    display = Display(2)
    executor = LocalExecutor(2, None, project, display)
    with pytest.raises(KeyboardInterrupt):
        execute_tasks(tasks, [0, 1], state, executor, display)
    assert [task["status"] for task in state.content["tasks"]] == ["done", "pending"]


@linux
def test_memory_of_a_process_counts_its_children_and_shared_pages_once():
    code = (
        "import os, sys\nshared = bytearray(200_000_000)\nos.fork()\n"
        "block = bytearray(100_000_000)\nos.write(1, b'ready\\n')\nsys.stdin.read()"
    )
    with start_python(code, stdin=subprocess.PIPE) as process:
        assert [process.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
        assert 400e6 < measure_memory(process.pid) < 500e6
        # pages of both count twice
        assert measure_memory(process.pid, enough=10**9) > 590e6
    assert measure_memory(process.pid) == 0


# the terminal


class Terminal(io.StringIO):
    def isatty(self):
        return True


def show_progress():
    with Display(total=3, width=5) as display:
        for number in range(2):
            display.show(number, f"nb {number}", 1, 4)
        display.note("2 running on 2 workers")
        display.show(1, "nb 1", 3, 4)
        display.settle(0, "nb 0", "done")
        display.show(0, "nb 0", 4, 4)  # a message that comes late
        time.sleep(0.6)


def test_a_log_gets_one_line_for_each_notebook_that_has_ended(capsys):
    show_progress()
    assert capsys.readouterr() == ("nb 0   done\n", "")


def test_a_terminal_shows_the_batch_and_its_running_notebooks(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    show_progress()
    drawn = screen.getvalue()
    assert "0 of 3 notebooks" in drawn
    before, ended, after = drawn.partition("nb 0   done")
    assert ended and "nb 0" in before
    _, reached, last = after.rpartition("1 of 3 notebooks, 2 running on 2 workers, about ")
    assert reached and "cell 3 of 4" in last and "nb 0" not in last


# other batches, and signals


def test_a_batch_with_runs_of_another_running_one_does_not_start(
    project, reports_folder, no_kernels
):
    file = write_batch(project, grid={"color": ["red"]}, chain=[CHAIN[1]])
    run = plan_tasks(load_batch(file))[0].run
    batches = reports_folder / "runs" / "batches"
    with claim_runs(batches / "other", [run]):
        holder = rf"another batch \(pid {os.getpid()} on .*\) is running over .*{run}; wait for it"
        with pytest.raises(ValueError, match=holder):
            run_batch(file)
        assert notes(file) == ["new"] and log_lines(project) == []
    run_batch(file)
    with claim_runs(batches / "toy", []):
        assert run_batch(file)["tasks"][0]["status"] == "done", "there is nothing to do"
        with pytest.raises(ValueError, match=r"is running over .*batches.toy"):
            run_batch(file, force=True)


def test_only_shared_runs_are_refused(tmp_path):
    one, two = tmp_path / "runs" / "batches" / "one", tmp_path / "runs" / "batches" / "two"
    with claim_runs(one, ["runs/digits/a", "runs/digits/b"]):
        for folder, runs, place in (
            (one, [], one),
            (two, ["runs/digits/c", "runs/digits/b"], tmp_path / "runs/digits/b"),
        ):
            with pytest.raises(ValueError, match=f"over {place}; wait"), claim_runs(folder, runs):
                pass
        with claim_runs(two, ["runs/digits/c"]):
            assert (two / CLAIM).is_file()
    assert not list(tmp_path.rglob(CLAIM))


def test_a_claim_ends_with_its_process(tmp_path):
    one, two = tmp_path / "runs" / "batches" / "one", tmp_path / "runs" / "batches" / "two"
    code = (
        "import time, pathlib\nfrom vitlab.batch.claim import claim_runs\n"
        f"with claim_runs(pathlib.Path({str(one)!r}), ['runs/digits/a']):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    with start_python(code) as holder:
        assert holder.stdout.readline() == "held\n"
        message = rf"another batch \(pid {holder.pid} on "
        with pytest.raises(ValueError, match=message), claim_runs(two, ["runs/digits/a"]):
            pass
    assert (one / CLAIM).is_file()
    for folder in (two, one):
        with claim_runs(folder, ["runs/digits/a"]):
            pass


def test_a_batch_runs_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def refuse(self, **options):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("vitlab.batch.claim.FileLock.acquire", refuse)
    with claim_runs(tmp_path / "runs" / "batches" / "one", ["runs/digits/a"]):
        pass


@pytest.fixture
def default_signals():
    """As in a terminal, also where this process ignores SIGHUP (`nohup pytest`)."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without asking")
def test_a_signal_is_an_interrupt_with_a_number(default_signals):
    for number in (signal.SIGTERM, signal.SIGHUP):
        with end_in_order():
            with pytest.raises(Ended) as stop:
                os.kill(os.getpid(), number)
                threading.Event().wait(10)
            os.kill(os.getpid(), signal.SIGHUP)  # a second one does not interrupt the end
        assert isinstance(stop.value, KeyboardInterrupt) and stop.value.number == number
        assert signal.getsignal(number) is signal.SIG_DFL
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does
    with end_in_order():
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
