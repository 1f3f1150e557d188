"""What the checks share: the opened bundle, the marker's options, and the result of a check."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq

from vitlab.errors import UserError
from vitlab.notebook import read_cells
from vitlab.submission.archive import Manifest, compare_files, read_manifest

MAX_BYTES = 50 * 10**6  # of a file that is read
MAX_VALUES = 20 * 10**6  # of a Parquet file, which may repeat a value without taking more bytes
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
        return [Path(name).parent.as_posix() for name in self._find("runs/*/*/run.json")]

    @cached_property
    def datasets(self) -> dict[str, str]:
        """Run -> its data set."""
        return {
            run: self.read_json(f"{run}/run.json")["parameters"]["dataset"] for run in self.runs
        }

    @cached_property
    def notebooks(self) -> list[str]:
        """All executed notebooks: first those of the manifest, in its order."""
        return list(dict.fromkeys([*self.manifest.notebooks, *self._find("runs/**/*.ipynb")]))

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
        size, limit = path.stat().st_size / 1e6, MAX_BYTES / 1e6
        if size > limit:
            raise UserError(f"{name} has {size:,.0f} MB; at most {limit:g} are read")
        return path

    def read_cells(self, name: str) -> list[dict[str, Any]]:
        """The cells of a notebook with their outputs; kept, because several checks read them."""
        if name not in self._cells:
            self._cells[name] = read_cells(self.place(name), executed=True)
        return self._cells[name]

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_text(name))

    def read_text(self, name: str) -> str:
        return self.place(name).read_text(encoding="utf-8")

    def read_table(self, name: str) -> pd.DataFrame:
        """A CSV or Parquet file as a table."""
        path = self.place(name)
        if path.suffix == ".parquet":
            facts = pq.ParquetFile(path).metadata
            if facts.num_rows * facts.num_columns > MAX_VALUES:
                raise UserError(f"{name} has over {MAX_VALUES:,} values; it was not read")
            return pq.read_table(path).to_pandas(ignore_metadata=True)
        texts = {"sample_id": str, "label": str, "group": str}
        return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype=texts)

    def _find(self, pattern: str) -> list[str]:
        found = sorted(self.folder.glob(pattern))
        return [path.relative_to(self.folder).as_posix() for path in found]


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
        except Exception as error:  # of any library, for a damaged file
            status, detail = FAIL, describe_error(error)
        results.append(Result(check, subject, status, detail))
    return results


def describe_error(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"
