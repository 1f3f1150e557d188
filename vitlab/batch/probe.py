"""What a worker is asked before it gets any work. Sent by value: a worker with another vitlab, or
none, can answer, too.
"""

from __future__ import annotations

from typing import Any


def probe_worker() -> dict[str, Any]:
    """version and code (a hash of its sources) of the vitlab here, None where there is none;
    python; cores, the ones it may use.

    Workers with equal `cores` share these.
    """
    import hashlib
    import os
    import platform
    import socket
    from pathlib import Path

    try:
        import vitlab

        folder = Path(vitlab.__file__).parent
        digest = hashlib.sha256()
        for file in sorted(folder.rglob("*.py")):
            digest.update(file.relative_to(folder).as_posix().encode() + file.read_bytes())
        version, code = getattr(vitlab, "__version__", "unknown"), digest.hexdigest()[:8]
    except ImportError:
        version = code = None
    allowed = (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )
    cores = {"count": len(allowed), "name": f"{socket.gethostname()} {','.join(map(str, allowed))}"}
    return {"version": version, "code": code, "python": platform.python_version(), "cores": cores}


def describe_vitlab(found: dict[str, Any] | BaseException) -> str:
    """`0.1.0 (code 1a2b3c4d)`, or why there is no answer."""
    if isinstance(found, BaseException):
        return f"no answer ({type(found).__name__}: {found})"
    return f"{found['version']} (code {found['code']})" if found["version"] else "no vitlab"
