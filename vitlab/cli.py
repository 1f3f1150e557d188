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
from typer.core import TyperCommand

import vitlab
from vitlab.errors import UserError
from vitlab.places import inside_project
from vitlab.user_files import MACHINE, check_writable, describe_machine

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


class PairsCommand(TyperCommand):
    """Takes `-p NAME VALUE`, as papermill does. Typer has no repeated option of two values; they
    travel as one, NAME=VALUE.
    """

    def parse_args(self, ctx, args):
        joined, words = [], iter(args)
        for word in words:
            joined.append(word)
            if word in ("-p", "--parameter"):
                joined.append(
                    "=".join(
                        [
                            part
                            for part in (next(words, None), next(words, None))
                            if part is not None
                        ]
                    )
                )
        return super().parse_args(ctx, joined)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
):
    """A workbook for Vision Transformers: run its notebooks, one or in a batch, and render the
    report.
    """
    if version:
        typer.echo(f"vitlab {vitlab.__version__}")
        raise typer.Exit


@app.command(cls=PairsCommand)
def run(
    notebook: Annotated[Path, typer.Argument(help="A notebook, like notebooks/03_finetune.ipynb.")],
    parameter: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--parameter",
            metavar="NAME VALUE",
            help="Set a parameter of the notebook; as often as needed.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="The executed copy. Default: reports/runs/notebooks/<name>.ipynb"),
    ] = None,
):
    """Execute one notebook. Its parameters are checked before any cell runs."""
    with clean_errors():
        from vitlab.batch import run_notebook
        from vitlab.batch.summary import describe_problem
        from vitlab.notebook import fit_parameters

        pairs = [pair.partition("=") for pair in parameter or []]
        for name, equals, _ in pairs:
            if not equals:
                raise UserError(f"-p {name} lacks a value; write -p NAME VALUE")
        parameters = fit_parameters(notebook, {name: value for name, _, value in pairs}, text=True)
        with inside_project(notebook) as reports:
            copy = output or reports / "runs" / "notebooks" / notebook.name
            if copy.is_dir():
                raise UserError(
                    f"--output {copy} is a folder; name a file, like {copy / notebook.name}"
                )
            check_writable(copy.parent)
            outcome = run_notebook(notebook, copy, parameters)
    typer.echo(
        f"{notebook.name} {outcome['status']} in {outcome['seconds']} s: {copy}\nResults: {reports}"
    )
    if outcome["status"] == "failed":
        typer.secho(describe_problem(outcome), fg="red", err=True)
        raise typer.Exit(1)


@app.command()
def batch(
    file: Annotated[Path, typer.Argument(help="A batch file, like notebooks/batches/elpv.yml.")],
    workers: Annotated[
        int, typer.Option(min=1, help="How many notebooks to run at a time; they share the cores.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would run and why; run nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Run everything, what is up to date too.")
    ] = False,
    scheduler: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS|FILE",
            help="Run on a Dask cluster: tcp://host:8786, or a YAML file like slurm.yml.",
        ),
    ] = "",
):
    """Execute a chain of notebooks over a grid of parameters. Called again, it does only what is
    missing or out of date.
    """
    with clean_errors():
        from vitlab.batch import run_batch
        from vitlab.batch.signals import end_in_order
        from vitlab.batch.summary import print_plan, print_summary

        if scheduler and workers > 1:
            raise UserError(
                "--workers is for this machine, --scheduler for a cluster, which has workers of its"
                " own; give one"
            )
        try:
            with inside_project(file) as reports, end_in_order():
                if not dry_run:
                    check_writable(reports)
                content = run_batch(
                    file, workers=workers, dry_run=dry_run, force=force, scheduler=scheduler
                )
        except KeyboardInterrupt as stop:  # Ctrl+C is the signal 2
            typer.echo("Stopped. The same command carries on from here.", err=True)
            raise typer.Exit(128 + getattr(stop, "number", 2)) from None
    if dry_run:
        print_plan(content)
        typer.echo(f"Results: {reports}")
        return typer.echo(content["jobs"]) if content.get("jobs") else None
    print_summary(content)
    typer.echo(f"Results: {reports}")
    if any(task["status"] in ("failed", "skipped") for task in content["tasks"]):
        raise typer.Exit(1)


