"""Train one model from the command line, in one process or, with torchrun, in several: one for each
GPU, or on the processor.

python -m vitlab.training --dataset elpv --model hybrid_vit --options "mixup=0.2, ema=0.99"
torchrun --nproc_per_node 4 -m vitlab.training --dataset elpv --model vit_small_patch16_224"""

from __future__ import annotations

import argparse

from vitlab.errors import UserError
from vitlab.training.config import PRESETS, TrainConfig
from vitlab.training.devices import join_processes
from vitlab.training.experiment import finetune
from vitlab.training.options import OPTIONS, PARAMETERS, read_settings

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
parser.add_argument("--preset", choices=PRESETS, help="default: standard")
for name in PARAMETERS:
    default = getattr(TrainConfig(), name)
    parser.add_argument(
        f"--{name}", type=type(default), help=f"default: the model's recipe, else {default!r}"
    )
parser.add_argument(
    "--options",
    default="",
    help=f"NAME=VALUE, separated by commas, as in notebook 03; names: {', '.join(OPTIONS)}",
)


def main() -> None:
    given = vars(parser.parse_args())
    dataset, name, seed = (given.pop(key) for key in ("dataset", "name", "seed"))
    try:
        arguments, options = read_settings(**given)
        # raises, before data are read, where several processes would train apart
        state = join_processes()
        run = finetune(dataset, given["model"], seed or 0, name, options=options, **arguments)
    except UserError as error:
        parser.exit(2, f"Error: {error}\n")
    if state.is_main_process:
        print(run.path)


if __name__ == "__main__":
    main()
