"""From the archives of a data set, as downloaded, to a folder that is ready to train on.

What the archives are and what is made of them is told by the data set's SPEC; here it is done. All
of it can be interrupted at any time and gone on with: files are written whole or not at all, and
what is there is not made again.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import ccsnet
from ccsnet.data.archives import is_archive_name, md5_of, unpack
from ccsnet.data.parallel import run_all
from ccsnet.data.record import (
    FINISHED,
    UNFINISHED,
    Record,
    read_record,
    write_record,
)
from ccsnet.data.sources import (
    Found,
    Mount,
    check_sources,
    find_archives,
    find_mounts,
    link,
    link_files,
    needed_patterns,
)
from ccsnet.data.steps import Place, check_tools, matches, outputs, plan
from ccsnet.datasets._archives import Archive
from ccsnet.datasets._spec import DatasetSpec
from ccsnet.errors import InputError
from ccsnet.progress import Reporter, Silent

NEEDED_SPLITS = ("train", "val")
"""An archive that is optional may only be missed in other splits than these."""

MANY_FILES = 1000  # Fewer are made again in no time, should the power fail.


class Counts(NamedTuple):
    """What a split holds."""

    images: int
    labels: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A data set's folder that is ready."""

    root: Path
    found: dict[str, Counts]
    """What each split holds."""
    promised: dict[str, int | None]
    """How many images each split has as published, where that is known."""
    problems: list[str]
    """What is less than promised."""
    reused: bool
    """Whether the folder had been prepared before, and nothing was done."""


def prepare(
    spec: DatasetSpec,
    sources: Sequence[Path],
    out: Path,
    *,
    workers: int = 1,
    reporter: Reporter | None = None,
    again: bool = False,
) -> Prepared:
    """Make a data set ready to train on.

    A folder that was prepared before is recognised, and nothing is done, unless a source holds an
    archive that has not been unpacked there. An interrupted preparation is gone on with; the
    sources that it had need not be named again.

    Args:
        spec: The data set.
        sources: Its archives, folders that hold them, or a folder where they were unpacked by
            hand, whose files are linked.
        out: The folder to make; the one unpacked by hand itself is possible too.
        workers: Processes that share the work; 0 or 1: this one.
        reporter: Told the progress.
        again: Make everything anew, even if it is there.

    Raises:
        FileNotFoundError: A source does not exist, or an archive is missing; the text tells which,
            and where to get it.
        InputError: An archive or a file in it cannot be used, the disk is full, the folder holds
            another data set, or nothing of this one is found.
    """
    if workers < 0:
        raise InputError(f"workers is {workers}; it must be 0 or more.")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; --out must be a folder, or not exist yet.")
    reporter = reporter or Silent()
    sources = [source.expanduser() for source in sources]
    finished = read_record(out, FINISHED, spec.name)
    record = read_record(out, UNFINISHED, spec.name)
    if finished is not None and record is None and not again:
        archives = find_archives(spec, [source for source in sources if source.exists()])
        if all(finished.has(found) for found in archives):
            return _result(spec, out, lacking=bool(_missing(spec, [], finished)), reused=True)
    check_sources(spec, sources)
    check_tools(spec)
    record = record or finished or Record(dataset=spec.name, version=ccsnet.__version__)
    record.version = ccsnet.__version__
    if again:
        record.archives, record.since = [], time.time()
    if not sources:
        sources = [path for path in map(Path, record.sources) if path.exists()]
    if spec.prepare is not None and not out.exists():
        spec.prepare(out)
        return _result(spec, out, lacking=False, reused=False)
    try:
        return _prepare(spec, sources, out, record, workers, reporter)
    finally:
        reporter.end()


