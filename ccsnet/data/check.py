"""Find what is wrong with a data set, and what its images are like, before training."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from ccsnet.data.duplicates import HASH_BYTES, content_hash, find_twins, perceptual_hash
from ccsnet.data.findings import CheckReport, Problem, SplitFacts
from ccsnet.data.images import image_size, read_image, read_label
from ccsnet.data.opening import DataConfig, sizes_differ
from ccsnet.data.sampling import class_counts, spread
from ccsnet.data.workers import in_processes
from ccsnet.datasets._spec import DatasetSpec, Pair
from ccsnet.datasets._split import repeated
from ccsnet.errors import InputError
from ccsnet.progress import Reporter, Silent


class Inspection(NamedTuple):
    """What one pair of files is like."""

    problems: list[tuple[str, Path, str]]
    """Kind, file, text."""
    counts: Int64[np.ndarray, " N"] | None = None
    """Pixels of each class, where the label can be used."""
    unlabelled: int = 0
    """Pixels."""
    depth: str | None = None
    """Type of the image's values."""
    content: bytes | None = None
    look: bytes | None = None
    """The perceptual hash; None for an image of one colour."""


def inspect_pair(pair: Pair, spec: DatasetSpec, *, decode: bool = True) -> Inspection:
    """Read an image and its label, and say what is wrong with them.

    Args:
        pair: The files; the label may be None.
        spec: What they should hold.
        decode: Read the whole image; otherwise its header, which tells the size alone.
    """
    problems = []
    size = image = None
    try:
        image = read_image(pair.image, spec.channels) if decode else None
        size = image_size(pair.image) if image is None else image.shape[:2]
    except (InputError, OSError) as error:
        bands = f", but {spec.channels} are needed" in str(error)
        kind = "wrong bands" if bands else "unreadable image"
        problems.append((kind, pair.image, str(error)))
    label = counts = None
    if pair.label is not None:
        try:
            label = read_label(pair.label, spec)
        except (InputError, OSError) as error:
            unreadable = isinstance(error, OSError) or str(error).startswith("Cannot read")
            kind = "unreadable label" if unreadable else "wrong label values"
            problems.append((kind, pair.label, str(error)))
    if label is not None and size is not None and label.shape != size:
        problems.append(("sizes differ", pair.label, sizes_differ(pair, size, label.shape)))
    elif label is not None:
        counts = class_counts(label, spec.num_classes)
    found = Inspection(problems, counts)
    if label is not None and counts is not None:
        found = found._replace(unlabelled=label.size - int(counts.sum()))
    if image is not None:
        look = perceptual_hash(image)
        found = found._replace(
            depth=str(image.dtype),
            content=content_hash(pair.image),
            look=None if look is None else look.tobytes(),
        )
    return found


def check_dataset(
    spec: DatasetSpec,
    root: Path,
    splits: Sequence[str] = (),
    *,
    workers: int = -1,
    reporter: Reporter | None = None,
) -> CheckReport:
    """Look at every file of a data set and list all that is wrong, at once.

    In memory are the pixels of one pair for each process, and a few hundred bytes of every pair.

    Args:
        spec: The data set.
        root: Its folder.
        splits: Which of its splits; none: all, and training needs those called train and val.
        workers: Processes; 0 reads in this one, -1 takes as many as there are processors.
        reporter: Who is told how it goes.

    Raises:
        InputError: There is no such split.
    """
    reporter = reporter or Silent()
    usual = (DataConfig.train_split, DataConfig.val_split)
    needed = tuple(splits) or tuple(s for s in usual if s in spec.splits) or tuple(spec.splits)
    report = CheckReport(spec, root, needed)
    files: dict[str, list[tuple[Path, Inspection]]] = {}
    for split in tuple(splits) or tuple(spec.splits):
        pairs = _usable_pairs(report, split)
        labelled = any(pair.label is not None for pair in pairs)
        facts = SplitFacts.empty(spec.num_classes, len(pairs), labelled)
        report.splits[split] = facts
        reporter.start(f"checking {split}", len(pairs))
        files[split] = []
        for pair, found in zip(
            pairs, in_processes(partial(inspect_pair, spec=spec), pairs, workers), strict=True
        ):
            _note(report, split, facts, pair, found)
            files[split].append((pair.image, found._replace(problems=[], counts=None)))
            reporter.advance()
        reporter.end()
        _check_whole(report, split, facts, files[split])
    _check_twins(report, files)
    return report


