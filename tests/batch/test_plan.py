"""Batch files: which tasks they give, and what is said about mistakes in them."""

import shutil
from pathlib import Path

import pytest
import yaml

from tests.batch.toys import CHAIN, LOG, TRAIN, log_lines, write_batch, write_notebook
from vitlab.batch import load_batch, plan_tasks, run_batch
from vitlab.batch.specs import ClusterSpec, Limits, StepSpec, read_spec
from vitlab.run_folders import dataset_folder, run_name

ROOT = Path(__file__).parents[2]
RUNS = f"runs/{dataset_folder('digits')}"


def plan(project, **content):
    return plan_tasks(load_batch(write_batch(project, **content)))


def labels(tasks):
    return [task.label for task in tasks]


def test_tasks_go_point_by_point_and_once_where_asked(project):
    tasks = plan(project)
    assert labels(tasks) == [
        "look",
        "train color=red",
        "judge color=red",
        "train color=blue",
        "judge color=blue",
        "compare",
    ]
    assert [task.needs for task in tasks] == [(), (), (1,), (), (3,), (1, 2, 3, 4)]


def test_the_steps_of_a_point_share_a_run_and_get_what_they_declare(project):
    look, train, judge = plan(project)[:3]
    name = run_name({"dataset": "digits", "color": "red"})
    assert train.parameters == {"dataset": "digits", "color": "red", "run_name": name}
    assert judge.parameters == {"dataset": "digits", "run_name": name}
    assert train.path == f"{RUNS}/{name}/notebooks/train.ipynb"
    assert train.run == judge.run == f"{RUNS}/{name}"
    assert (look.path, look.run) == ("runs/batches/toy/notebooks/look.ipynb", None)


def test_a_step_may_take_a_part_of_the_grid(project):
    grid = {"color": ["red", "blue"], "seed": [0, 1]}
    part = {"color": ["blue"], "seed": [1, 0]}
    tasks = plan(project, grid=grid, chain=[CHAIN[1], {"notebook": "judge", "grid": part}])
    assert labels(tasks)[-4:] == [
        "train color=blue seed=0",
        "judge color=blue seed=0",
        "train color=blue seed=1",
        "judge color=blue seed=1",
    ]
    assert sum(task.step.notebook == "judge" for task in tasks) == 2


def test_a_step_with_fewer_axes_gathers_the_points_it_contains(project):
    write_notebook(project / "notebooks" / "gather.ipynb", 'color = ""')
    grid = {"color": ["red", "blue"], "seed": [0, 1]}
    gather = {"notebook": "gather", "grid": {"color": ["red"]}}
    tasks = plan(project, grid=grid, chain=[CHAIN[1], gather])
    assert tasks[-1].label == "gather color=red"
    needed = [tasks[number].label for number in tasks[-1].needs]
    assert needed == ["train color=red seed=0", "train color=red seed=1"]


def test_without_a_grid_there_is_one_run(project):
    tasks = plan(project, grid={}, parameters={"color": "red"})
    assert [task.run for task in tasks] == [
        None,
        *[f"{RUNS}/{run_name({'color': 'red'})}"] * 2,
        None,
    ]


def test_parameters_of_a_step_belong_to_the_name_of_its_run(project):
    plain = plan(project)
    chain = [CHAIN[0] | {"parameters": {"pause": 1}}, CHAIN[1] | {"parameters": {"seed": 7}}]
    tasks = plan(project, chain=[*chain, *CHAIN[2:]])
    assert tasks[0].parameters == {"dataset": "digits", "pause": 1.0}
    assert tasks[1].parameters["seed"] == 7
    assert tasks[1].run == tasks[2].run != plain[1].run
    # a parameter of a notebook that runs once renames no run
    once = plan(project, parameters={"dataset": "digits", "pause": 1.0})
    assert [task.run for task in once] == [task.run for task in plain]


