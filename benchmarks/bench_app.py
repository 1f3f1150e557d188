"""The app under load: requests a second, errors and memory, for a ViT-Ti in int8 and several clients at once.

`python benchmarks/bench_app.py [--requests 2000] [--clients 8]`. The app runs in a process of its own, as it is deployed; the
clients are threads here, on the same cores. They post ELPV images to /predict, and some go the long way that the page takes
(upload, queue, answer as an event stream). Weights are random: they cost what trained ones cost.
"""

from __future__ import annotations

import argparse
import io
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
from PIL import Image
from records import record, write_records

from vitlab.compress.export import export_onnx
from vitlab.compress.parity import Gate
from vitlab.compress.quantize import quantize_onnx
from vitlab.data import load_dataset
from vitlab.models import build_model
from vitlab.schema import DataBundle

MODEL = "vit_tiny_patch16_224"
WARM_UP = 100  # requests before memory is looked at: caches and pools fill with the first ones
SERVE = "import sys; from vitlab.app.serving import serve; serve(sys.argv[1], port=int(sys.argv[2]))"


def prepare(folder: Path) -> DataBundle:
    """model.onnx in int8 in the folder; random weights agree with nothing reliably, so the gate is left open."""
    data = load_dataset("elpv")
    model = build_model(MODEL, data.classes, pretrained=False)
    export_onnx(model, folder / "fp32.onnx", data)
    quantize_onnx(folder / "fp32.onnx", folder / "model.onnx", data, method="dynamic", gate_images=8, gate=Gate(agreement=0))
    return data


def start(folder: Path) -> tuple[subprocess.Popen, str]:
    """The app in a process of its own, when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-c", SERVE, str(folder), str(port)], stdout=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            httpx.get(f"{address}/health", timeout=5).raise_for_status()
            return server, address
        except httpx.HTTPError:
            if server.poll() is not None:
                raise RuntimeError(f"the app ended with status {server.returncode} before it answered") from None
            time.sleep(0.5)
    server.terminate()
    raise RuntimeError("the app did not answer within two minutes")


def load(ask: Callable[[httpx.Client, bytes], None], address: str, bodies: Sequence[bytes], requests: int, clients: int) -> dict:
    """Send requests from several clients; requests a second, milliseconds of one (median, 95th percentile), number of errors."""
    times, errors = [], []

    def work(number: int) -> None:
        with httpx.Client(base_url=address, timeout=60) as client:
            for i in range(number, requests, clients):
                begin = time.perf_counter()
                try:
                    ask(client, bodies[i % len(bodies)])
                except (httpx.HTTPError, ValueError) as error:
                    errors.append(repr(error))
                times.append(1000 * (time.perf_counter() - begin))

    begin = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(work, range(clients)))
    seconds = time.perf_counter() - begin
    quantiles = statistics.quantiles(times, n=20)
    if errors:
        print("first error:", errors[0])
    return {"rate": requests / seconds, "median_ms": statistics.median(times), "p95_ms": quantiles[-1], "errors": len(errors)}


def ask_directly(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/predict", content=body).raise_for_status().json()
    if abs(sum(answer["probabilities"].values()) - 1) > 1e-3:
        raise ValueError(f"no answer: {answer}")


def ask_as_the_page(client: httpx.Client, body: bytes) -> None:
    uploaded = client.post("/gradio_api/upload", files={"files": ("cell.png", body, "image/png")}).raise_for_status().json()
    data = {"data": [{"path": uploaded[0], "meta": {"_type": "gradio.FileData"}}]}
    event = client.post("/gradio_api/call/answer", json=data).raise_for_status().json()["event_id"]
    stream = client.get(f"/gradio_api/call/answer/{event}").raise_for_status().text
    if "event: complete" not in stream or "panel" not in stream:
        raise ValueError(f"no answer: {stream[:200]}")


def encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def measure_memory(server: subprocess.Popen) -> float:
    """Resident memory of the app in MB."""
    return psutil.Process(server.pid).memory_info().rss / 1e6


def measure_cpu(server: subprocess.Popen) -> float:
    """Seconds of processor time that the app has used: what a request costs, however busy the machine is with other things."""
    used = psutil.Process(server.pid).cpu_times()
    return used.user + used.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder))
        bodies = [encode(data.read(sample_id)) for sample_id in data.split("test")["sample_id"][:64]]
        server, address = start(Path(folder))
        try:
            load(ask_directly, address, bodies, WARM_UP, arguments.clients)
            before, cpu = measure_memory(server), measure_cpu(server)
            direct = load(ask_directly, address, bodies, arguments.requests, arguments.clients)
            after = measure_memory(server)
            direct["cpu_ms"] = 1000 * (measure_cpu(server) - cpu) / arguments.requests
            queued = load(ask_as_the_page, address, bodies, max(arguments.requests // 10, 20), arguments.clients)
        finally:
            server.terminate()
            server.wait(timeout=30)
    case = f"{MODEL} int8, {arguments.clients} clients, {arguments.requests:,} requests"
    records = [
        record(case, "requests a second", direct["rate"], 20, "the bar", direct["rate"] / 20, ">= 1"),
        record(
            case,
            "requests without an error",
            arguments.requests - direct["errors"],
            arguments.requests,
            "all",
            1 - direct["errors"] / arguments.requests,
            ">= 1",
        ),
        record(case, "resident memory at the end, MB", after, before, f"after {WARM_UP} requests", after / before, "<= 1.05"),
        record(
            "the same through upload and queue", "requests a second", queued["rate"], 20, "the bar", queued["rate"] / 20, ">= 1"
        ),
    ]
    print(
        f"the app needs {direct['cpu_ms']:.1f} ms of processor time a request; {direct['median_ms']:.0f} ms on the clock (median)"
    )
    write_records("app", records, direct=direct, queued=queued)


if __name__ == "__main__":
    main()
