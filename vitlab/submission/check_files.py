"""Checks of the files as files: is all there, is each what was packed, is nothing among them that only a program would read."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vitlab.errors import UserError
from vitlab.submission.archive import check_seal, hash_file
from vitlab.submission.environment import compare_environments, describe_environment
from vitlab.submission.manifest import MANIFEST
from vitlab.submission.opened import FAIL, PASS, SKIPPED, Bundle, Result, judge_each
from vitlab.submission.selection import PROJECT_FILE

NEEDED = ("README.md", "TITLE.md", "environment/environment.json", "environment/installed.txt")
OF_A_RUN = ("run.json", "splits.csv", "predictions.parquet", "model.json", "data_card.md", "model_card.md")
PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".joblib", ".dill", ".npy", ".npz", ".h5")
PROGRAMS = (".py", ".pyc", ".pyw", ".so", ".dll", ".exe", ".com", ".scr", ".msi", ".sh", ".command", ".desktop", ".lnk")
PROGRAMS += (".bat", ".cmd", ".ps1", ".vbs", ".js", ".hta", ".pth", ".jar")
HEAVIEST_HEADER = 10 * 10**6  # bytes of the header of a safetensors file


def check_archive(bundle: Bundle) -> list[Result]:
    """The zip is the one that was sealed."""
    if bundle.opened.zipped is None:
        return [Result("archive", "", SKIPPED, "a folder, not the zip; the checksum of each file decides")]
    return [Result("archive", bundle.opened.zipped.name, *check_seal(bundle.opened.zipped))]


def check_manifest(bundle: Bundle) -> list[Result]:
    """Every file has the SHA-256 that the manifest lists; none is missing, none is extra."""
    try:
        listed = bundle.manifest["files"]
    except ValueError as error:
        return [Result("manifest", MANIFEST, FAIL, str(error))]
    failed = [Result("manifest", name, FAIL, problem) for name, problem in bundle.problems.items()]
    return failed or [Result("manifest", "", PASS, f"{len(listed):,} files as packed")]


def check_contents(bundle: Bundle) -> list[Result]:
    """What a marker needs is in the bundle, and nothing that executes when it is loaded."""
    wanted = [*NEEDED, *(f"{run['path']}/{name}" for run in bundle.runs for name in OF_A_RUN)]
    evaluated = {book["run"] for book in bundle.notebooks if book["executed"].endswith("/04_evaluate.ipynb") and book.get("run")}
    wanted += [f"{run}/metrics.json" for run in sorted(evaluated)]
    missing = [name for name in wanted if not (bundle.folder / name).is_file()]
    results = [Result("contents", name, FAIL, "missing") for name in missing]
    for kind, there in (("run", bundle.runs), ("notebook", bundle.notebooks)):
        if not there:
            results.append(Result("contents", f"{kind}s", FAIL, f"the manifest names no {kind}, so none is checked"))
    known = {book[key] for book in bundle.notebooks for key in ("executed", "clean")}
    stray = [name for name in bundle.manifest["files"] if name.endswith(".ipynb") and name not in known]
    results += [
        Result("contents", name, FAIL, "a notebook that the manifest names as a file only: no check reads it") for name in stray
    ]
    results += [Result("contents", name, FAIL, told) for name, told in find_strays(bundle)]
    pages = sorted((bundle.folder / "report").glob("*.html"))
    for kind, there in (("HTML", pages), ("PDF", (bundle.folder / "report" / "report.pdf").is_file())):
        if not there:
            results.append(Result("contents", f"report, {kind}", FAIL, "missing: no batch made these runs, or it was taken out"))
    for path in sorted(path for path in bundle.folder.rglob("*") if path.is_file()):
        told = find_danger(path)
        if told:
            results.append(Result("contents", path.relative_to(bundle.folder).as_posix(), FAIL, told))
    counts = f"{len(pages)} page{'s' * (len(pages) != 1)} and PDF, {len(bundle.runs)} run{'s' * (len(bundle.runs) != 1)}"
    return results or [Result("contents", "", PASS, f"report of {counts}, cards, environment")]


def find_strays(bundle: Bundle) -> list[tuple[str, str]]:
    """Files that look checked and are not: of runs that the manifest does not name, and what only a rerun would read."""
    runs = {run["path"] for run in bundle.runs}
    found = []
    for book in bundle.notebooks:
        home = next((run for run in runs if book["executed"].startswith(f"{run}/")), "")
        if book.get("run", "") not in {"", *runs} or (home and book.get("run") != home):
            found.append(
                (book["executed"], f"the manifest gives it to {book.get('run') or 'no run'}, where no check looks for it")
            )
    for name in bundle.manifest["files"]:
        folder, _, file = name.rpartition("/")
        if name.startswith("runs/") and file in (*OF_A_RUN, "metrics.json") and folder not in runs:
            found.append((name, "of a run that the manifest does not name: no check reads it"))
        if name.startswith("project/") and not PROJECT_FILE.fullmatch(name):
            found.append((name, "no notebook and no table beside one; a rerun does not see it"))
    return found


def check_environment(bundle: Bundle) -> list[Result]:
    """Versions are noted; which of those that numbers hang on are others here."""
    theirs = bundle.read_json("environment/environment.json")
    different = compare_environments(theirs, describe_environment(""))
    told = (
        "same as here"
        if not different
        else "another than here, so a rerun may give slightly other numbers: " + "; ".join(different)
    )
    return [Result("environment", "", PASS, told)]


def check_weights(bundle: Bundle) -> list[Result]:
    """Weights have the checksum that manifest and model.json note, and are a whole safetensors file."""
    by_path = {run["path"]: run for run in bundle.runs}

    def judge(place: str) -> tuple[str, str]:
        weights = by_path[place]["weights"]
        noted = bundle.read_json(f"{place}/model.json")["weights_sha256"]
        if not re.fullmatch("[0-9a-f]{64}", str(noted)) or noted != weights.get("sha256"):
            return FAIL, f"model.json notes {str(noted)[:12]}..., the manifest {str(weights.get('sha256'))[:12]}..."
        path = bundle.folder / place / "model.safetensors"
        if not path.is_file():
            if weights.get("included") is not False:
                return FAIL, "model.safetensors is missing"
            return SKIPPED, f"not in the bundle ({weights.get('bytes', 0) / 1e6:,.0f} MB); SHA-256 {noted}"
        if hash_file(path) != noted:
            return FAIL, "model.safetensors does not have the checksum that was noted"
        return PASS, f"{read_header(path)} tensors, SHA-256 {noted[:12]}..."

    return judge_each("weights", by_path, judge)


def find_danger(path: Path) -> str:
    """Why a file must not lie in a bundle, by its name and its first bytes; "" for what is harmless while it is only read."""
    suffix = path.suffix.lower()
    if suffix in PICKLED:
        return "a pickle, or a file that may hold one; it was not loaded"
    if suffix in PROGRAMS:
        return "a program; it was not executed"
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(max(0, path.stat().st_size - 1))
        last = file.read(1)
    if len(head) > 1 and head[0] == 0x80 and head[1] in range(2, 6) and last == b".":
        return "a pickle under another name; it was not loaded"
    if head[:4] == b"PK\x03\x04":
        return "a zip within the zip, as torch.save writes them; it was not opened"
    if head[:4] == b"\x7fELF" or head[:2] == b"MZ":
        return "a program under another name; it was not executed"
    return ""


def read_header(path: Path) -> int:
    """How many tensors a safetensors file has, by its header alone. ValueError where that does not describe the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(HEAVIEST_HEADER, size - 8):
            raise UserError(f"{path.name} is no safetensors file: its header would have {length:,} bytes")
        header = json.loads(file.read(length))
    ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    if max(ends, default=0) != size - 8 - length:
        raise UserError(f"{path.name} is no whole safetensors file: its tensors do not fill it")
    return len(ends)
