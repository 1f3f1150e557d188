"""The crew of a cluster and the order of a batch, held against a client that only notes what it is
asked for.
"""

import pickle
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from vitlab.batch.chain import execute_chain
from vitlab.batch.crew import ClusterGone, DaskCrew
from vitlab.batch.limits import Limits, Stopped
from vitlab.batch.local import LocalCrew
from vitlab.batch.probe import probe_worker
from vitlab.batch.progress import Board
from vitlab.batch.remote import run_task
from vitlab.batch.summary import describe_problem
from vitlab.batch.workers import Workers
from vitlab.errors import UserError

DONE = {"status": "done", "seconds": 1.0, "peak_memory_mb": None, "error": None}


class Client:
    """Of a scheduler with these workers; `submitted` has a future for each task that was handed
    over.
    """

    status = "running"

    def __init__(self, *names):
        self.there = {name: {"nthreads": 1, "resources": {}, "name": name} for name in names}
        self.scheduler = SimpleNamespace(identity=lambda n_workers: {"workers": self.there})
        self.submitted, self.cancelled = [], []

    def sync(self, function, callback_timeout, **options):
        return function(**options)

    def subscribe_topic(self, topic, handler):
        self.tell = lambda **facts: handler((0, facts))

    def submit(self, function, job, *needs, key, workers, **options):
        future = SimpleNamespace(key=key, status="pending", outcome=None, worker=workers[0])
        future.done, future.result = (
            lambda: future.status != "pending",
            lambda timeout: future.outcome,
        )
        self.submitted.append(future)
        return future

    def cancel(self, futures, force):
        for future in futures if isinstance(futures, list) else [futures]:
            future.status = "cancelled"
            self.cancelled.append(future)

    def run(self, function, *arguments, workers, on_error):
        return {}

    def set_metadata(self, key, value): ...


def make_task(source, **resources):
    step = SimpleNamespace(
        notebook=source.stem, source=source, resources=resources, limits=Limits(), once=False
    )
    return SimpleNamespace(
        step=step,
        label=source.stem,
        needs=(),
        point={},
        path=f"{source.stem}.ipynb",
        run=None,
        parameters={},
    )


def make_crew(client, tasks, reports, patience=60.0):
    workers = Workers(client, dict.fromkeys(client.there, probe_worker()))
    return DaskCrew(
        client,
        "tcp://s:1",
        tasks,
        workers,
        "session",
        reports,
        reports / "token",
        [],
        Board(1),
        patience,
    )


@pytest.fixture
def notebook(tmp_path):
    path = tmp_path / "train.ipynb"
    path.write_text("{}")
    return path


def test_a_notebook_that_was_removed_is_a_row(notebook, tmp_path):
    task = make_task(notebook)
    crew = make_crew(Client("a"), [task], tmp_path)
    notebook.unlink()
    crew.start(0, task)
    ((number, outcome),) = crew.collect()
    assert (number, outcome["status"], outcome["error"]["name"]) == (
        0,
        "failed",
        "FileNotFoundError",
    )
    assert str(notebook) in outcome["error"]["value"]


def test_a_task_that_has_begun_is_not_handed_over_anew_when_another_worker_is_lost(
    notebook, tmp_path
):
    client, tasks = Client("a", "b"), [make_task(notebook), make_task(notebook)]
    crew = make_crew(client, tasks, tmp_path)
    for number, task in enumerate(tasks):
        crew.start(number, task)
    lost, begun = client.submitted
    assert lost.worker != begun.worker
    client.tell(kind="started", number=1, key=begun.key)  # has come, and was not read yet
    del client.there[lost.worker]
    crew._look_for_losses(force=True)
    assert client.submitted == [lost, begun] and client.cancelled == [lost]


def test_what_no_worker_offers_is_named_when_patience_ends(notebook, tmp_path):
    task = make_task(notebook, GPU=2.0)
    crew = make_crew(Client("a"), [task], tmp_path, patience=-1)
    assert not crew.has_place(task)
    with pytest.raises(
        ClusterGone, match=r"has had no worker that offers GPU=2, which train asks for, for"
    ):
        crew.collect()


