"""The tables of a study as Markdown, and where they stand in a page with other text."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.metrics import percent

NOT_RUN = "not run"
MATCHED = {
    "gmacs": "GMACs come nearest to those",
    "parameters": "number of parameters comes nearest to that",
}


def markdown(results: Mapping[str, Any]) -> str:
    """The whole section of a study: what it is, its tables, and how they were made."""
    parts = [
        _lead(results),
        _table(*_main_table(results)),
        _legend(results),
        *_class_table(results),
        *_timing(results),
        _commands(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _lead(results: Mapping[str, Any]) -> str:
    select, report = results["select"], results["report"]
    seeds = ", ".join(map(str, results["seeds"]))
    said = [f"**{results['title']}.** Data `{results['data']}`, seeds {seeds}."]
    if select == report:
        said.append(
            f"Checkpoints were selected and reported on the same split, `{report}`, so that all "
            "figures are a little too good."
        )
    else:
        said.append(
            f"Each run's checkpoint with the best mIoU on `{select}` was evaluated once on "
            f"`{report}`."
        )
    match = results["match"]
    if match is not None:
        said.append(
            f"The width of each head is the one with which the model's {MATCHED[match['by']]} of "
            f"`{match['to']}`; the table says what was reached."
        )
    return " ".join(said)


def _main_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    headings = [
        "row",
        "seeds",
        f"{results['report']} mIoU (least to greatest)",
        f"against `{results['baseline']}`",
        "95 % over seeds",
        "95 % over images",
        f"{results['select']} mIoU",
        "dim",
        "M parameters",
        "GMACs",
        "ms an image",
        "minutes",
        "commit",
    ]
    if results["select"] == results["report"]:
        headings.remove(f"{results['select']} mIoU")
    rows = []
    for name, row in results["rows"].items():
        difference = row["difference"] or {}
        is_base = name == results["baseline"]
        cells = {
            "row": f"`{name}`",
            "seeds": _seeds(row, results),
            headings[2]: _spread(row),
            headings[3]: "-" if is_base else _points(difference.get("mean")),
            "95 % over seeds": "-" if is_base else _range(difference.get("over_seeds")),
            "95 % over images": "-" if is_base else _range(difference.get("over_images")),
            f"{results['select']} mIoU": percent(row["val_miou"]),
            "dim": str(row["dim"]),
            "M parameters": _million(row["parameters"]),
            "GMACs": "-" if row["gmacs"] is None else f"{row['gmacs']:.2f}",
            "ms an image": _milliseconds(row["milliseconds"]),
            "minutes": "-" if row["minutes"] is None else _short(row["minutes"]),
            "commit": ", ".join(dict.fromkeys(one["commit"] for one in row["origins"])) or "-",
        }
        rows.append([cells[heading] for heading in headings])
    return headings, rows


def _legend(results: Mapping[str, Any]) -> str:
    return (
        "mIoU in per cent, the mean over the seeds. Differences are points of mIoU, each run "
        f"against the run of `{results['baseline']}` with the same seed, then their mean. "
        "*Over seeds*: the paired t interval of this mean, for who trains again on the same data. "
        "*Over images*: of 1000 redraws of the evaluated images with these same trained models, "
        "for who meets other images. Neither contains the other: trust a difference where both "
        "leave out 0. `dim` is the head's width; parameters and GMACs (one image of 512x512) are "
        "of the whole model; minutes are those of training, of one run."
    )


def _class_table(results: Mapping[str, Any]) -> list[str]:
    rows = {name: row for name, row in results["rows"].items() if row["iou"]}
    if not rows:
        return []
    classes = list(next(iter(rows.values()))["iou"])
    cells = [
        [f"`{name}`{_lacking(row, results)}", *(percent(row["iou"].get(one)) for one in classes)]
        for name, row in rows.items()
    ]
    title = f"IoU by class on `{results['report']}`, mean of the seeds:"
    return [title, _table(["row", *classes], cells)]


def _timing(results: Mapping[str, Any]) -> list[str]:
    timing = results["timing"]
    if not timing:
        return []
    return [
        f"Milliseconds: from one image in memory to its label map, {timing['images']} images of "
        f"`{results['report']}`, median of {timing['rounds']} rounds in which the models take "
        f"turns. {timing['machine']}, commit {timing['commit']}."
    ]


def _commands(results: Mapping[str, Any]) -> str:
    lines = []
    evaluate = ""
    for name, row in results["rows"].items():
        train, evaluate = row["commands"]
        lines += [f"# {name}", train]
    machines = dict.fromkeys(
        f"{one['machine']}, torch {one['torch']}"
        for row in results["rows"].values()
        for one in row["origins"]
    )
    made = f"Trained on: {'; '.join(machines)}. " if machines else ""
    seeds = results["seeds"]
    others = f" (the other seeds: {', '.join(map(str, seeds[1:]))})" if len(seeds) > 1 else ""
    return (
        f"{made}`ccsnet study` ran for each row{others}:\n\n```bash\n"
        + "\n".join([*lines, "# each of them", evaluate])
        + "\n```"
    )


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in escaped)


def _seeds(row: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    done, wanted = len(row["seeds"]), len(results["seeds"])
    return str(done) if done == wanted else f"{done} of {wanted}"


def _lacking(row: Mapping[str, Any], results: Mapping[str, Any]) -> str:
    """A mean over fewer seeds than the others' must not pass for theirs."""
    seeds = _seeds(row, results)
    return f" ({seeds})" if "of" in seeds else ""


