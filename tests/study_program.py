"""Stands for `ccsnet train` and `ccsnet evaluate` in tests of what runs them: quick, no torch.

What it does besides is read from a file `orders.json` in the folder of the runs: run -> verb ->
"fail", "wait" (for a signal or a file `go`), or the mIoU of the evaluation.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(verb: str, *arguments: str) -> int:
    out = Path(arguments[arguments.index("--out") + 1] if verb == "train" else arguments[0])
    orders = json.loads((out.parent / "orders.json").read_text())
    order = orders.get(out.name, {}).get(verb)
    with (out.parent / "calls.txt").open("a") as calls:
        calls.write(f"{verb} {out.name} {os.environ.get('OMP_NUM_THREADS')} {os.getpid()}\n")
    if verb == "train":
        return train(out, order)
    if order == "fail":
        print("Traceback: no such split")
        return 2
    write(Path(arguments[arguments.index("--json") + 1]), evaluation(order or 0.5))
    return 0


def train(out: Path, order: str | None) -> int:
    write(out / "config.json", settings())
    (out / "log.csv").write_text("step,seconds,images_per_second\n1,60.0,2.0\n")
    if order == "fail":
        print("first line\n\nThe loss of step 2 is not a number")
        return 2
    if order == "wait":
        heard: list[int] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: heard.append(number))
        (out / "waits").touch()
        while not heard and not (out / "go").exists():
            time.sleep(0.01)
        if heard:
            (out / "last.safetensors").touch()
            (out / "heard").write_text(str(heard))
            return 130
    write(out / "best.json", {"step": 1, "miou": 0.25})
    write(out / "metrics.json", {"step": 1})
    return 0


def settings() -> dict:
    model = {"backbone": "b", "head": "h"}
    return {"data": {"dataset": "d"}, "model": model, "train": {"steps": 1}}


def evaluation(miou: float) -> dict:
    """Two images with 500 labelled pixels of each class; one class has an IoU of 0.5."""
    other = 2 * miou - 0.5
    hit = round(500 * other)
    images = [
        {"image": name, "counts": {"a": [250, 500, 250], "b": [hit, 500, hit]}}
        for name in ("one", "two")
    ]
    iou = {"a": 0.5, "b": other}
    return {"miou": miou, "pixel_accuracy": 0.75, "iou": iou, "per_image": images}


def write(path: Path, values: dict) -> None:
    path.write_text(json.dumps(values))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