@app.command()
def report(
    batches: Annotated[
        list[str] | None, typer.Argument(help="Names or files of batches; all of them by default.")
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Publish nothing while anything is wrong; exit status 1."),
    ] = False,
    max_page_mb: Annotated[
        float, typer.Option(metavar="MB", help="The largest page that is fit to publish.")
    ] = 10.0,
):
    """Render what batches have produced: a web site and a PDF. What is out of date, missing or
    broken is marked in the pages.
    """
    with clean_errors():
        from vitlab.report import ReportRefused, render_report
        from vitlab.report.guards import count_problems, print_findings, read_findings

        files = [name for name in batches or [] if name.endswith((".yml", ".yaml"))]
        names = [Path(name).stem if name in files else name for name in batches or []]
        try:
            with inside_project(files[0] if files else "batch.yml") as reports:
                check_writable(reports)
                paths = render_report(names, strict=strict, max_page_mb=max_page_mb)
        except ReportRefused as refused:
            print_findings(refused.findings)
            typer.secho(
                f"Not published: {count_problems(refused.findings)}, listed above.",
                fg="red",
                err=True,
            )
            raise typer.Exit(1) from None
        findings = read_findings(paths["findings"])
    if findings:
        print_findings(findings)
        text = (
            f"{count_problems(findings)}, listed above and marked in the pages; --strict would not"
            " publish."
        )
        typer.secho(text, fg="yellow", err=True)
    for kind in ("html", "pdf"):
        typer.echo(f"{kind.upper():5} {paths[kind]}")


@app.command()
def new(
    folder: Annotated[
        Path, typer.Argument(help="The folder to make; one that holds something is not touched.")
    ],
    data: Annotated[
        str,
        typer.Option(
            help="folder:PATH, with one sub-folder of images a class; or any data set by name."
        ),
    ],
    title: Annotated[str, typer.Option(help="Of the report. Default: the folder's name.")] = "",
):
    """Make a project of your own: a batch over your images, the notebooks, the report's front
    matter, a README.
    """
    with clean_errors():
        from vitlab.new_project import create_project

        project = create_project(folder, data, title)
    typer.echo(f"{project.folder}: {len(project.files)} files\n{project.summary}\n")
    typer.echo(
        f"cd {shlex.quote(str(project.folder))}\nvitlab batch batch.yml\nvitlab report batch"
    )


