"""Train one model from the command line, in one process or, with torchrun, in several: one for each
GPU, or on the processor.

python -m vitlab.training --dataset elpv --model hybrid_vit torchrun --nproc_per_node 4 -m
vitlab.training --dataset elpv --model vit_small_patch16_224 --batch_size 256"""

from __future__ import annotations

import argparse
from dataclasses import fields

import yaml

from vitlab.errors import UserError
from vitlab.training.config import TrainConfig
from vitlab.training.devices import join_processes
from vitlab.training.experiment import finetune

FORMAT = argparse.RawDescriptionHelpFormatter
parser = argparse.ArgumentParser(
    prog="python -m vitlab.training", description=__doc__, formatter_class=FORMAT
)
parser.add_argument(
    "--dataset", required=True, help="any name or prefix listed by vitlab.data.available()"
)
parser.add_argument(
    "--model", required=True, help="any name listed by vitlab.models.available(), or any timm name"
)
parser.add_argument(
    "--name", default="", help="folder of the run; by default made from the parameters"
)
parser.add_argument(
    "--option",
    action="append",
    default=[],
    metavar="NAME=VALUE",
    help="of build_model, as in pretrained=false",
)
for field in fields(TrainConfig):
    kind = yaml.safe_load if isinstance(field.default, bool) else type(field.default)
    parser.add_argument(
        f"--{field.name}", type=kind, help=f"default: the model's recipe, else {field.default!r}"
    )


def main() -> None:
    arguments = vars(parser.parse_args())
    dataset, model, name, seed = (
        arguments.pop(key) for key in ("dataset", "model", "name", "seed")
    )
    options = {
        key: yaml.safe_load(value)
        for key, _, value in (option.partition("=") for option in arguments.pop("option"))
    }
    given = {key: value for key, value in arguments.items() if value is not None}
    try:
        # raises, before data are read, where several processes would train apart
        state = join_processes()
        run = finetune(dataset, model, seed or 0, name, options=options, **given)
    except UserError as error:
        parser.exit(2, f"Error: {error}\n")
    if state.is_main_process:
        print(run.path)


if __name__ == "__main__":
    main()
