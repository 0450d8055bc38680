"""Which families of backbones can be exported in which form: the table of docs/export.md.

    python -m benchmarks.export --table                   # every form, about an hour on two cores
    python -m benchmarks.export --table --to onnx         # one form; the other columns stay
    python -m benchmarks.export --table --family MiT Swin

The least backbone of each family with the ccs head and random weights, which `ccsnet.export.export`
compares with its checkpoint on made pictures. Families and forms that were not run say so.
"""

import argparse
import datetime
import multiprocessing
import re
import resource
import signal
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from benchmarks.made import made_checkpoint, made_info
from ccsnet.backbones.families import FAMILIES
from ccsnet.checkpoint import Checkpoint
from ccsnet.errors import InputError
from ccsnet.export import ExportConfig, export, made_images
from ccsnet.export_forms import FORMATS
from ccsnet.heads._base import HeadConfig
from ccsnet.segmenter import ModelConfig, create_segmenter

PAGE = Path(__file__).parent.parent / "docs" / "export.md"
START = "<!-- made by `python -m benchmarks.export --table` -->"
END = "<!-- end of what is made -->"
NOT_RUN = "not run"
NUM_CLASSES = 7
LIMIT = 600
"""Seconds of a processor that an attempt may take."""
REASON = 80
"""Letters of what is told of a failure."""
LEAST = {family: names[0] for family, names in FAMILIES.items()} | {
    "HRNet": "hrnet_w18_small_v2",
}


def backbone_checkpoint(backbone: str, folder: Path) -> Checkpoint:
    """A checkpoint of a model that has learnt nothing, and whose values are of ordinary size."""
    torch.manual_seed(0)
    made = ModelConfig(
        backbone=backbone, head="ccs", head_config=HeadConfig(dim=64, coarse_dim=64, top_k=3)
    )
    model = create_segmenter(made, num_classes=NUM_CLASSES)
    for name, parameter in model.named_parameters():
        if name.endswith("relative_position_bias_table"):  # BEiT's start at zero, and say nothing.
            torch.nn.init.normal_(parameter, std=0.5)
    info = made_info(NUM_CLASSES)
    # Norms that know nothing leave a deep network's values to grow, until rounding decides.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # The mean of all that it sees.
    pictures = np.stack([image[:224, :224] for image in made_images(info)])
    with torch.no_grad():
        model.train()(torch.from_numpy(pictures.transpose(0, 3, 1, 2)))
    return made_checkpoint(model, made, info, folder / "model.safetensors")


def attempt(backbone: str, to: str, size: tuple[int, int] | None, answer: Connection) -> None:
    """Try one export, and send whether it went well and what there is to say of it."""
    resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = backbone_checkpoint(backbone, folder)
        config = ExportConfig(to=to, size=size)  # pyright: ignore[reportArgumentType]
        try:
            made = export(checkpoint, folder / f"model{FORMATS[to].suffix}", config)
        except InputError as error:
            # What `ccsnet.export_forms.cannot` and `ccsnet.export.export` say.
            reason = re.search(
                r"\((.*)\)\. (?:Give|Choose)|labels ([\d.]+ % of the pixels)", str(error)
            )
            found = (reason[1] or f"{reason[2]} differ") if reason else str(error)
            answer.send((False, found))
            return
    least = f" from {made.info.smallest}" if made.info.smallest > 64 else ""
    found = f"all sizes{least}" if size is None else "one size"
    if made.different:
        share = f"{100 * made.different:.3f} %"
        found += f", {share.replace('0.000', 'under 0.001')} differ"
    answer.send((True, found))


def outcome(backbone: str, to: str, size: tuple[int, int] | None) -> tuple[bool, str]:
    """How one export goes, in a process of its own.

    A failed one leaves symbols in what models remember, and some find no end.
    """
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=attempt, args=(backbone, to, size, theirs))
    process.start()
    theirs.close()
    try:
        return mine.recv()
    except EOFError:
        process.join()
        spent = process.exitcode in (-signal.SIGXCPU, -signal.SIGKILL)
        return False, f"not done in {LIMIT // 60} minutes" if spent else "the process died"
    finally:
        process.kill()
        process.join()


def cell(backbone: str, to: str) -> str:
    """What becomes of a backbone in a form: for all sizes, else for one, and why."""
    reasons = []
    for size in (None, (256, 256)):
        good, found = outcome(backbone, to, size)
        if good:
            return "; all: ".join([found, *reasons])
        reason = found.replace("|", "/").replace("<", "&lt;").strip()
        reasons.append(reason if len(reason) <= REASON else f"{reason[:REASON]} …")
        print(f"    {backbone} {to} {size}: {found}", file=sys.stderr, flush=True)
    return f"no: {reasons[-1]}"


def cells_of(text: str) -> dict[tuple[str, str], str]:
    """Family and form to what the page says of them."""
    rows = [
        [part.strip() for part in line.strip("| \n").split("|")]
        for line in text[text.index(START) : text.index(END)].splitlines()
        if line.startswith("| ")
    ]
    if not rows:
        return {}
    head, *rows = rows
    return {
        (row[0], form): found
        for row in rows
        for form, found in zip(head[2:], row[2:], strict=True)
        if LEAST.get(row[0]) == row[1]
    }


def write(cells: dict[tuple[str, str], str]) -> None:
    text = PAGE.read_text("utf-8")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    day = f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}"
    lines = [START, "", f"| family | backbone | {' | '.join(FORMATS)} |"]
    lines += [f"|{'---|' * (2 + len(FORMATS))}"]
    for family, name in LEAST.items():
        found = [cells.get((family, form), NOT_RUN) for form in FORMATS]
        lines.append(f"| {' | '.join([family, name, *found])} |")
    lines += ["", f"Last made {day}, at commit {commit}, torch {torch.__version__}.", "", END]
    pattern = f"{re.escape(START)}.*{re.escape(END)}"
    made = "\n".join(lines)
    PAGE.write_text(re.sub(pattern, lambda _: made, text, flags=re.DOTALL), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="The table of exports.")
    parser.add_argument("--table", action="store_true", required=True)
    parser.add_argument("--to", nargs="+", choices=[*FORMATS], default=[*FORMATS])
    parser.add_argument("--family", nargs="+", choices=[*LEAST], default=[*LEAST])
    arguments = parser.parse_args()
    for to in arguments.to:
        for family in arguments.family:
            found = cell(LEAST[family], to)
            cells = cells_of(PAGE.read_text("utf-8"))
            cells[family, to] = found
            write(cells)  # One by one, so that what is done stays when this is stopped.
            print(f"{family:16} {to:14} {found}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