def test_only_a_run_that_the_chain_makes_is_asked_for_by_name(project):
    """The notebooks 03 to 06, and a training notebook of the user."""
    for name in ("03_finetune", "04_evaluate", "05_interpret", "06_compress"):
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", project / "notebooks")

    def plan_chain(*chain):
        chain = [step if isinstance(step, dict) else {"notebook": step} for step in chain]
        return plan(project, chain=chain, grid={"model": ["hybrid_vit"], "seed": [0, 1]})

    alone = plan_chain("04_evaluate", "05_interpret", "06_compress")
    assert all("run_name" not in task.parameters and task.run is None for task in alone)
    assert len({task.path for task in alone}) == 6
    one = {"model": ["hybrid_vit"], "seed": [1]}
    for trains in ("03_finetune", "train"):
        both = plan_chain(trains, "04_evaluate", {"notebook": "05_interpret", "grid": one})
        assert [task.run for task in both] == [
            f"{RUNS}/{task.parameters['run_name']}" for task in both
        ]
    too_late = plan_chain("04_evaluate", "03_finetune")
    assert "run_name" not in too_late[0].parameters
    other = plan_chain({"notebook": "03_finetune", "grid": one}, "04_evaluate")
    judged = [task for task in other if task.step.notebook == "04_evaluate"]
    assert {task.point["seed"]: "run_name" in task.parameters for task in judged} == {
        0: False,
        1: True,
    }


VARIED = 'dataset = "digits"\ncolor = "red"\nseed = 0\nvariant = ""\nrun_name = ""'
CASES = {"plain": None, "late": {"seed": 7}, "late blue": {"seed": 7, "color": "blue"}}


def test_a_case_stands_for_its_parameters(project):
    write_notebook(project / "notebooks" / "train.ipynb", VARIED, *TRAIN)
    chain = [{"notebook": "train"}, {"notebook": "judge", "grid": {"variant": ["late"]}}]
    tasks = plan(project, grid={"variant": CASES}, chain=chain)
    assert labels(tasks) == [
        "train variant=plain",
        "train variant=late",
        "judge variant=late",
        "train variant=late blue",
    ]
    name = run_name({"dataset": "digits", "variant": "late", "seed": 7})
    assert tasks[1].run == tasks[2].run == f"{RUNS}/{name}"
    assert name.startswith("run-late-seed7-")
    given = {name: value for name, value in tasks[3].parameters.items() if name != "run_name"}
    assert given == {"dataset": "digits", "variant": "late blue", "seed": 7, "color": "blue"}
    cases = {"plain": {}, "blue": {"color": "blue"}}
    grid = plan(project, grid={"variant": cases, "seed": [0, 1]}, chain=[{"notebook": "train"}])
    assert labels(grid) == [
        "train variant=plain seed=0",
        "train variant=plain seed=1",
        "train variant=blue seed=0",
        "train variant=blue seed=1",
    ]
    assert len({task.run for task in grid}) == 4


def one_step(**step):
    return {"chain": [{"notebook": "train"} | step]}


