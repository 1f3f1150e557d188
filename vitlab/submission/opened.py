"""What the checks share: the opened bundle, what was asked for, and how a check says what it saw."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vitlab.errors import UserError
from vitlab.submission.manifest import compare_files, read_manifest
from vitlab.submission.notebooks import read_notebook
from vitlab.submission.safe_zip import Opened, check_name

LARGEST = 50 * 10**6  # bytes of a table or of JSON that are read
WIDEST = 10_000  # bytes of the first line of a CSV file
MOST_VALUES = 20 * 10**6  # of a Parquet file
PASS, FAIL, SKIPPED = "pass", "fail", "skipped"


@dataclass(frozen=True)
class Result:
    """check: its name. subject: what it looked at, "" for the whole. status: pass, fail or skipped. detail: what was seen."""

    check: str
    subject: str
    status: str
    detail: str = ""


@dataclass(frozen=True)
class Options:
    """rerun: execute the notebooks. tolerance: how far a metric may be off then. rubric: the marker's own, instead of that in the
    bundle. data: name of the data set on this machine, where it is another one than in the bundle. images: read the images.
    minutes: that one notebook may take when it is executed again.
    """

    rerun: bool = False
    tolerance: float = 0.02
    rubric: Path | None = None
    data: str = ""
    images: bool = True
    minutes: float = 120


@dataclass
class Bundle:
    """An opened bundle. `place` refuses paths that a stranger's manifest should not name."""

    opened: Opened
    options: Options = field(default_factory=Options)

    @property
    def folder(self) -> Path:
        return self.opened.folder

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.folder)

    @cached_property
    def problems(self) -> dict[str, str]:
        """File -> how it differs from the manifest."""
        return compare_files(self.folder, self.manifest, self.opened.damaged)

    @property
    def runs(self) -> list[dict[str, Any]]:
        return self.manifest["runs"]

    @property
    def notebooks(self) -> list[dict[str, Any]]:
        return self.manifest["notebooks"]

    def place(self, name: str) -> Path:
        """The file of this name in the bundle. ValueError where it leads elsewhere, or there is none."""
        check_name(name)
        path = self.folder / name
        if not path.is_file() or path.is_symlink():
            raise UserError(f"{name} is missing")
        return path

    def read_notebook(self, name: str) -> dict[str, Any]:
        if name not in self._read:
            if sum(self.place(other).stat().st_size for other in [*self._read, name]) > LARGEST:
                self._read.clear()
            self._read[name] = read_notebook(self.place(name))
        return self._read[name]

    def read_json(self, name: str) -> Any:
        return json.loads(self.read_text(name))

    def read_text(self, name: str) -> str:
        return self._place_small(name).read_text(encoding="utf-8")

    def read_table(self, name: str) -> pd.DataFrame:
        path = self._place_small(name)
        if name.endswith(".parquet"):
            check_parquet(path, name)
            return pq.read_table(path).to_pandas(ignore_metadata=True)
        with path.open("rb") as file:
            if len(file.readline(WIDEST + 1)) > WIDEST:
                raise UserError(f"the first line of {name} has more than {WIDEST:,} bytes; no table is that wide")
        return pd.read_csv(path, keep_default_na=False, na_values=[""], dtype={"sample_id": str, "label": str, "group": str})

    def _place_small(self, name: str) -> Path:
        path = self.place(name)
        if path.stat().st_size > LARGEST:
            raise UserError(f"{name} has {path.stat().st_size / 1e6:,.0f} MB; at most {LARGEST / 1e6:g} are read")
        return path

    @cached_property
    def _read(self) -> dict[str, dict[str, Any]]:
        return {}


def judge_each(check: str, subjects: Iterable[str], judge: Callable[[str], Result | tuple[str, str]]) -> list[Result]:
    """One result a subject. What a stranger's file makes a reader raise is a failure of that file, and the rest goes on."""
    results = []
    for subject in subjects:
        try:
            answer = judge(subject)
        except Exception as error:  # whatever a library says of a file that was made to break it
            answer = FAIL, describe_error(error)
        results.append(answer if isinstance(answer, Result) else Result(check, subject, *answer))
    return results


def describe_error(error: BaseException) -> str:
    text = " ".join(str(error).split())[:300]
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def check_parquet(path: Path, name: str) -> None:
    """ValueError for a file that would unpack to far more than it weighs: many values, lists, or one long text many times."""
    shape = pq.read_metadata(path)
    columns = [shape.schema.column(place) for place in range(shape.num_columns)]
    groups = [shape.row_group(place) for place in range(shape.num_row_groups)]
    chunks = [group.column(place) for group in groups for place in range(group.num_columns)]
    values, size = sum(chunk.num_values for chunk in chunks), sum(chunk.total_uncompressed_size for chunk in chunks)
    if values > MOST_VALUES or size > LARGEST or any(column.max_repetition_level for column in columns):
        raise UserError(
            f"{name} has {values:,} values in {shape.num_columns} columns, {size / 1e6:,.0f} MB, or lists; too much to be read"
        )
    if any(column.physical_type == "FIXED_LEN_BYTE_ARRAY" for column in columns):
        raise UserError(f"{name} has columns of bytes of a fixed length, which no table of vitlab has")
    texts = [column.name for column in columns if column.physical_type == "BYTE_ARRAY"]
    packed = pq.read_table(path, columns=texts, read_dictionary=texts)  # each text once, however often it stands there
    parts = [part for text in texts for part in packed[text].chunks]
    if sum(pc.sum(pc.take(pc.binary_length(part.dictionary), part.indices)).as_py() or 0 for part in parts) > LARGEST:
        raise UserError(f"{name} would unpack to over {LARGEST / 1e6:g} MB of text")
