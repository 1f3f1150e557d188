"""The command line. Imports stay inside the commands, so that help comes at once."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option
from typer.core import TyperCommand

import vitlab
from vitlab.errors import UserError
from vitlab.files import MACHINE, check_writable, describe_machine
from vitlab.places import find_file, inside_project

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
RUN_HELP = "A run: its folder, its name, or the beginning of its name."


class RunCommand(TyperCommand):
    """`vitlab run`: takes `-p NAME VALUE`, as papermill does, or `-p NAME=VALUE`, and shows a
    notebook's parameters in its help.

    Typer has no repeated option of two values; they travel as one, NAME=VALUE."""

    def parse_args(self, ctx, args):
        ctx.meta["notebook"] = next((word for word in args if not word.startswith("-")), "")
        joined, words = [], iter(args)
        for word in words:
            joined.append(word)
            if word in ("-p", "--parameter"):
                name = next(words, "")
                value = None if "=" in name else next(words, None)
                joined.append(name if value is None else f"{name}={value}")
        return super().parse_args(ctx, joined)

    def format_help(self, ctx, formatter):
        super().format_help(ctx, formatter)
        if ctx.meta["notebook"]:
            with clean_errors():
                from vitlab.notebook import describe_parameters

                typer.echo(describe_parameters(find_notebook(ctx.meta["notebook"])))


def find_notebook(name: Path | str) -> Path:
    return find_file(name, "notebooks", ".ipynb", "notebook")


def find_batch(name: Path | str) -> Path:
    return find_file(name, "notebooks/batches", ".yml", "batch file")


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, Option("--version", help="Print the version and exit.")] = False,
):
    """A workbook for Vision Transformers: run its notebooks and render the report."""
    if version:
        typer.echo(f"vitlab {vitlab.__version__}")
        raise typer.Exit


@app.command(
    cls=RunCommand, epilog="Example: vitlab run 03_finetune -p dataset digits -p mixup 0.2"
)
def run(
    notebook: Annotated[Path, Argument(help="A notebook, by path or name (03_finetune).")],
    parameter: Annotated[
        list[str] | None,
        Option("-p", "--parameter", metavar="NAME VALUE", help="Set a parameter; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        Option(help="Path of the executed copy. Default: reports/runs/notebooks/NAME.ipynb"),
    ] = None,
):
    """Execute one notebook.

    Its parameters are checked before any cell runs; `vitlab run NOTEBOOK --help` lists them."""
    with clean_errors():
        from vitlab.batch import run_notebook
        from vitlab.batch.display import describe_problem
        from vitlab.notebook import fit_parameters

        notebook = find_notebook(notebook)
        pairs = [pair.partition("=") for pair in parameter or []]
        for name, equals, _ in pairs:
            if not equals:
                raise UserError(f"-p {name} needs a value; write -p NAME VALUE")
        parameters = fit_parameters(notebook, {name: value for name, _, value in pairs}, text=True)
        with inside_project(notebook) as reports:
            copy = output or reports / "runs" / "notebooks" / notebook.name
            if copy.is_dir():
                example = copy / notebook.name
                raise UserError(f"--output {copy} is a folder; give a file name, such as {example}")
            check_writable(copy.parent)
            outcome = run_notebook(notebook, copy, parameters)
    typer.echo(
        f"{notebook.name} {outcome['status']} in {outcome['seconds']} s: {copy}\nResults: {reports}"
    )
    if outcome["status"] == "failed":
        typer.secho(describe_problem(outcome), fg="red", err=True)
        raise typer.Exit(1)


@app.command(epilog="Example: vitlab check photos/ --open")
def check(
    path: Annotated[
        str, Argument(help="A folder of images by class, a CSV or Parquet table, or a data set.")
    ],
    group: Annotated[
        str, Option(help="The column that says where an image comes from (patient, module).")
    ] = "",
    model: Annotated[str, Option(help="The pretrained network whose features are used.")] = "",
    ignore: Annotated[
        list[str] | None, Option(metavar="ID=REASON", help="Silence a check; repeatable.")
    ] = None,
    strict: Annotated[bool, Option("--strict", help="Exit with 1 if a check fails.")] = False,
    show: Annotated[bool, Option("--open", help="Open the page in the browser.")] = False,
):
    """A first answer about labelled images: are they sound, and what does a simple model reach?

    No network is trained. Runs notebook 00_check and writes one HTML page."""
    with clean_errors():
        from vitlab.check_command import has_failed, print_checks, run_checks

        notebook = find_notebook("00_check")
        page, results, verdict = run_checks(
            notebook, path, group=group, model=model, ignore=ignore or []
        )
        print_checks(page, results, verdict)
    if show:
        typer.launch(page.as_uri())
    if strict and has_failed(results):
        raise typer.Exit(1)


@app.command(epilog="Example: vitlab batch elpv --dry-run")
def batch(
    file: Annotated[Path, Argument(help="A batch file, by path or name (elpv).")],
    workers: Annotated[int, Option(min=1, help="Notebooks to run in parallel.")] = 1,
    dry_run: Annotated[bool, Option("--dry-run", help="Only show what would run.")] = False,
    force: Annotated[bool, Option("--force", help="Also run what is up to date.")] = False,
    scheduler: Annotated[
        str,
        Option(metavar="ADDRESS|FILE", help="A Dask cluster: tcp://host:8786 or slurm.yml."),
    ] = "",
):
    """Execute a chain of notebooks over a grid of parameters.

    A second call runs only what is missing or out of date."""
    with clean_errors():
        from vitlab.batch import run_batch
        from vitlab.batch.display import print_plan, print_summary
        from vitlab.batch.run import end_in_order

        if scheduler and workers > 1:
            raise UserError(
                "--workers is for this machine, --scheduler for a cluster; use only one of them"
            )
        file = find_batch(file)
        try:
            with inside_project(file) as reports, end_in_order():
                if not dry_run:
                    check_writable(reports)
                content = run_batch(
                    file, workers=workers, dry_run=dry_run, force=force, scheduler=scheduler
                )
        except KeyboardInterrupt as stop:  # Ctrl+C is signal 2
            typer.echo("Stopped. Run the same command to continue.", err=True)
            raise typer.Exit(128 + getattr(stop, "number", 2)) from None
    if dry_run:
        print_plan(content)
        typer.echo(f"Results: {reports}")
        return typer.echo(content["jobs"]) if content.get("jobs") else None
    print_summary(content)
    typer.echo(f"Results: {reports}")
    if any(task["status"] in ("failed", "skipped") for task in content["tasks"]):
        raise typer.Exit(1)


@app.command(epilog="Example: vitlab runs --dataset elpv")
def runs(
    dataset: Annotated[str, Option(help="Only the runs of this data set.")] = "",
):
    """List the runs: model, seed, status, accuracy."""
    with clean_errors():
        from vitlab.places import reports_dir
        from vitlab.run_tables import print_runs, run_table

        print_runs(run_table(dataset))
        typer.echo(f"Results: {reports_dir()}")


@app.command(epilog="Example: vitlab report elpv --strict")
def report(
    batches: Annotated[
        list[str] | None, Argument(help="Names or files of batches. Default: all.")
    ] = None,
    strict: Annotated[
        bool, Option("--strict", help="Do not publish if there are problems; exit status 1.")
    ] = False,
    notebooks: Annotated[
        bool, Option("--notebooks", help="Also write report-notebooks.pdf, with all code.")
    ] = False,
    max_page_mb: Annotated[
        float, Option(metavar="MB", help="The largest page that may be published.")
    ] = 10.0,
):
    """Render the results of batches as a web site and a PDF.

    The pages mark what is out of date, missing or broken."""
    with clean_errors():
        from vitlab.report import ReportRefused, render_report
        from vitlab.report.findings import count_problems, print_findings, read_findings

        files = [name for name in batches or [] if name.endswith((".yml", ".yaml"))]
        names = [Path(name).stem if name in files else name for name in batches or []]
        try:
            with inside_project(files[0] if files else "batch.yml") as reports:
                check_writable(reports)
                paths = render_report(
                    names, strict=strict, notebooks=notebooks, max_page_mb=max_page_mb
                )
        except ReportRefused as refused:
            print_findings(refused.findings)
            text = f"Not published: {count_problems(refused.findings)}, listed above."
            typer.secho(text, fg="red", err=True)
            raise typer.Exit(1) from None
        findings = read_findings(paths["findings"])
    if findings:
        print_findings(findings)
        text = f"{count_problems(findings)}, listed above and marked in the pages."
        typer.secho(f"{text} --strict would not publish them.", fg="yellow", err=True)
    for kind in ("html", "pdf"):
        typer.echo(f"{kind.upper():5} {paths[kind]}")


@app.command(epilog="Example: vitlab new cells --data folder:photos/cells")
def new(
    folder: Annotated[Path, Argument(help="The folder to create; it must be new or empty.")],
    data: Annotated[
        str, Option(help="folder:PATH with a sub-folder for each class, or the name of a data set.")
    ],
    title: Annotated[str, Option(help="The report's title. Default: the folder's name.")] = "",
):
    """Create a project for your own images.

    It holds a batch file, the notebooks, the report's settings and a README."""
    with clean_errors():
        from vitlab.new_project import create_project

        project = create_project(folder, data, title)
    typer.echo(f"{project.folder}: {len(project.files)} files\n{project.summary}\n")
    typer.echo(
        f"cd {shlex.quote(str(project.folder))}\nvitlab batch batch.yml\nvitlab report batch"
    )