MISTAKES = [
    ({"chian": []}, r"toy.yml: unknown key 'chian'. Did you mean chain\? Choices: title, author"),
    ({"chain": []}, r"toy.yml, chain: .*at least 1 item"),
    ({"chain": ["look"]}, r"chain\[0\]: must have the keys notebook, grid, .* it is 'look'"),
    ({"chain": [{"notebok": "look"}]}, r"chain\[0\]: unknown key 'notebok'. Did you mean notebook"),
    ({"chain": [{"notebook": "lok"}]}, r"unknown notebook 'lok'. Did you mean look\?"),
    ({"chain": [*CHAIN, CHAIN[1]]}, r"notebook train is in the chain of toy.yml 2 times"),
    (
        {"chain": [{"notebook": "look"}]},
        r"look would do the same at each point: .* color, run_name",
    ),
    (one_step(grid={"colour": ["red"]}), r"unknown axis of train 'colour'.*Choices: color"),
    (one_step(grid={"color": ["rde"]}), r"unknown color of train 'rde'.*Choices: red, blue"),
    (one_step(grid={"color": {"red": {}}}), r"chain\[0\].grid.color: must be a list of different"),
    (one_step(parameters={"sed": 1}), r"unknown parameter 'sed'.*those of train.ipynb"),
    (one_step(resources={"GPU": True}), r"chain\[0\].resources.GPU: .*valid number; it is True"),
    (one_step(resources=[1]), r"chain\[0\].resources: .*dictionary; it is \[1\]"),
    ({"parameters": {"dataste": "digits"}}, r"unknown parameter 'dataste'. Did you mean dataset"),
    ({"parameters": {"seed": "one"}}, r"seed of train.ipynb is 'one'; it must be of type int"),
    ({"parameters": {"color": "red"}}, r"color of toy.yml is both in parameters and in grid"),
    ({"parameters": {"run_name": "mine"}}, r"parameters: the batch itself sets run_name"),
    ({"parameters": ["dataset"]}, r"parameters: must be written as name: value"),
    ({"parameters": {"dataset": "digitz"}}, r"'digitz'. Did you mean digits"),
    ({"grid": {"color": "red"}}, r"grid.color: must be a list of different values, .* or|cases"),
    ({"grid": {"color": ["red", "red"]}}, r"must be a list of different values"),
    ({"grid": {"seed": {}}}, r"grid.seed: must be a list of different values, .*cases"),
    ({"grid": {"seed": {"one": [1]}}}, r"grid.seed: case one: must be written as name: value"),
    ({"grid": {"seed": {1: {"color": "red"}}}}, r"a case is called 1; put quotes around it"),
    ({"grid": {"seed": {"a": {"colour": "red"}}}}, r"unknown parameter 'colour'. Did you mean col"),
    ({"grid": {"seed": {"a": {"run_name": "x"}}}}, r"the batch itself sets run_name"),
    (
        {"grid": {"seed": {"a": {"color": "red"}}, "color": ["red"]}},
        r"color of toy.yml is varied by two axes",
    ),
    (
        {"grid": {"seed": {"a": {"pause": 1}}}, "parameters": {"pause": 2}},
        r"pause of toy.yml is both in parameters and in grid",
    ),
    ({"limits": {"minuts": 3}}, r"toy.yml, limits: unknown key 'minuts'. Did you mean minutes"),
    ({"limits": {"minutes": 0}}, r"limits.minutes: .*greater than 0; it is 0"),
    ({"limits": {"minutes": True}}, r"limits.minutes: .*valid number"),
    (
        {"limits": {"memory": 6}},
        r"limits.memory: must be a number and a unit, like 6 GB .* it is 6",
    ),
    ({"limits": {"memory": "0 GB"}}, r"limits.memory: .*greater than 0"),
    ({"limits": [30]}, r"limits: must have the keys minutes, memory; it is \[30\]"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES)
def test_mistakes_are_errors_before_anything_runs(project, no_kernels, change, message):
    with pytest.raises(ValueError, match=message):
        run_batch(write_batch(project, **change))
    assert log_lines(project) == []


def test_an_unknown_model_is_an_error_before_anything_runs(project, no_kernels):
    notebook = project / "notebooks" / "train.ipynb"
    write_notebook(notebook, 'model = "vit_scratch"', LOG.format("'train'"))
    grid = {"model": ["vit_scratch", "vit_scrach"]}
    file = write_batch(project, parameters={}, grid=grid, chain=[{"notebook": "train"}])
    with pytest.raises(ValueError, match=r"'vit_scrach'.*vit_scratch"):
        run_batch(file)
    assert log_lines(project) == []


def test_no_batch_file_and_no_yaml(project):
    file = write_batch(project)
    with pytest.raises(FileNotFoundError, match=r"batch files in .*: toy.yml"):
        load_batch(file.with_name("tpy.yml"))
    file.write_text("grid: [")
    with pytest.raises(ValueError, match=r"toy.yml is not YAML"):
        load_batch(file)


def test_a_step_overrides_the_limits_that_it_names():
    base = Limits(minutes=30, memory="6 GB")
    assert (base.minutes, base.memory) == (30, 6 * 10**9)
    for text, minutes, memory in (
        ("{minutes: 90}", 90, 6 * 10**9),
        ("{memory: null}", 30, None),
        ("{memory: 5.5 GiB}", 30, round(5.5 * 2**30)),
        ("{}", 30, 6 * 10**9),
    ):
        own = StepSpec(notebook="x", limits=yaml.safe_load(text)).limits
        limits = base.override(own)
        assert (limits.minutes, limits.memory) == (minutes, memory)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cluster: [", r"is not YAML"),
        ("jobs: 3", r"cluster.yml, cluster: Field required"),
        ("cluster: slrum", r"cluster.yml, cluster: unknown cluster 'slrum'. Did you mean slurm"),
        ("{cluster: slurm, job: 3}", r"cluster.yml: unknown key 'job'. Did you mean jobs"),
        ("{cluster: slurm, jobs: many}", r"cluster.yml, jobs: .*integer; it is 'many'"),
        ("{cluster: slurm, options: [queue]}", r"cluster.yml, options: .*dictionary"),
    ],
)
def test_mistakes_in_a_cluster_file(tmp_path, text, message):
    file = tmp_path / "cluster.yml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_spec(ClusterSpec, file, "file of a cluster")
