"""Low-rank adaptation (LoRA, arXiv 2106.09685): the linear layers of the transformer blocks keep
their weights and learn a product of two small matrices that is added to them; the head is trained
as usual. After training the product is added for good, so that the model is as it was built.
"""

from __future__ import annotations

from torch import nn

from vitlab.errors import UserError
from vitlab.models import split_stages
from vitlab.schema import ModelBundle


def add_lora(model: ModelBundle, rank: int) -> None:
    """Put adapters of this rank beside the linear layers of the blocks; only these and the head
    require a gradient then.

    UserError for a model without transformer blocks."""
    from peft import LoraConfig, inject_adapter_in_model

    blocks = tuple(f"{block}." for block in model.anatomy.blocks)
    layers = [
        name
        for name, part in model.module.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(blocks)
    ]
    if not blocks or not layers:
        raise UserError(
            f"strategy='lora' adapts transformer blocks, and {model.name} has none; write"
            " strategy='last_blocks' or 'full'"
        )
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=layers)
    inject_adapter_in_model(config, model.module)
    for name, parameter in model.module.named_parameters():
        parameter.requires_grad = "lora_" in name
    dict(split_stages(model.module))["head"].requires_grad_(True)


def merge_lora(module: nn.Module) -> None:
    """Add what the adapters learnt to the weights, and take the adapters out, if there are any."""
    for name, layer in list(module.named_modules()):
        if hasattr(layer, "lora_A"):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, layer.get_base_layer())
