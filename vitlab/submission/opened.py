"""What the checks share: the opened bundle, the options of the marker, and the result of a
check.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitlab.errors import UserError
from vitlab.notebook import read_cells
from vitlab.submission.manifest import Manifest, compare_files, read_manifest

MAX_BYTES = 50 * 10**6  # of a file that is read, and of the text in a table
MAX_HEADER = 10_000  # bytes of the first line of a CSV file
MAX_VALUES = 20 * 10**6  # of a Parquet file
PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


@dataclass(frozen=True)
class Result:
    """check: its name. subject: the file, run or question, "" for the whole. status: pass, fail or
    skipped. detail: a text.
    """

    check: str
    subject: str
    status: str
    detail: str = ""


@dataclass(frozen=True)
class Options:
    """The arguments of `verify_bundle`. images: whether the images of the data set are read."""

    rerun: bool = False
    tolerance: float = 0.02
    rubric: Path | None = None
    data: str = ""
    images: bool = True
    minutes: float = 120


@dataclass
class Bundle:
    """A bundle as a folder. Paths in it are relative; `place` refuses those that lead out of it."""

    folder: Path
    options: Options = field(default_factory=Options)
    _cells: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @cached_property
    def manifest(self) -> Manifest:
        return read_manifest(self.folder)

    @cached_property
    def problems(self) -> dict[str, str]:
        """File -> how it differs from the manifest."""
        return compare_files(self.folder, self.manifest)

    @cached_property
    def runs(self) -> list[str]:
        """The folders of all runs in the bundle."""
        return sorted(
            path.parent.relative_to(self.folder).as_posix()
            for path in self.folder.glob("runs/*/*/run.json")
        )

    @cached_property
    def datasets(self) -> dict[str, str]:
        """Run -> its data set."""
        return {
            run: self.read_json(f"{run}/run.json")["parameters"]["dataset"] for run in self.runs
        }

    @cached_property
    def notebooks(self) -> list[str]:
        """All executed notebooks: first those of the manifest, in its order."""
        found = sorted(
            path.relative_to(self.folder).as_posix() for path in self.folder.glob("runs/**/*.ipynb")
        )
        return list(dict.fromkeys([*self.manifest.notebooks, *found]))

    def find_run(self, notebook: str) -> str:
        """The run that an executed notebook belongs to, "" for none."""
        return next((run for run in self.runs if notebook.startswith(f"{run}/")), "")

    def place(self, name: str) -> Path:
        """The file of this name, small enough to be read. UserError where there is none, or it lies
        outside of the bundle.
        """
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise UserError(f"{name!r} leads out of the bundle")
        if not path.is_file():
            raise UserError(f"{name} is missing")
        if path.stat().st_size > MAX_BYTES:
            raise UserError(
                f"{name} has {path.stat().st_size / 1e6:,.0f} MB; at most {MAX_BYTES / 1e6:g} are"
                " read"
            )
        return path

    def read_cells(self, name: str) -> list[dict[str, Any]]:
        """The cells of a notebook. The last notebooks are kept, because several checks read
        them.
        """
        if name not in self._cells:
            if sum(self.place(other).stat().st_size for other in [*self._cells, name]) > MAX_BYTES:
                self._cells.clear()
            self._cells[name] = read_cells(self.place(name), executed=True)
        return self._cells[name]

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_text(name))

    def read_text(self, name: str) -> str:
        return self.place(name).read_text(encoding="utf-8")

    def read_table(self, name: str) -> pd.DataFrame:
        path = self.place(name)
        if name.endswith(".parquet"):
            check_parquet(path)
            return pq.read_table(path).to_pandas(ignore_metadata=True)
        with path.open("rb") as file:
            if len(file.readline(MAX_HEADER + 1)) > MAX_HEADER:
                raise UserError(f"the first line of {path.name} has more than {MAX_HEADER:,} bytes")
        return pd.read_csv(
            path,
            keep_default_na=False,
            na_values=[""],
            dtype={"sample_id": str, "label": str, "group": str},
        )


def judge_each(
    check: str, subjects: Iterable[str], judge: Callable[[str], tuple[str, str]]
) -> list[Result]:
    """One result for each subject, with the status and detail that `judge` returns. An exception is
    a failure of that subject.
    """
    results = []
    for subject in subjects:
        try:
            status, detail = judge(subject)
        except Exception as error:  # any library, for a file that was made to break it
            status, detail = FAIL, describe_error(error)
        results.append(Result(check, subject, status, detail))
    return results


def describe_error(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def check_parquet(path: Path) -> None:
    """UserError for a table that would take far more memory than its file: Parquet stores a
    repeated text or value once.
    """
    file = pq.ParquetFile(path)
    schema, groups = file.schema_arrow, range(file.metadata.num_row_groups)
    count = len(schema) * sum(file.metadata.row_group(group).num_rows for group in groups)
    texts = [
        column.name
        for column in schema
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ]
    numbers = [
        column.name
        for column in schema
        if pa.types.is_primitive(column.type) or pa.types.is_null(column.type)
    ]
    if count > MAX_VALUES or len(texts) + len(numbers) < len(schema):
        raise UserError(
            f"{path.name} has over {MAX_VALUES:,} values, or other columns than numbers and texts;"
            " it was not read"
        )
    packed = pq.read_table(path, columns=texts, read_dictionary=texts)  # each text once
    parts = [part for column in packed.columns for part in column.chunks]
    size = sum(
        pc.sum(pc.take(pc.binary_length(part.dictionary), part.indices)).as_py() or 0
        for part in parts
    )
    if size > MAX_BYTES:
        raise UserError(
            f"{path.name} would take {size / 1e6:,.0f} MB of text; at most {MAX_BYTES / 1e6:g} are"
            " read"
        )
