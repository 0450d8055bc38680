"""The server on this machine, under load: speed, patience, memory, malice, and a killed worker.

    python -m benchmarks.serve                 # about a quarter of an hour, 10 minutes of it load
    python -m benchmarks.serve --minutes 1
    python -m benchmarks.serve --smallest      # to try it

CCSNet with MiT-B1 and 150 classes, random weights, images of 512 x 512 pixels sent as JPEG and
answered with PNG label maps, over loopback; server, worker, client and this program are processes
of their own on the same processors.

- Throughput at full load (8 connections that always wait for an answer) against
  `Predictor.predict` of the decoded image in a loop, which neither reads nor writes a file. Both
  take turns; the ratio is the median over the rounds.
- Latency at half of that load, requests coming at random moments.
- Minutes at full load; memory of server and worker after the first tenth, and at the end.
- 1000 malformed requests: what they are answered with, and memory before and after.
- The worker is killed (SIGKILL) under full load: what clients see, and when it goes on.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.latency import our_checkpoint, picture
from benchmarks.made import made_checkpoint, made_info
from benchmarks.serve_load import post, read_head
from ccsnet.checkpoint import Checkpoint
from ccsnet.data.images import read_image
from ccsnet.machine import machine
from ccsnet.memory import keep_freed_memory
from ccsnet.predict import Predictor, predictor_of
from ccsnet.segmenter import ModelConfig, create_segmenter

CONNECTIONS = 8
CATEGORIES = ("noise", "cut", "kind", "query", "form", "large", "empty", "protocol")


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """How much of everything."""

    size: int
    requests: int
    rounds: int
    half: int
    minutes: float
    malformed: int


FULL = Amounts(size=512, requests=48, rounds=5, half=200, minutes=10, malformed=1000)
SMALLEST = Amounts(size=64, requests=12, rounds=2, half=10, minutes=0.05, malformed=40)


def checkpoint_of(size: int, folder: Path, image: np.ndarray) -> Checkpoint:
    """MiT-B1, or for small images timm's smallest network."""
    if size >= 256:
        return our_checkpoint("ccs", folder, image)
    config = ModelConfig(backbone="test_efficientnet")
    torch.manual_seed(0)
    model = create_segmenter(config, num_classes=150).eval()
    return made_checkpoint(model, config, made_info(150), folder / "small.safetensors")


class Server:
    """A server that runs; its processes."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port

    @property
    def worker(self) -> int:
        """The process that computes: the server's child that has the most memory."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        threads = children.parent.parent.glob("*/children")
        pids = [int(pid) for thread in threads for pid in thread.read_text().split()]
        return max(pids, key=resident)

    def memory(self) -> tuple[float, float]:
        """MiB of server and worker."""
        return resident(self.process.pid), resident(self.worker)