def _spread(row: Mapping[str, Any]) -> str:
    if not row["seeds"]:
        return NOT_RUN
    mean = f"**{percent(row['miou'])}**"
    if len(row["seeds"]) == 1:
        return mean
    return f"{mean} ({percent(row['least'])} to {percent(row['greatest'])})"


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f}"


def _range(ends: Sequence[float] | None) -> str:
    return "-" if ends is None else f"{_points(ends[0])} to {_points(ends[1])}"


def _million(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e6:.2f}"


def _milliseconds(value: float | None) -> str:
    return "not measured" if value is None else _short(value)


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or math.isnan(value) else f"{value:.1f}"


def check_section(path: Path, name: str) -> None:
    """Look for the marks of a study's section, before hours are spent on it.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The marks are missing, or stand there twice.
    """
    _section(path, name)


def write_section(path: Path, name: str, text: str) -> None:
    """Put a text between the marks of a study; all else in the file stays as it is.

    Args:
        path: A Markdown file with a line `<!-- study: NAME -->` and a later line `<!-- end -->`.
        name: The study's.
        text: What stands there afterwards, whatever stood there before.

    Raises:
        FileNotFoundError: There is no such file.
        InputError: The marks are missing, or stand there twice.
    """
    before, after = _section(path, name)
    with atomic_path(path) as aside:
        aside.write_text(f"{before}\n\n{text.strip()}\n\n{after}", "utf-8")


def _section(path: Path, name: str) -> tuple[str, str]:
    """What stands before a section, its mark included, and what stands after it, likewise."""
    if not path.is_file():
        raise FileNotFoundError(f"No {path} to put the tables of {name} into.")
    text = path.read_text("utf-8")
    mark = rf"^<!-- study: {re.escape(name)} -->(?=[ \t]*$)"
    start = list(re.finditer(mark, text, re.MULTILINE))
    if len(start) == 1:
        rest = text[start[0].end() :]
        end = re.search(r"^<!-- end -->[ \t]*$", rest, re.MULTILINE)
        other = re.search(r"^<!-- study: ", rest, re.MULTILINE)
        if end is not None and (other is None or end.start() < other.start()):
            return text[: start[0].end()], rest[end.start() :]
    what = "has two sections" if len(start) > 1 else "has no section"
    raise InputError(
        f"{path} {what} for the study {name!r}. Where its tables belong, write these two lines "
        f"once:\n<!-- study: {name} -->\n<!-- end -->"
    )
