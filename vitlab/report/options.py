"""The `#| key: value` options at the head of a code cell."""

from __future__ import annotations

import re

import yaml

from vitlab.errors import UserError

WORD = re.compile(r"[\w-]+")  # a mark such as `#| answer`, which has no value


def read_options(source: str) -> tuple[dict, str]:
    """The `#| key: value` options at the head of a code cell, and the code below them; a bare word
    is a key without a value.

    ValueError where they are no YAML.
    """
    lines = source.splitlines()
    head = next((i for i, line in enumerate(lines) if not line.startswith("#|")), len(lines))
    try:
        entries = [line[2:].removeprefix(" ") for line in lines[:head]]
        options = (
            yaml.safe_load(
                "\n".join(f"{entry}:" if WORD.fullmatch(entry) else entry for entry in entries)
            )
            or {}
        )
    except yaml.YAMLError:
        options = None
    if not isinstance(options, dict):
        raise UserError(
            "cell options must be `#| key: value` lines in YAML, not\n" + "\n".join(lines[:head])
        )
    return options, "\n".join(lines[head:]).strip("\n")


def write_options(options: dict, code: str) -> str:
    """The source of a code cell with these options; the reverse of `read_options`."""
    head = (
        yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=10_000)
        if options
        else ""
    )
    return "\n".join([*(f"#| {line}" for line in head.splitlines()), code])
