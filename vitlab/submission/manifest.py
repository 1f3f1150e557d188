"""MANIFEST.json: the SHA-256 of every file of a bundle and of the data, and what belongs to what.

It shows that files are those that were packed. It does not show who packed them: it can be written anew for other files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitlab.errors import UserError
from vitlab.runs import write_json
from vitlab.submission.archive import hash_file

MANIFEST = "MANIFEST.json"
FORMAT = 1
OWN = "sha256_of_this_file_without_this_line"
LARGEST = 20 * 10**6  # bytes of a manifest that are read
MOST = 1_000  # runs, and notebooks
KEYS = {"format": int, "title": str, "author": str, "files": dict, "data": dict, "runs": list, "notebooks": list, OWN: str}
RUN_KEYS = {"path": str, "dataset": str, "parameters": dict, "splits_sha256": str, "weights": dict}
NOTEBOOK_KEYS = {"executed": str, "clean": str, "parameters": dict, "page": str}


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Path below the folder -> sha256 and bytes, of every file but the manifest itself."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    return {name: {"sha256": hash_file(path), "bytes": path.stat().st_size} for name, path in named.items() if name != MANIFEST}


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Write MANIFEST.json for all files below the folder, with these further facts; gives its content."""
    content = {"format": FORMAT, **facts, "files": list_files(folder)}
    content = json.loads(json.dumps(content, default=str))
    content[OWN] = _own_digest(content)
    write_json(folder / MANIFEST, content)
    return content


def read_manifest(folder: Path) -> dict[str, Any]:
    """The content of MANIFEST.json. ValueError where it is missing, no manifest, or altered in any byte."""
    path = folder / MANIFEST
    if not path.is_file():
        raise UserError(f"{MANIFEST} is missing: this is no bundle of vitlab submit, or a file was taken out")
    if path.stat().st_size > LARGEST:
        raise UserError(f"{MANIFEST} has {path.stat().st_size:,} bytes; at most {LARGEST:,} are read")
    text = path.read_bytes()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{MANIFEST} is damaged: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{MANIFEST} is not of format {FORMAT}; another version of vitlab may have written it")
    _check_fields(content, KEYS, MANIFEST)
    for kind, keys in (("runs", RUN_KEYS), ("notebooks", NOTEBOOK_KEYS)):
        for number, record in enumerate(content[kind]):
            _check_fields(record, keys, f"{MANIFEST}, {kind}[{number}]")
    for kind, key in (("runs", "path"), ("notebooks", "executed")):
        names = [record[key] for record in content[kind]]
        if len(names) > MOST or len(set(names)) < len(names):
            raise UserError(f"{MANIFEST} lists one of its {len(names):,} {kind} twice, or more than {MOST:,}")
    for name, record in content["files"].items():
        _check_fields(record, {"sha256": str, "bytes": int}, f"{MANIFEST}, files, {name}")
    for name, record in content["data"].items():
        _check_fields(record, {"sha256": str, "table": str, "images": int}, f"{MANIFEST}, data, {name}")
    written = json.dumps(content, indent=1, default=str) + "\n"  # as write_json writes it
    if content[OWN] != _own_digest(content) or written.encode() != text:
        raise UserError(f"{MANIFEST} was altered: it does not fit the checksum of itself")
    return content


def compare_files(folder: Path, manifest: Mapping[str, Any], damaged: Mapping[str, str]) -> dict[str, str]:
    """File -> what is wrong with it, for every file that is altered, damaged, missing or extra; empty where all are as packed."""
    found, listed, problems = list_files(folder), manifest["files"], {}
    for name, record in listed.items():
        if name in damaged:
            problems[name] = f"damaged: {damaged[name]}"
        elif name not in found:
            problems[name] = "missing"
        elif found[name]["sha256"] != record["sha256"]:
            sizes = f" ({record['bytes']:,} bytes became {found[name]['bytes']:,})"
            problems[name] = "altered" + (sizes if found[name]["bytes"] != record["bytes"] else "")
    extra = [name for name in found | dict(damaged) if name not in listed and name != MANIFEST]
    return problems | dict.fromkeys(extra, "extra: the manifest does not list it")


def _own_digest(content: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in content.items() if key != OWN}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _check_fields(content: Any, keys: Mapping[str, type], where: str) -> None:
    if not isinstance(content, dict):
        raise UserError(f"{where} is no mapping")
    for key, kind in keys.items():
        if not isinstance(content.get(key), kind):
            raise UserError(f"{where} lacks {key}, or it is no {kind.__name__}")
