"""What does running a chain of notebooks cost over calling the same functions in one script? At most 10 %, it should be.

Both sides do the whole chain of a batch file in a fresh reports folder: `vitlab batch`, and one Python process that executes
the code cells of the same notebooks with the same parameters, in the same order, and saves each figure as the notebook does, as
a PNG. The sides alternate; the number that counts is the ratio of their medians. CPU seconds are shown beside the time on the
clock: where the two differ much, the machine was busy with other things.

    python benchmarks/bench_batch.py [--batch FILE] [--repeats N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from records import record, write_records

from vitlab.batch import load_batch, plan_tasks
from vitlab.notebook import read_cells

HERE = Path(__file__).parent
BAR = "<= 1.10"  # the batch may take a tenth longer than the script
SCRIPT_HEAD = """
import os, pathlib
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
plt.rcParams["figure.max_open_warning"] = 0
figures = pathlib.Path(os.environ["VITLAB_REPORTS"], "figures")
figures.mkdir()

def run(source, name):
    exec(compile(source, name, "exec"), {"__name__": "__main__"})
    for number in plt.get_fignums():
        plt.figure(number).savefig(figures / f"{name}-{number}.png", bbox_inches="tight")
    plt.close("all")
"""


def write_script(batch: Path, path: Path) -> int:
    """The chain as one script: for each task its code cells in a namespace of their own. Returns the number of tasks."""
    tasks = plan_tasks(load_batch(batch))
    parts = [SCRIPT_HEAD]
    for task in tasks:
        code = []
        for cell in read_cells(task.step.source):
            if cell["cell_type"] == "code":
                code.append(cell["source"])
                if "parameters" in cell["tags"]:
                    code += [f"{name} = {value!r}" for name, value in task.parameters.items()]
        source = "\n".join(code)
        parts.append(f"run({source!r}, {task.label!r})")
    path.write_text("\n".join(parts), encoding="utf-8")
    return len(tasks)


def time_command(command: list[str]) -> dict[str, float]:
    """Seconds on the clock, and of the processor, of a command that keeps its runs in a folder of its own."""
    with tempfile.TemporaryDirectory() as reports:
        start, cpu = time.perf_counter(), count_cpu_seconds()
        environment = {**os.environ, "VITLAB_REPORTS": reports}
        result = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
        times = {"seconds": time.perf_counter() - start, "CPU seconds": count_cpu_seconds() - cpu}
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}")
    return times


def count_cpu_seconds() -> float:
    """Of all processes started from here that have ended, and those that they started."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=Path, default=HERE / "batch_digits.yml", help="the chain (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="how often each side runs (default: %(default)s)")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "chain.py"
        notebooks = write_script(options.batch, script)
        sides = {
            "batch": [sys.executable, "-c", "from vitlab.cli import app; app()", "batch", str(options.batch)],
            "script": [sys.executable, str(script)],
        }
        times: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for repeat in range(options.repeats):
            for side in list(sides) if repeat % 2 == 0 else list(sides)[::-1]:
                times[side].append(time_command(sides[side]))
                print(
                    f"{repeat + 1}. {side:7}",
                    *(f"{value:8.1f} {metric}" for metric, value in times[side][-1].items()),
                    flush=True,
                )

    ours, peer = (statistics.median(run["seconds"] for run in times[side]) for side in ("batch", "script"))
    case = f"{options.batch.name}: {notebooks} notebooks, median of {options.repeats}"
    write_records("batch", [record(case, "seconds", ours, peer, "the same cells in one script", ours / peer, BAR)])
    cpu = [statistics.median(run["CPU seconds"] for run in times[side]) for side in ("batch", "script")]
    print(f"CPU seconds: {cpu[0]:.1f} : {cpu[1]:.1f} = {cpu[0] / cpu[1]:.3f}")


if __name__ == "__main__":
    main()
