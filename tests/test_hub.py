"""Weights of the hub, from a stand-in on loopback that serves random weights under timm's names."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from huggingface_hub import constants, file_download
from safetensors.torch import save

from vitlab.data import load_dataset
from vitlab.models import build_model
from vitlab.training import fit, recipe

MODELS = ("deit_tiny_patch16_224", "swin_s3_tiny_224", "mobilevit_xxs", "resnet10t")


@pytest.fixture(scope="module")
def networks():
    """Model -> the network whose weights the stand-in serves."""
    torch.manual_seed(0)
    return {name: timm.create_model(name, pretrained=False).eval() for name in MODELS}


@pytest.fixture(scope="module")
def hub(networks, tmp_path_factory):
    """HF_ENDPOINT set to a server with the files of these models; the list of paths asked for."""
    asked: list[str] = []
    content = {
        f"/{timm.get_pretrained_cfg(name).hf_hub_id}/resolve/main/model.safetensors": save(
            {key: tensor.contiguous() for key, tensor in network.state_dict().items()}
        )
        for name, network in networks.items()
    }

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self._answer(with_body=False)

        def do_GET(self):
            self._answer(with_body=True)

        def _answer(self, with_body):
            asked.append(self.path)
            body = content.get(self.path, b"")
            self.send_response(200 if body or self.path == "/" else 404)
            self.send_header("ETag", f'"{abs(hash(self.path)):x}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        if hasattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE"):
            patch.setattr(file_download, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield asked
    server.shutdown()


@pytest.mark.parametrize("name", MODELS)
def test_weights_of_the_hub_are_loaded_once_and_are_those_served(name, hub, networks):
    model = build_model(name, ("a", "b"), pretrained=True)
    served, own = networks[name].state_dict(), model.module.state_dict()
    same = [key for key in own if key in served and own[key].shape == served[key].shape]
    assert len(same) >= len(served) - 4  # all but the head
    assert all(torch.equal(own[key], served[key]) for key in same)
    before = len(hub)
    build_model(name, ("a", "b"), pretrained=True)
    assert len(hub) == before, "the second time they come from the cache"


def test_a_model_of_the_hub_is_fitted(hub, networks):
    data = load_dataset("digits")
    model = build_model("mobilevit_xxs", data.classes, pretrained=True, size=64)
    config = recipe("mobilevit_xxs", data, preset="quick", epochs=1)
    assert config.strategy == "linear_probe"
    history = fit(model, data, config=config, show=False)
    assert history["train_loss"].notna().all()