def resident(pid: int) -> float:
    """MiB of a process in memory; 0 of one that is gone. Linux only."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) / 1024
    return 0.0


@contextlib.contextmanager
def serving(path: Path) -> Iterator[Server]:
    """A server with a model, ready; ended with the block."""
    command = [sys.executable, "-m", "ccsnet", "serve", str(path), "--port", "0", "--cpu"]
    process = subprocess.Popen([*command, "--quiet"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        yield Server(process, int(line.rpartition(":")[2]))
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def load(server: Server, image: Path, *options: object) -> dict[str, Any]:
    """What a client in a process of its own saw."""
    command = [sys.executable, "-m", "benchmarks.serve_load", server.port, image, *options]
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def full_load(server: Server, image: Path, requests: int) -> float:
    """Images a second; every one must be answered."""
    seen = load(server, image, "--requests", requests, "--connections", CONNECTIONS)
    assert seen["statuses"] == {"200": requests}, seen["statuses"]
    return requests / seen["seconds"]


def in_a_loop(predictor: Predictor, image: np.ndarray, requests: int) -> float:
    """Images a second of the model alone."""
    started = time.perf_counter()
    for _ in range(requests):
        predictor.predict(image)
    return requests / (time.perf_counter() - started)


def throughput(server: Server, predictor: Predictor, image: Path, amounts: Amounts) -> float:
    """Print and return images a second at full load."""
    array = read_image(image)
    loop: list[float] = []
    served: list[float] = []
    for turn in range(-1, amounts.rounds):
        pair = (
            in_a_loop(predictor, array, amounts.requests),
            full_load(server, image, amounts.requests),
        )
        if turn >= 0:  # The first fills what the others find filled.
            loop.append(pair[0])
            served.append(pair[1])
    ratios = [a / b for a, b in zip(served, loop, strict=True)]
    row("images/s, the model in a loop", spread(loop))
    row("images/s, served at full load", spread(served))
    row("served / in a loop", spread(ratios))
    return statistics.median(served)


def half_load(server: Server, image: Path, rate: float, amounts: Amounts) -> None:
    """Print the latencies."""
    seen = load(server, image, "--requests", amounts.half, "--rate", rate / 2)
    assert seen["statuses"] == {"200": amounts.half}, seen["statuses"]
    times = np.array([seconds for _, _, seconds in seen["answers"]]) * 1e3
    p50, p95, p99 = np.percentile(times, (50, 95, 99))
    row(
        f"latency at {rate / 2:.1f} images/s, {amounts.half} requests: p50, p95, p99",
        f"{p50:.0f}, {p95:.0f}, {p99:.0f} ms",
    )


def long_load(server: Server, image: Path, minutes: float) -> None:
    """Print how memory went."""
    samples: list[tuple[float, float]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(max(0.2, minutes * 60 / 100)):
            samples.append(server.memory())

    watcher = threading.Thread(target=sample)
    watcher.start()
    try:
        options = ("--seconds", minutes * 60, "--connections", CONNECTIONS)
        seen = load(server, image, *options)
    finally:
        done.set()
        watcher.join()
    statuses = ", ".join(f"{num} x {status}" for status, num in seen["statuses"].items())
    row(f"{minutes:g} minutes at full load", f"{statuses}")
    after, end = samples[len(samples) // 10], samples[-1]
    most = [max(column) for column in zip(*samples, strict=True)]
    for place, name in enumerate(("server", "worker")):
        row(
            f"MiB of the {name} after a tenth of that, at the end, at most",
            f"{after[place]:.0f}, {end[place]:.0f}, {most[place]:.0f}",
        )


def malformed_request(chance: random.Random, image: bytes) -> bytes:
    """Bytes that are no request that could be granted."""
    noise = chance.randbytes(chance.randrange(1, 3000))
    kind = chance.choice(CATEGORIES)
    cut = image[: chance.randrange(1, len(image) - 2)]
    form = "multipart/form-data; boundary=b"
    return {
        "noise": post(b"\x89PNG\r\n\x1a\n"[: chance.randrange(9)] + b"\0" + noise),
        "cut": post(cut),
        "kind": post(image, kind=chance.choice(["text/html", "application/json", "a/b"])),
        "query": post(image, f"/predict?output={chance.randrange(99)}"),
        "form": post(b"--b\r\n" + noise, chance.choice(["/predict", "/predict/batch"]), form),
        "large": b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 999999999999\r\n\r\n",
        "empty": post(b""),
        "protocol": noise.replace(b"\n", b" ") + b"\r\n\r\n",
    }[kind]


async def answers(port: int, requests: list[bytes]) -> Counter[int]:
    """The statuses of requests, each on a connection of its own; 0 is none."""
    statuses: Counter[int] = Counter()

    async def one(request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            status, _ = await asyncio.wait_for(read_head(reader), 30)
            statuses[status] += 1
        except (OSError, EOFError, TimeoutError):
            statuses[0] += 1
        finally:
            writer.close()

    for start in range(0, len(requests), CONNECTIONS):
        await asyncio.gather(*map(one, requests[start : start + CONNECTIONS]))
    return statuses


def malice(server: Server, image: Path, num: int) -> None:
    """Print what malformed requests are answered with."""
    chance, data = random.Random(0), image.read_bytes()
    before = server.memory()
    statuses = asyncio.run(
        answers(server.port, [malformed_request(chance, data) for _ in range(num)])
    )
    after = server.memory()
    full_load(server, image, CONNECTIONS)  # It still serves.
    text = ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    row(f"{num} malformed requests", text)
    row(
        "MiB of server and worker before and after these",
        f"{before[0]:.0f} and {before[1]:.0f}, {after[0]:.0f} and {after[1]:.0f}",
    )
    assert all(400 <= status < 500 for status in statuses), statuses


def killed(server: Server, image: Path) -> None:
    """Print what clients see when the worker is killed."""
    worker = server.worker
    moment = 0.0

    def kill() -> None:
        nonlocal moment
        os.kill(worker, signal.SIGKILL)
        moment = time.monotonic()

    timer = threading.Timer(2.0, kill)
    timer.start()
    options = ("--connections", CONNECTIONS, "--seconds", 120, "--until-well", 2 * CONNECTIONS)
    seen = load(server, image, *options)
    timer.join()
    # Clocks of processes on one machine are the same.
    back = min(when for when, status, _ in seen["answers"] if status == 200 and when > moment + 0.5)
    refused = [seconds for _, status, seconds in seen["answers"] if status == 503]
    statuses = ", ".join(f"{num} x {status}" for status, num in seen["statuses"].items())
    row("a worker killed under full load", statuses)
    row("longest wait for a 503", f"{1e3 * max(refused):.0f} ms")
    row("from the kill to the next label map", f"{back - moment:.1f} s")
    assert set(seen["statuses"]) == {"200", "503"}, seen["statuses"]


def row(name: str, value: str) -> None:
    """Print a line of the table."""
    print(f"| {name} | {value} |", flush=True)


def spread(values: list[float]) -> str:
    """Median, least and most."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description="The server under load.")
    parser.add_argument("--smallest", action="store_true", help="in seconds, to try it")
    parser.add_argument("--minutes", type=float, help="at full load; none: 10")
    arguments = parser.parse_args()
    amounts = SMALLEST if arguments.smallest else FULL
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        array = picture(amounts.size)
        image = folder / "photo.jpg"
        cv2.imwrite(str(image), cv2.cvtColor(array, cv2.COLOR_RGB2BGR))
        checkpoint = checkpoint_of(amounts.size, folder, array)
        predictor = predictor_of(checkpoint, "cpu")
        print(
            f"{machine()}; images of {amounts.size} x {amounts.size} pixels, "
            f"{image.stat().st_size:,} bytes each.\n"
        )
        print("| | |\n|---|---|")
        with serving(checkpoint.path) as server:
            rate = throughput(server, predictor, image, amounts)
            half_load(server, image, rate, amounts)
            long_load(server, image, arguments.minutes or amounts.minutes)
            malice(server, image, amounts.malformed)
            killed(server, image)


if __name__ == "__main__":
    main()
