"""What does running a chain of notebooks cost over calling the same functions in one script? At most 10 %, it should be.

Both sides do the whole chain of a batch file in a fresh reports folder: `vitlab batch`, and one Python process that executes
the code cells of the same notebooks with the same parameters, in the same order. The script keeps no figures and shows no
tables. The sides alternate; the number that counts is the ratio of their medians.

    python benchmarks/bench_batch.py [--batch FILE] [--repeats N]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vitlab.batch import load_batch, plan_tasks
from vitlab.notebook import read_cells

HERE = Path(__file__).parent
BAR = 1.10  # the batch may take a tenth longer than the script
SCRIPT_HEAD = """
import matplotlib
matplotlib.use("agg")
import matplotlib.pyplot as plt
plt.rcParams["figure.max_open_warning"] = 0
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
        parts.append(f"exec(compile({source!r}, {task.label!r}, 'exec'), {{'__name__': '__main__'}})\nplt.close('all')\n")
    path.write_text("\n".join(parts), encoding="utf-8")
    return len(tasks)


def time_command(command: list[str]) -> float:
    """Seconds from start to end of a command that keeps its runs in a folder of its own."""
    with tempfile.TemporaryDirectory() as reports:
        start = time.perf_counter()
        environment = {**os.environ, "VITLAB_REPORTS": reports}
        result = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if result.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=Path, default=HERE / "batch_digits.yml", help="the chain (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=3, help="how often each side runs (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "batch.json", help="default: %(default)s")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "chain.py"
        notebooks = write_script(options.batch, script)
        sides = {
            "batch": [sys.executable, "-c", "from vitlab.cli import app; app()", "batch", str(options.batch)],
            "script": [sys.executable, str(script)],
        }
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(options.repeats):
            for side in list(sides) if repeat % 2 == 0 else list(sides)[::-1]:
                seconds[side].append(time_command(sides[side]))
                print(f"{repeat + 1}. {side:7} {seconds[side][-1]:7.1f} s", flush=True)

    ours, peer = statistics.median(seconds["batch"]), statistics.median(seconds["script"])
    record = {
        "case": f"{options.batch.name}: {notebooks} notebooks, median of {options.repeats}",
        "metric": "seconds",
        "ours": round(ours, 1),
        "peer": round(peer, 1),
        "peer_name": "the same cells in one script",
        "ratio": round(ours / peer, 3),
        "bar": BAR,
        "holds": ours / peer <= BAR,
    }
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, Python {platform.python_version()}"
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine, "records": [record]}, indent=1) + "\n", encoding="utf-8")
    print("\n" + "\n".join(f"{name:10} {value}" for name, value in record.items()))


if __name__ == "__main__":
    main()