def _prepare(
    spec: DatasetSpec,
    sources: Sequence[Path],
    out: Path,
    record: Record,
    workers: int,
    reporter: Reporter,
) -> Prepared:
    folders = [source for source in sources if source.is_dir()]
    here = [out] if out.is_dir() else []
    archives = find_archives(spec, [*sources, *here])
    started = (out / UNFINISHED).is_file() or (out / FINISHED).is_file()
    if not started and here and find_mounts(spec, out):
        record.by_hand = True
    if not started:
        folders += here
    mounts = [
        mount
        for folder in folders
        for mount in find_mounts(spec, folder)
        if mount.folder.resolve() != (out / mount.to).resolve()
    ]
    missing = _missing(spec, archives, record)
    needed = [archive for archive in missing if not archive.optional]
    if needed and not (mounts or record.by_hand):
        raise FileNotFoundError(_what_is_missing(spec, needed, [*sources, *here]))
    record.by_hand = record.by_hand or bool(mounts)
    record.sources = [str(source.resolve()) for source in sources]
    out.mkdir(parents=True, exist_ok=True)
    write_record(out, UNFINISHED, record)
    (out / FINISHED).unlink(missing_ok=True)

    num_made = _link(spec, mounts, out, reporter)
    if record.by_hand and _is_complete(spec, out):
        for found in archives:
            record.add(found)
    else:
        num_made += _unpack(spec, archives, out, record, workers, reporter)
    for archive in missing:
        if archive.optional:
            reporter.note(f"Left out: {archive.file}, which is optional and was not found.")
    num_made += _take_steps(spec, out, record, missing, workers, reporter)

    lacking = bool(_missing(spec, [], record))
    result = _result(spec, out, lacking=lacking, reused=False)
    if not any(counts.images for counts in result.found.values()):
        raise InputError(
            f"No image of {spec.name!r} was found in {out}. Expected there:\n{spec.layout()}\n"
            f"{spec.source}"
        )
    record.since = 0.0
    record.splits = {
        name: {"images": n.images, "labels": n.labels, "promised": result.promised[name]}
        for name, n in result.found.items()
    }
    _outlive_power_cuts(num_made)
    write_record(out, FINISHED, record)
    (out / UNFINISHED).unlink()
    return result


def default_out(spec: DatasetSpec, sources: Sequence[Path]) -> Path:
    """Where a data set is prepared if nobody says: where it was unpacked by hand, else its own."""
    mounts = [
        mount
        for source in sources
        if source.is_dir()
        for mount in find_mounts(spec, source)
        if mount.to == ""
    ]
    if not mounts:
        return Path(spec.default_root)
    patterns = needed_patterns(spec)
    folder = max(mounts, key=lambda mount: sum(map(bool, _present(mount.folder, patterns)))).folder
    try:
        read_record(folder, FINISHED, spec.name)
    except InputError:  # Another data set's: what both have is linked.
        return Path(spec.default_root)
    return folder


def _present(root: Path, patterns: Sequence[str]) -> list[bool]:
    """Which of the patterns some file matches."""
    return [any(True for _ in matches(root, pattern)) for pattern in patterns]


def _is_complete(spec: DatasetSpec, root: Path) -> bool:
    """Whether everything is there that comes out of archives."""
    made = {pattern for step in spec.steps for pattern in outputs(step)}
    return all(_present(root, [p for p in needed_patterns(spec) if p not in made]))


def _missing(spec: DatasetSpec, archives: Sequence[Found], record: Record) -> list[Archive]:
    """The archives that are neither there nor unpacked."""
    there = {found.archive.file for found in archives} | {str(mark[0]) for mark in record.archives}
    return [archive for archive in spec.archives if archive.file not in there]


def _what_is_missing(spec: DatasetSpec, missing: Sequence[Archive], looked: Sequence[Path]) -> str:
    names = "".join(f"\n  {archive.file}" for archive in missing)
    where = f" in {', '.join(map(str, looked))}" if looked else ", because no folder was named"
    return f"Archives of {spec.name!r} were not found{where}:{names}\n{spec.source}"


