"""Keeps two batches from working on the same runs at a time, on one machine or on several that
share the reports folder.

A running batch holds the file `lock` of its folder, by a lock of the system, which ends with the
process however that ends; and it lists its runs in `claim.json` beside it. Another batch that
shares a run with it is refused; one that does not may run."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from vitlab.errors import UserError
from vitlab.files import write_json

LOCK, CLAIM = "lock", "claim.json"
LOOK_SECONDS = 60  # to wait for other batches that claim their runs; it takes each a moment


@contextmanager
def claim_runs(folder: Path, runs: Iterable[str]) -> Iterator[None]:
    """Hold a batch's folder and its runs; UserError while another process has one of them."""
    mine, own = sorted(set(runs)), FileLock(folder / LOCK)
    folder.mkdir(parents=True, exist_ok=True)
    look = FileLock(folder.parent / LOCK)
    if not _take(look, LOOK_SECONDS):
        raise UserError(f"other batches have held {look.lock_file} for {LOOK_SECONDS} s; end them")
    try:
        for claim in sorted(folder.parent.glob(f"*/{CLAIM}")):
            shared = sorted({*mine} & {*_read_claim(claim).get("runs", [])})
            if claim.parent != folder and shared and _is_held(claim.parent):
                raise _refuse(claim, folder.parent.parent.parent / shared[0])
        if not _take(own):
            raise _refuse(folder / CLAIM, folder)
        write_json(folder / CLAIM, {"pid": os.getpid(), "host": platform.node(), "runs": mine})
    finally:
        look.release()
    try:
        yield
    finally:
        (folder / CLAIM).unlink(missing_ok=True)
        own.release()


def _take(lock: FileLock, seconds: float = 0) -> bool:
    """Whether this process has the lock now; always where the file system has no locks."""
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    except OSError:
        pass
    return True


def _is_held(folder: Path) -> bool:
    lock = FileLock(folder / LOCK)
    free = _take(lock)
    lock.release()
    return not free


def _read_claim(claim: Path) -> dict:
    try:
        return json.loads(claim.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # removed at this moment
        return {}


def _refuse(claim: Path, folder: Path) -> UserError:
    who = _read_claim(claim)
    place = f"pid {who['pid']} on {who['host']}" if who else "its process is ending"
    return UserError(f"another batch ({place}) is running over {folder}; wait for it, or end it")