def stop_half_way(tasks, crew, ending):
    """The batch is ended as soon as all tasks have been handed over; what is settled, by number."""
    settled = {}
    state = SimpleNamespace(
        begin=lambda number: None,
        settle=lambda number, **outcome: settled.update({number: outcome["status"]}),
        content={},
        reports=Path(),
    )

    def end():
        ending()
        raise KeyboardInterrupt

    crew.collect = end
    with pytest.raises(KeyboardInterrupt):
        execute_chain(tasks, [*range(len(tasks))], state, crew, Board(1))
    return settled


def test_what_had_ended_on_a_cluster_when_the_batch_was_stopped_is_kept(notebook, tmp_path):
    client, tasks = Client("a", "b", "c", "d"), [make_task(notebook) for _ in range(4)]

    def ending():
        for future, outcome in zip(
            client.submitted, (None, DONE | {"left": {"worker": "b"}}, DONE), strict=False
        ):
            # one is lost, one lies on its worker, one is at home
            future.status, future.outcome = "finished", outcome

    assert stop_half_way(tasks, make_crew(client, tasks, tmp_path), ending) == {2: "done"}
    assert client.cancelled == client.submitted


def test_what_had_ended_here_when_the_batch_was_stopped_is_kept(notebook, tmp_path, monkeypatch):
    class Execution:
        def __init__(self, *arguments, **options):
            self.label, self.stopped = arguments[4], threading.Event()

        def run(self):
            self.stopped.wait(10)
            return DONE if self.label == "first" else 1 / 0

        def stop(self, force):
            self.stopped.set()

    monkeypatch.setattr("vitlab.batch.local.Execution", Execution)
    tasks = [make_task(notebook.with_name(f"{name}.ipynb")) for name in ("first", "second")]
    assert stop_half_way(tasks, LocalCrew(2, None, tmp_path, Board(1)), lambda: None) == {0: "done"}


@pytest.fixture
def worker(monkeypatch):
    """What `run_task` finds around it on a worker."""
    scheduler = SimpleNamespace(get_metadata=None)
    there = SimpleNamespace(
        loop=None, scheduler=scheduler, address="tcp://w", log_event=lambda *arguments: None
    )
    monkeypatch.setattr("vitlab.batch.remote.get_worker", lambda: there)
    monkeypatch.setattr("vitlab.batch.remote.sync", lambda *arguments, **options: None)


class OddError(Exception):
    """One that pickle cannot build again."""

    def __init__(self, *, code):
        super().__init__(f"code {code}")


@pytest.mark.parametrize(
    ("error", "name", "value", "traced"),
    [
        (OddError(code=7), "OddError", "code 7", True),
        (TypeError("None is no number"), "TypeError", "None is no number", True),
        (UserError("no kernel starts"), "UserError", "no kernel starts", False),
        (
            OSError(28, "No space left on device", "/tmp/x"),
            "OSError",
            "[Errno 28] No space left on device: '/tmp/x'",
            False,
        ),
    ],
)
def test_an_error_on_a_worker_is_described_there(worker, monkeypatch, error, name, value, traced):
    def borrow(job, worker):
        raise error

    monkeypatch.setattr("vitlab.batch.remote._borrow_site", borrow)
    outcome = pickle.loads(pickle.dumps(run_task(SimpleNamespace(key="k", session="s", number=0))))
    problem = outcome["error"]
    assert (outcome["status"], problem["name"], problem["value"]) == ("failed", name, value)
    shown = describe_problem(outcome)
    if traced:
        assert (
            shown.startswith("Traceback")
            and "in borrow" in shown
            and shown.rstrip().endswith(f"{name}: {value}")
        )
    else:
        assert shown == f"{name}: {value}"


def test_a_task_that_is_stopped_on_a_worker_is_no_failure(worker, monkeypatch):

    def borrow(job, worker):
        raise Stopped("x")

    monkeypatch.setattr("vitlab.batch.remote._borrow_site", borrow)
    with pytest.raises(Stopped):
        run_task(SimpleNamespace(key="k", session="s", number=0))