@app.command(name="app")
def serve_app(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder, its name or the beginning of it; or a folder of export-space."
        ),
    ],
    host: Annotated[
        str,
        typer.Option(
            help="Who may ask: 127.0.0.1 is this machine only, 0.0.0.0 everybody who reaches it."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    share: Annotated[
        str, typer.Option(help="yes: a public address through Gradio's servers, for a week.")
    ] = "no",
):
    """Open the demo of a run: images in, calibrated answers, maps and tables out."""
    with clean_errors():
        if share not in ("yes", "no"):
            raise UserError(f"--share is yes or no, not {share}")
        from vitlab.app.serving import serve
        from vitlab.deploy import find_run, page_facts

        folder = find_run(run)
        try:
            page, address = serve(
                folder, host, port, share=share == "yes", facts=page_facts(folder), block=False
            )
        except OSError as error:  # the port is taken: Gradio's message says so
            raise UserError(str(error)) from error
        typer.echo(f"{folder.name}: {address} (Ctrl+C ends it)")
        page.block_thread()


@app.command()
def export_space(
    run: Annotated[str, typer.Argument(help="A run's folder, its name or the beginning of it.")],
    folder: Annotated[
        Path, typer.Argument(help="The folder to make; one that holds something is not touched.")
    ],
    onnx: Annotated[
        Path | None,
        typer.Option(help="The ONNX file to ship, such as an int8 one. Default: the run's own."),
    ] = None,
):
    """Write a run as an app of its own: for Hugging Face Spaces, for docker build, for a machine
    without torch.
    """
    with clean_errors():
        from vitlab.deploy import export_space as write_space, find_run

        folder = write_space(find_run(run), folder, onnx=onnx)
    typer.echo(
        f"{folder}: python app.py starts it, docker build packs it, huggingface.co/new-space"
        " takes it"
    )


@app.command()
def submit(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="Runs: folders, names or their beginnings; or a batch, for all its runs."
        ),
    ],
    author: Annotated[str, typer.Option(help="Who hands it in.")],
    title: Annotated[str, typer.Option(help="What it is called.")],
    rubric: Annotated[
        Path | None, typer.Option(help="The assignment's questions and points, as YAML.")
    ] = None,
    weights_limit: Annotated[
        float,
        typer.Option(
            min=0,
            metavar="MB",
            help="Weights go in up to so many MB in all; of the others, the checksum.",
        ),
    ] = 200,
    notebook: Annotated[
        list[Path] | None,
        typer.Option(
            help="A notebook executed in JupyterLab or by vitlab run; as often as needed."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The zip. Default: reports/submission.zip")
    ] = None,
):
    """Pack runs, notebooks and report into one zip to hand in, and show what a marker will see of
    it.
    """
    with clean_errors():
        from vitlab.submission import make_bundle, print_verdict

        options = {"weights_limit_mb": weights_limit, "output": output, "notebooks": notebook or []}
        made = make_bundle(runs, author=author, title=title, rubric=rubric, **options)
    print_verdict(made.verdict, made.path.name)
    typer.echo(f"{made.path} ({made.path.stat().st_size / 1e6:.1f} MB)\nSHA-256 {made.sha256}")
    if made.verdict.failed:
        typer.secho("The bundle was written, with the gaps above.", fg="red", err=True)
        raise typer.Exit(1)


@app.command()
def verify(
    bundle: Annotated[
        Path, typer.Argument(help="What vitlab submit wrote, or the folder it was unpacked to.")
    ],
    rerun: Annotated[
        bool,
        typer.Option("--rerun", help="Execute its notebooks again. This runs the author's code."),
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0, help="How far a metric of the rerun may be from the bundle's.")
    ] = 0.02,
    junit: Annotated[
        Path | None, typer.Option(help="Write the results as JUnit XML, for an autograder.")
    ] = None,
    rubric: Annotated[
        Path | None, typer.Option(help="Your rubric, instead of the one in the bundle.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            help="The data set on this machine, like folder:PATH. Default: as in the bundle."
        ),
    ] = "",
    minutes: Annotated[
        float,
        typer.Option(
            min=0.1, help="How long one notebook of the rerun may take before it is ended."
        ),
    ] = 120,
):
    """Check a submission: files, notebooks, splits, metrics, weights, answers. Nothing in it is
    executed without --rerun.
    """
    with clean_errors():
        from vitlab.submission import print_verdict, verify_bundle, write_junit

        if junit and (junit.is_dir() or not junit.absolute().parent.is_dir()):
            raise UserError(
                f"--junit {junit} is a folder, or lies in one that does not exist; name a file,"
                " like result.xml"
            )
        if junit:
            check_writable(junit.absolute().parent)
        verdict = verify_bundle(
            bundle, rerun=rerun, tolerance=tolerance, rubric=rubric, data=data, minutes=minutes
        )
        if junit:
            # first: an autograder reads it, whatever becomes of the terminal
            write_junit(verdict, junit)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a stranger's names, on a terminal with few letters
        sys.stdout.reconfigure(errors="replace")
    print_verdict(verdict, bundle.name)
    if verdict.failed:
        raise typer.Exit(1)


@contextmanager
def clean_errors() -> Iterator[None]:
    """A mistake in what was asked for, or a machine that refuses (no permission, disk full), is one
    line and exit status 2.

    Any other error keeps its traceback.
    """
    try:
        yield
    except UserError as error:
        message = str(error)
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        message = describe_machine(error)
    else:
        return
    typer.secho(f"Error: {message}", fg="red", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    app()