def _usable_pairs(report: CheckReport, split: str) -> list[Pair]:
    """The pairs of a split that can be found, whatever is wrong with the others."""
    spec, root = report.spec, report.root

    def problem(kind: str, text: str, file: Path | None = None) -> None:
        report.problems.append(Problem(kind, split, file, text))

    pairs: list[Pair] = []
    try:
        pairs = spec.pairs(root, split, require_labels=False)
    except FileNotFoundError as error:
        problem("missing folder or list", str(error))
        return []
    except InputError as error:
        for part in spec.parts(split):
            try:
                found = part.find(root)
            except (InputError, FileNotFoundError):  # In shards there are no lists of files.
                problem("wrong list", str(error))
                continue
            if not found:
                problem("empty split", str(error))
            pairs += found
        twice = set(repeated([pair.name for pair in pairs]))
        for pair in (p for p in pairs if p.name in twice):
            problem("duplicate names", str(error), pair.image)
    published = spec.published_count(split)
    if published is not None and 0 < len(pairs) < published:
        problem("other number than published", _not_as_published(spec, root, split, len(pairs)))
    if any(part.labels for part in spec.parts(split)):
        for pair in (p for p in pairs if p.label is None):
            problem("missing label", _no_label(spec, split, pair), pair.image)
    elif split in (DataConfig.train_split, DataConfig.val_split):
        problem("missing label", f"The split {split!r} of {spec.name!r} comes without labels.")
    return pairs


def _note(
    report: CheckReport, split: str, facts: SplitFacts, pair: Pair, found: Inspection
) -> None:
    report.problems += [Problem(kind, split, file, text) for kind, file, text in found.problems]
    if found.counts is None:
        return
    facts.add(found.counts, found.unlabelled)
    if not found.counts.any():
        text = (
            f"No pixel of {pair.label} has a class. It teaches nothing; take it out, or label it."
        )
        report.problems.append(Problem("no labelled pixel", split, pair.label, text))


def _check_whole(
    report: CheckReport,
    split: str,
    facts: SplitFacts,
    files: Sequence[tuple[Path, Inspection]],
) -> None:
    """What only shows when all of a split has been seen."""
    spec = report.spec
    depths = {found.depth: path for path, found in files if found.depth is not None}
    if len(depths) > 1:
        shown = " and ".join(f"{path} of {depth}" for depth, path in sorted(depths.items()))
        text = f"Images have different depths: {shown}. Write all of them with one."
        report.problems.append(Problem("mixed depths", split, None, text))
    if not facts.labelled:
        return
    if not facts.pixels.any():
        if any(p.kind == "wrong label values" and p.split == split for p in report.problems):
            return  # That is why.
        kind = "no labelled pixel in the split"
        report.problems.append(Problem(kind, split, None, _no_class(facts.images)))
        return
    for name, pixels in zip(spec.classes, facts.pixels, strict=True):
        if not pixels:
            text = f"The class {name!r} never occurs in the labels of {split!r}."
            report.problems.append(Problem("class never occurs", split, None, text))


def _check_twins(report: CheckReport, files: dict[str, list[tuple[Path, Inspection]]]) -> None:
    """Images that are there twice; between splits also those that look alike."""
    seen: dict[bytes, tuple[str, Path]] = {}
    looks: dict[str, tuple[list[Path], np.ndarray]] = {}
    for split, inspected in files.items():
        paths, hashes = [], []
        for path, found in inspected:
            if found.content is None:
                continue
            if found.content in seen:
                where, other = seen[found.content]
                kind = "same file twice" if where == split else "same file in two splits"
                text = f"{path} has the same content as {other} (split {where!r}). {_ADVICE[kind]}"
                report.problems.append(Problem(kind, split, path, text))
                continue
            seen[found.content] = split, path
            if found.look is not None:
                paths.append(path)
                hashes.append(found.look)
        looks[split] = paths, np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, HASH_BYTES)
    kind = "near-duplicate in two splits"
    for split, (paths, hashes) in looks.items():
        for earlier in list(looks)[: list(looks).index(split)]:
            other_paths, other_hashes = looks[earlier]
            for twin in find_twins(hashes, other_hashes):
                path, other = paths[twin.one], other_paths[twin.other]
                text = (
                    f"{path} looks like {other} (split {earlier!r}; {twin.distance} of "
                    f"{8 * HASH_BYTES} bits of their hashes differ). {_ADVICE[kind]}"
                )
                report.problems.append(Problem(kind, split, path, text))