@app.command(name="app", epilog="Example: vitlab app hybrid_vit-seed0")
def serve_app(
    run: Annotated[str, Argument(help=f"{RUN_HELP} Or a folder made by export-space.")],
    host: Annotated[
        str, Option(help="127.0.0.1: only this machine; 0.0.0.0: everyone on the network.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, Option(min=1, max=65535, help="Default: the first free one from 7860.")
    ] = None,
    share: Annotated[
        bool,
        Option("--share", help="Create a public address through Gradio's servers, for one week."),
    ] = False,
):
    """Open a demo of a run: calibrated predictions and maps for your images."""
    with clean_errors():
        from vitlab.app.serving import serve
        from vitlab.deploy import find_run, page_facts

        folder = find_run(run)
        facts = page_facts(folder)
        try:
            page, address = serve(folder, host, port, share=share, facts=facts, block=False)
        except OSError as error:  # the port is taken: Gradio's message says so
            raise UserError(str(error)) from error
        typer.echo(f"{folder.name}: {address} (Ctrl+C stops it)")
        page.block_thread()


@app.command(epilog="Example: vitlab export-space hybrid_vit-seed0 my-space")
def export_space(
    run: Annotated[str, Argument(help=RUN_HELP)],
    folder: Annotated[Path, Argument(help="The folder to create; it must be new or empty.")],
    onnx: Annotated[
        Path | None,
        Option(help="The ONNX file to export, such as an int8 one. Default: the run's."),
    ] = None,
):
    """Write a run as a stand-alone app that needs no torch.

    For Hugging Face Spaces, for docker build, or for any machine with Python."""
    with clean_errors():
        from vitlab.deploy import export_space as write_space, find_run

        folder = write_space(find_run(run), folder, onnx=onnx)
    typer.echo(f"{folder}: start it with python app.py; its README.md says how to publish it")


@app.command(epilog='Example: vitlab submit elpv --author "A. Student" --title "ViT or CNN?"')
def submit(
    runs: Annotated[list[str], Argument(help=f"{RUN_HELP} Or a batch, for all its runs.")],
    author: Annotated[str, Option(help="Your name.")],
    title: Annotated[str, Option(help="The title of the submission.")],
    rubric: Annotated[
        Path | None, Option(help="The assignment's questions and points, as YAML.")
    ] = None,
    weights_limit: Annotated[
        float,
        Option(
            min=0,
            metavar="MB",
            help="Largest total size of weights; others are listed by checksum.",
        ),
    ] = 200,
    notebook: Annotated[
        list[Path] | None, Option(help="An executed notebook to include; repeatable.")
    ] = None,
    output: Annotated[Path | None, Option(help="Default: reports/submission.zip")] = None,
):
    """Pack runs, notebooks and report into one zip to hand in.

    It also prints the results of the checks that a marker will see."""
    with clean_errors():
        from vitlab.submission import make_bundle, print_verdict

        options = {"weights_limit_mb": weights_limit, "output": output, "notebooks": notebook or []}
        made = make_bundle(runs, author=author, title=title, rubric=rubric, **options)
    print_verdict(made.verdict, made.path.name)
    typer.echo(f"{made.path} ({made.path.stat().st_size / 1e6:.1f} MB)\nSHA-256 {made.sha256}")
    if made.verdict.failed:
        typer.secho("The bundle was written, but has the problems above.", fg="red", err=True)
        raise typer.Exit(1)


@app.command(epilog="Example: vitlab verify submission.zip --junit result.xml")
def verify(
    bundle: Annotated[Path, Argument(help="The zip from vitlab submit, or its unpacked folder.")],
    rerun: Annotated[
        bool, Option("--rerun", help="Execute its notebooks again. This runs the author's code.")
    ] = False,
    tolerance: Annotated[
        float,
        Option(min=0, help="Largest allowed difference of a metric between rerun and bundle."),
    ] = 0.02,
    junit: Annotated[
        Path | None, Option(help="Write the results as JUnit XML, for an autograder.")
    ] = None,
    rubric: Annotated[
        Path | None, Option(help="Your rubric, instead of the one in the bundle.")
    ] = None,
    data: Annotated[
        str, Option(help="The data set here, like folder:PATH. Default: as in the bundle.")
    ] = "",
    minutes: Annotated[
        float, Option(min=0.1, help="Time limit for each notebook of the rerun.")
    ] = 120,
):
    """Check a submission: files, notebooks, splits, metrics, weights, answers.

    The code in it runs only with --rerun."""
    with clean_errors():
        from vitlab.submission import print_verdict, verify_bundle, write_junit

        if junit:
            if junit.is_dir():
                raise UserError(f"--junit {junit} is a folder; give a file name, like result.xml")
            check_writable(junit.absolute().parent)
        verdict = verify_bundle(
            bundle, rerun=rerun, tolerance=tolerance, rubric=rubric, data=data, minutes=minutes
        )
        if junit:  # first: an autograder reads it, even if printing fails
            write_junit(verdict, junit)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names that the terminal cannot show
    print_verdict(verdict, bundle.name)
    if verdict.failed:
        raise typer.Exit(1)


EXTRAS = {  # module: the extra of pyproject.toml that installs it
    "gradio": "app",
    "onnx": "compress",
    "onnxruntime": "compress",
    "optuna": "tune",
    "distributed": "cluster",
    "dask_jobqueue": "cluster",
    "datasets": "hub",
}


@contextmanager
def clean_errors() -> Iterator[None]:
    """Print a user's mistake, a refusal by the machine (no permission, disk full) or a missing
    extra as one line, and exit with status 2. Other errors keep their traceback."""
    try:
        yield
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        message = describe_machine(error)
    except ModuleNotFoundError as error:
        if error.name not in EXTRAS:
            raise
        extra = EXTRAS[error.name]
        message = f"{error.name} is not installed; run: pip install 'vitlab[{extra}]'"
    else:
        return
    typer.secho(f"Error: {message}", fg="red", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
