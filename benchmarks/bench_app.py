"""The app under load: requests a second, errors and memory, for a ViT-Ti in int8 and several
clients at once.

`python benchmarks/bench_app.py [--requests 2000] [--clients 8]`. The app runs in a process of its
own, as it is deployed; the clients are threads here, on the same cores. Two ways, as many requests
of each:

- `/predict`, for programs: an ELPV image (PNG, 300x300) as the body of one POST; the limits,
  decoding, fitting to 224x224, the network, calibrated probabilities, the conformal set; label,
  probabilities and set as JSON.
- the page's own: the same image to Gradio's upload, the event into its queue, the same answer as
  HTML from its event stream: three requests of HTTP, counted as one.

No map is drawn in either: the page asks for it afterwards, and it would cost as much as its method.
Weights are random: they cost what trained ones cost. The client's own work (about 2 and 5 ms a
request) is on the same cores."""

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

from vitlab.compress.export import Gate, export_onnx
from vitlab.compress.quantize import quantize_onnx
from vitlab.data import load_dataset
from vitlab.models import build_model
from vitlab.schema import DataBundle

MODEL = "vit_tiny_patch16_224"
# requests before memory is looked at: pools, caches and the state of SESSIONS visitors fill with
# the first ones
WARM_UP = 300
SERVE = (
    "import sys; from vitlab.app.serving import serve; serve(sys.argv[1], port=int(sys.argv[2]))"
)


def prepare(folder: Path) -> DataBundle:
    """model.onnx in int8 in the folder; random weights agree with nothing reliably, so the gate is
    left open.
    """
    data = load_dataset("elpv")
    model = build_model(MODEL, data.classes, pretrained=False)
    export_onnx(model, folder / "fp32.onnx", data)
    quantize_onnx(
        folder / "fp32.onnx",
        folder / "model.onnx",
        data,
        gate_images=8,
        gate=Gate(agreement=0),
    )
    return data


def start(folder: Path) -> tuple[subprocess.Popen, str]:
    """The app in a process of its own, when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(folder), str(port)], stdout=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    for _ in range(240):
        try:
            httpx.get(f"{address}/health", timeout=5).raise_for_status()
            return server, address
        except httpx.HTTPError:
            if server.poll() is not None:
                raise RuntimeError(
                    f"the app ended with status {server.returncode} before it answered"
                ) from None
            time.sleep(0.5)
    server.terminate()
    raise RuntimeError("the app did not answer within two minutes")


def load(
    ask: Callable[[httpx.Client, bytes], None],
    address: str,
    bodies: Sequence[bytes],
    requests: int,
    clients: int,
) -> dict:
    """Send requests from several clients; requests a second, milliseconds of one (median, 95th
    percentile), number of errors.
    """
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
    return {
        "rate": requests / seconds,
        "median_ms": statistics.median(times),
        "p95_ms": quantiles[-1],
        "errors": len(errors),
    }


def ask_directly(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/predict", content=body).raise_for_status().json()
    if abs(sum(answer["probabilities"].values()) - 1) > 1e-3:
        raise ValueError(f"no answer: {answer}")


def ask_as_the_page(client: httpx.Client, body: bytes) -> None:
    uploaded = (
        client.post("/gradio_api/upload", files={"files": ("cell.png", body, "image/png")})
        .raise_for_status()
        .json()
    )
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
    """Seconds of processor time that the app has used: what a request costs, however busy the
    machine is with other things.
    """
    used = psutil.Process(server.pid).cpu_times()
    return used.user + used.system


def measure(
    server: subprocess.Popen,
    ask: Callable[[httpx.Client, bytes], None],
    address: str,
    bodies: Sequence[bytes],
    requests: int,
    clients: int,
) -> dict:
    """What `load` gives, and the app's memory before and after, and its processor time a
    request.
    """
    load(ask, address, bodies, WARM_UP, clients)
    before, cpu = measure_memory(server), measure_cpu(server)
    found = load(ask, address, bodies, requests, clients)
    found |= {"memory_before_mb": before, "memory_after_mb": measure_memory(server)}
    found["cpu_ms"] = 1000 * (measure_cpu(server) - cpu) / requests
    print(
        f"{found['cpu_ms']:.1f} ms of the app's processor time a request; {found['median_ms']:.0f}"
        " ms on the clock (median)"
    )
    return found


def list_records(measured: dict[str, dict], requests: int, clients: int) -> list[dict]:
    """Three records for each way: requests a second, requests without an error, memory."""
    records = []
    for way, found in measured.items():
        case = f"{MODEL} int8, {way}, {clients} clients, {requests:,} requests"
        good, memory = (
            requests - found["errors"],
            (
                found["memory_after_mb"],
                found["memory_before_mb"],
            ),
        )
        records += [
            record(
                case, "requests a second", found["rate"], 20, "the bar", found["rate"] / 20, ">= 1"
            ),
            record(
                case, "requests without an error", good, requests, "all", good / requests, ">= 1"
            ),
            record(
                case,
                "resident memory, MB",
                *memory,
                f"after {WARM_UP} requests",
                memory[0] / memory[1],
                "<= 1.05",
            ),
        ]
    return records


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(Path(folder))
        bodies = [
            encode(data.read(sample_id)) for sample_id in data.split("test")["sample_id"][:64]
        ]
        measured = {}
        for way, ask in (("predict", ask_directly), ("page", ask_as_the_page)):
            # each in a process of its own: memory of one says nothing of the other
            server, address = start(Path(folder))
            try:
                measured[way] = measure(
                    server, ask, address, bodies, arguments.requests, arguments.clients
                )
            finally:
                server.terminate()
                server.wait(timeout=30)
    write_records("app", list_records(measured, arguments.requests, arguments.clients), **measured)


if __name__ == "__main__":
    main()
