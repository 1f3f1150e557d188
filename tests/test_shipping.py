"""The weights that come with vitlab: whole, as they were written, and in the network that asks for
them.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from timm.layers import resample_abs_pos_embed

from vitlab.models import build_model, load_model, save_model, weights
from vitlab.models.weights import FOLDER, pretraining_log, shipped_weights

NAME = "vit_tiny_vitlab"


def test_the_network_holds_the_weights():
    model = build_model(NAME, ["a", "b"])
    assert (
        model.transform.size == (128, 128)
        and model.anatomy.grid == (8, 8)
        and model.anatomy.num_prefix_tokens == 1
    )
    for name, tensor in shipped_weights(NAME).items():
        if not name.startswith("head."):
            torch.testing.assert_close(model.module.state_dict()[name], tensor, rtol=0, atol=0)
    random = build_model(NAME, ["a", "b"], pretrained=False)
    assert not torch.equal(
        random.module.blocks[0].attn.qkv.weight, model.module.blocks[0].attn.qkv.weight
    )


def test_positions_are_resampled_for_another_size():
    model = build_model(NAME, ["a", "b"], size=(64, 96))
    expected = resample_abs_pos_embed(
        shipped_weights(NAME)["pos_embed"], [4, 6], num_prefix_tokens=1
    )
    torch.testing.assert_close(model.module.pos_embed.data, expected)
    assert build_model(NAME, ["a", "b"], in_chans=1).module(torch.rand(1, 1, 128, 128)).shape == (
        1,
        2,
    )


@pytest.mark.parametrize("options", [{"depth": 12}, {"depth": 3}, {"embed_dim": 96}])
def test_options_that_the_weights_do_not_fit(options):
    with pytest.raises(ValueError, match="pretrained=False builds any other"):
        build_model(NAME, ["a", "b"], **options)
    if "depth" in options:
        assert (
            len(build_model(NAME, ["a", "b"], pretrained=False, **options).module.blocks)
            == options["depth"]
        )


def test_it_comes_back_from_a_run(tmp_path):
    model = build_model(NAME, ["a", "b"])
    with torch.no_grad():
        model.module.norm.weight.mul_(2)
    save_model(model, tmp_path)
    images = torch.rand(1, 3, 128, 128)
    torch.testing.assert_close(load_model(tmp_path).module(images), model.module(images))


def test_a_damaged_file_is_told(tmp_path, monkeypatch):
    content = bytearray((FOLDER / f"{NAME}.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / f"{NAME}.safetensors").write_bytes(content)
    (tmp_path / f"{NAME}.sha256").write_text((FOLDER / f"{NAME}.sha256").read_text())
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    shipped_weights.cache_clear()
    with pytest.raises(ValueError, match=r"vit_tiny_vitlab\.safetensors is damaged"):
        shipped_weights(NAME)
    shipped_weights.cache_clear()


def test_the_file_is_small_and_says_how_it_was_made():
    path = FOLDER / f"{NAME}.safetensors"
    assert path.stat().st_size < 12e6
    with safe_open(path, "pt") as file:
        facts = file.metadata()
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118 (not a dict)
    log = pretraining_log(NAME)
    assert isinstance(log, pd.DataFrame) and np.isclose(
        log["accuracy"].iloc[-1], float(facts["accuracy"]), atol=1e-3
    )
    card = (FOLDER / f"{NAME}.md").read_text(encoding="utf-8")
    assert "non-commercial" in card and f"{log['accuracy'].iloc[-1]:.1%}" in card