def _link(spec: DatasetSpec, mounts: Sequence[Mount], out: Path, reporter: Reporter) -> int:
    num = link_files(spec, mounts, out)
    if num:
        reporter.note(f"{num} files that were unpacked by hand are linked, not copied.")
    return num


def _unpack(
    spec: DatasetSpec,
    archives: Sequence[Found],
    out: Path,
    record: Record,
    workers: int,
    reporter: Reporter,
) -> int:
    """Unpack what is not yet; returns how many files that were."""
    num_files = 0
    for found in archives:
        if record.has(found):
            continue
        archive, path = found
        _check_md5(found, reporter)
        if is_archive_name(path.name):
            reporter.note(f"Unpacking {path}")
            num = unpack(
                path,
                out,
                to=archive.to,
                strip=archive.strip,
                # An archive of a folder that was prepared elsewhere would bring its records.
                skip=(FINISHED, UNFINISHED),
                since=record.since,
                workers=workers,
                reporter=reporter,
            )
        else:
            num = int(link(path, out / archive.to / archive.file.rpartition("/")[2]))
        _outlive_power_cuts(num)
        num_files += num
        record.add(found)
        write_record(out, UNFINISHED, record)
    return num_files


def _check_md5(found: Found, reporter: Reporter) -> None:
    archive, path = found
    if archive.md5 is None:
        return
    reporter.note(f"Checking {path}")
    md5 = md5_of(path)
    if md5 != archive.md5:
        raise InputError(
            f"{path} has the MD5 sum {md5}, but the published {archive.file} has {archive.md5}: "
            "it is damaged, or another version. Download it again."
        )


def _take_steps(
    spec: DatasetSpec,
    out: Path,
    record: Record,
    missing: Sequence[Archive],
    workers: int,
    reporter: Reporter,
) -> int:
    """Make what is made of the unpacked files; returns how many tasks that were."""
    num_done = 0
    place = Place(out, record.since)
    for step in spec.steps:
        try:
            work = plan(step, spec, place)
        except FileNotFoundError as error:
            if all(_present(out, outputs(step))):
                continue  # Made elsewhere, of files that are not here.
            if not missing:
                raise FileNotFoundError(
                    f"{error} The archives hold something else than {spec.name!r} as published. "
                    f"{spec.source}"
                ) from error
            reporter.note(f"Left out: {', '.join(outputs(step))}. {error}")
            continue
        reporter.start("converting", len(work.tasks) + work.done, work.done)
        run_all(work.do, work.tasks, workers=workers, reporter=reporter)
        reporter.end()
        num_done += len(work.tasks)
    return num_done


def _result(spec: DatasetSpec, root: Path, *, lacking: bool, reused: bool) -> Prepared:
    """What the splits hold, against what is promised; `lacking` if not all archives were there."""
    found, problems = {}, []
    promised = {split: spec.published_count(split) for split in spec.splits}
    for split, wanted in promised.items():
        try:
            pairs = spec.pairs(root, split, require_labels=False)
        except (FileNotFoundError, InputError) as error:
            pairs = []
            why = str(error).partition("\n")[0]
        else:
            why = f"The split {split!r} has {len(pairs)} of {wanted} images."
        found[split] = Counts(len(pairs), sum(pair.label is not None for pair in pairs))
        may_lack = lacking and split not in NEEDED_SPLITS
        if len(pairs) < (wanted or 1) and not (may_lack and not pairs):
            problems.append(why)
        without = len(pairs) - found[split].labels
        if without and any(part.labels is not None for part in spec.parts(split)):
            problems.append(
                f"{without} of {len(pairs)} images in the split {split!r} lack a label."
            )
    return Prepared(root=root, found=found, promised=promised, problems=problems, reused=reused)


def _outlive_power_cuts(num_files: int) -> None:
    """Wait until the disk has what was written, before a record says that it is there."""
    if num_files >= MANY_FILES and hasattr(os, "sync"):
        os.sync()