_ADVICE = {
    "same file twice": "It counts twice; take one out.",
    "same file in two splits": "What is measured on it was learnt by heart; take one out.",
    "near-duplicate in two splits": (
        "If they show the same, what is measured on it was learnt by heart; take one out."
    ),
}


def _not_as_published(spec: DatasetSpec, root: Path, split: str, num: int) -> str:
    return (
        f"The split {split!r} of {spec.name!r} has {spec.published_count(split)} images as "
        f"published, but {root} holds {num}. Is the data complete?"
    )


def _no_label(spec: DatasetSpec, split: str, pair: Pair) -> str:
    return f"{pair.image} has no label; looked for its own among\n{spec.layout(split)}"


def _no_class(num: int) -> str:
    return (
        f"No pixel of the {num} labels has a class: all are unlabelled. Check `raw_values` and "
        "`ignore_raw`."
    )


def check_labels(
    spec: DatasetSpec,
    root: Path,
    split: str,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Int64[np.ndarray, " num_classes"]:
    """Find what is wrong with a split before training does, all of it at once.

    Args:
        spec: The data set.
        root: Its folder.
        split: One of its splits.
        limit: Look at so many pairs, spread evenly. None: all.
        progress: Called with the number of pairs done and their total.

    Returns:
        How many pixels of each class the labels that were looked at hold.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: Labels are missing, unreadable, of another size than their image or hold values
            that the data set does not name, or hold no class at all.
    """
    pairs = spec.pairs(root, split, require_labels=False)
    published = spec.published_count(split)
    if published is not None and len(pairs) < published:  # More: several counts are published.
        warnings.warn(_not_as_published(spec, root, split, len(pairs)), stacklevel=2)
    problems = [_no_label(spec, split, pair) for pair in pairs if pair.label is None]
    chosen = spread([pair for pair in pairs if pair.label is not None], limit)
    counts = np.zeros(spec.num_classes, np.int64)
    for done, pair in enumerate(chosen, start=1):
        found = inspect_pair(pair, spec, decode=False)
        problems += [text for _, _, text in found.problems]
        if found.counts is not None:
            counts += found.counts
        if progress is not None:
            progress(done, len(chosen))
    if not problems and not counts.any():
        problems.append(_no_class(len(chosen)))
    if problems:
        shown = "\n".join(f"- {problem}" for problem in problems[:10])
        more = f"\nand {len(problems) - 10} more." if len(problems) > 10 else ""
        raise InputError(
            f"The split {split!r} of {spec.name!r} in {root} has {len(problems)} "
            f"problem{'s' if len(problems) > 1 else ''}:\n{shown}{more}"
        )
    return counts


def channel_statistics(
    spec: DatasetSpec, root: Path, split: str, limit: int = 200
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each band, in the files' own units.

    Args:
        spec: The data set.
        root: Its folder.
        split: One of its splits.
        limit: Read so many images, spread evenly.

    Raises:
        FileNotFoundError: The data is not there.
        InputError: An image cannot be used.
    """
    total, squares, num = np.zeros(spec.channels), np.zeros(spec.channels), 0
    for pair in spread(spec.pairs(root, split, require_labels=False), limit):
        values = read_image(pair.image, spec.channels).reshape(-1, spec.channels)
        values = values.astype(np.float64)
        total += values.sum(axis=0)
        squares += (values**2).sum(axis=0)
        num += len(values)
    mean = total / num
    deviation = np.sqrt(np.maximum(squares / num - mean**2, 0))
    # A band that never changes would be divided by nothing.
    deviation[deviation == 0] = 1
    return tuple(mean.tolist()), tuple(deviation.tolist())
