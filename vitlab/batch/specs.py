"""What a batch file and a file of a cluster may contain, checked by pydantic."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from vitlab.errors import UserError
from vitlab.files import read_yaml
from vitlab.registry import unknown

CLUSTERS = {
    "slurm": "dask_jobqueue:SLURMCluster",
    "pbs": "dask_jobqueue:PBSCluster",
    "sge": "dask_jobqueue:SGECluster",
    "lsf": "dask_jobqueue:LSFCluster",
    "oar": "dask_jobqueue:OARCluster",
    "htcondor": "dask_jobqueue:HTCondorCluster",
    "jobqueue-local": "dask_jobqueue.local:LocalCluster",
    "local": "distributed:LocalCluster",
}
AnySpec = TypeVar("AnySpec", bound="Spec")


class Spec(BaseModel):
    """A mapping with known keys. An empty value counts as absent."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    keep_empty: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _check_keys(cls, content: Any) -> Any:
        keys = list(cls.model_fields)
        if isinstance(content, cls):
            return content
        if not isinstance(content, dict):
            raise ValueError(f"must have the keys {', '.join(keys)}; it is {content!r}")
        for key in content:
            if key not in keys:
                raise ValueError(unknown("key", str(key), keys))
        if cls.keep_empty:
            return content
        return {key: value for key, value in content.items() if value is not None}


def _check_parameters(parameters: Any) -> dict[str, Any]:
    if not isinstance(parameters, dict):
        raise ValueError(f"must be written as name: value; it is {parameters!r}")
    if "run_name" in parameters:
        raise ValueError("the batch itself sets run_name, one for each point; remove it")
    return parameters


def _check_values(values: Any) -> list:
    if not isinstance(values, list) or not values or len(unique(values)) < len(values):
        raise ValueError(f"must be a list of different values, like [a, b]; it is {values!r}")
    return values


def _check_axis(axis: Any) -> list | dict[str, dict[str, Any]]:
    """A list of values, or cases: name -> parameters. A case without parameters changes nothing."""
    if not isinstance(axis, dict) or not axis:
        try:
            return _check_values(axis)
        except ValueError as error:
            raise ValueError(f"{error}. It may also have cases, like {{a: {{seed: 1}}}}") from None
    for name, parameters in axis.items():
        if not isinstance(name, str):
            raise ValueError(f"a case is called {name!r}; put quotes around it")
        try:
            _check_parameters(parameters or {})
        except ValueError as error:
            raise ValueError(f"case {name}: {error}") from None
    return {name: parameters or {} for name, parameters in axis.items()}


def _check_unit(size: Any) -> Any:
    """`ByteSize` would read a number without a unit as bytes."""
    if not isinstance(size, str) or not size.strip()[-1:].isalpha():
        raise ValueError(f"must be a number and a unit, like 6 GB or 512 MB; it is {size!r}")
    return size


def _check_cluster(name: Any) -> Any:
    if name not in list(CLUSTERS):  # it may not be hashable
        raise ValueError(unknown("cluster", str(name), list(CLUSTERS)))
    return name


Parameters = Annotated[dict[str, Any], BeforeValidator(_check_parameters)]
PositiveInt = Annotated[int, Field(gt=0, strict=True)]


class Limits(Spec):
    """What a notebook may use: minutes, and bytes of memory with child processes; None: any."""

    keep_empty = True
    minutes: Annotated[float, Field(gt=0, strict=True)] | None = None
    memory: Annotated[ByteSize, Field(gt=0), BeforeValidator(_check_unit)] | None = None

    def override(self, own: Limits) -> Limits:
        """These limits, with those that `own` names in their place; null lifts a limit."""
        return self.model_copy(update=own.model_dump(exclude_unset=True))


class StepSpec(Spec):
    """grid: None for that of the batch; {} for a notebook that runs once. resources: what a Dask
    worker must have free for it; None for a GPU where any worker offers one.
    """

    notebook: str
    grid: (
        Annotated[
            dict[str, Annotated[list, BeforeValidator(_check_values)]],
            BeforeValidator(_check_parameters),
        ]
        | None
    ) = None
    parameters: Parameters = {}
    limits: Limits = Limits()
    resources: dict[str, Annotated[float, Field(ge=0, strict=True)]] | None = None


class BatchSpec(Spec):
    """title, author, abstract: of the report. grid: axis -> its values, or cases by name."""

    title: Any = ""
    author: str = ""
    abstract: str = ""
    parameters: Parameters = {}
    grid: Annotated[
        dict[str, Annotated[Any, BeforeValidator(_check_axis)]], BeforeValidator(_check_parameters)
    ] = {}
    chain: list[StepSpec] = Field(min_length=1)
    limits: Limits = Limits()


class ClusterSpec(Spec):
    """jobs: how many to submit. patience: minutes to wait while there is no worker. options: those
    of the class of dask-jobqueue.
    """

    cluster: Annotated[str, BeforeValidator(_check_cluster)]
    jobs: PositiveInt = 1
    patience: PositiveInt = 60
    options: dict[str, Any] = {}


def read_spec(kind: type[AnySpec], path: Path | str, what: str) -> AnySpec:
    """Read and check a YAML file. UserError names the first wrong entry and what it should be."""
    content = read_yaml(path, what)
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
    place = "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}"
        for part in first["loc"]
        if part != "[key]"
    ).removeprefix(".")
    where = f"{Path(path).name}, {place}" if place else Path(path).name
    own = first.get("ctx", {}).get("error")
    message = str(own) if own else f"{first['msg']}; it is {reprlib.repr(first['input'])}"
    raise UserError(f"{where}: {message}")


def unique(values) -> list:
    """The values without repetitions, in order; they need not be hashable."""
    found: list = []
    for value in values:
        if value not in found:
            found.append(value)
    return found
