"""pyproject.toml, environment.yml and requirements.lock say the same."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
CONDA_NAMES = {"torch": "pytorch", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
ALL = [
    Requirement(line)
    for line in PROJECT["dependencies"] + [line for extra in EXTRAS.values() for line in extra]
]
LOCK_LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCKED = [Requirement(line) for line in LOCK_LINES if line and not line.startswith("#")]


def conda_requirements():
    lines = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip = next(line["pip"] for line in lines if isinstance(line, dict))
    return [
        Requirement(line)
        for line in [*lines, *pip]
        if isinstance(line, str) and not line.startswith("--")
    ]


@pytest.mark.parametrize("needed", ALL, ids=lambda requirement: requirement.name)
def test_conda_and_lock_agree_with_pyproject(needed):
    (conda,) = [
        one for one in conda_requirements() if one.name == CONDA_NAMES.get(needed.name, needed.name)
    ]
    assert conda.specifier == needed.specifier
    pins = [one for one in LOCKED if canonicalize_name(one.name) == canonicalize_name(needed.name)]
    assert pins
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==" and needed.specifier.contains(specifier.version)


def test_conda_has_nothing_more_than_what_it_must():
    names = {CONDA_NAMES.get(one.name, one.name) for one in ALL}
    assert {one.name for one in conda_requirements()} - names == {"python", "make", "quarto", "pip"}


def test_lock_is_exact_and_names_no_index():
    assert all(
        len(pin.specifier) == 1 and next(iter(pin.specifier)).operator == "==" for pin in LOCKED
    )
    assert not re.search(r"https?:|file:|--index|--find-links", "\n".join(LOCK_LINES))


@pytest.mark.parametrize("system", ["linux", "darwin", "win32"])
@pytest.mark.parametrize("version", ["3.11.0", "3.12.0", "3.13.0"])
def test_lock_pins_each_package_once_for_each_machine(system, version):
    machine = {
        "sys_platform": system,
        "platform_system": {"linux": "Linux", "darwin": "Darwin", "win32": "Windows"}[system],
        "os_name": "nt" if system == "win32" else "posix",
        "platform_machine": "arm64" if system == "darwin" else "x86_64",
        "python_full_version": version,
        "python_version": version.rpartition(".")[0],
        "implementation_name": "cpython",
    }
    names = [pin.name for pin in LOCKED if pin.marker is None or pin.marker.evaluate(machine)]
    assert len(names) == len(set(names))
    assert {canonicalize_name(needed.name) for needed in ALL} <= {
        canonicalize_name(name) for name in names
    }


def test_python_versions_agree():
    (python,) = [one for one in conda_requirements() if one.name == "python"]
    assert python.specifier == Requirement("python" + PROJECT["requires-python"]).specifier
