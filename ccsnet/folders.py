"""Label any number of images: read ahead, written behind, resumed, shared between processes.

Memory does not grow with the number of images: of each only its name is looked at, and what is
noted of it lies in a small file (`ccsnet.claims`).
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from ccsnet.attention import attention_head
from ccsnet.claims import Claims
from ccsnet.data.parallel import num_processors
from ccsnet.errors import InputError
from ccsnet.files import check_writable_file, check_writable_folder
from ccsnet.folders_work import Made, Work
from ccsnet.formats import server_values
from ccsnet.outputs import (
    KINDS,
    check_kinds,
    write_area_csv,
    write_segments_json,
    write_summary,
)
from ccsnet.predict import PredictConfig, Predictor
from ccsnet.progress import Reporter, Silent
from ccsnet.walk import Found, Targets, survey, walk_images

RECORDS = ".records"
"""The folder, in that of the results, that knows which images are finished."""
BEHIND = 4  # Results that may wait to be written.
POLL = 0.2  # Seconds between looks at what another process is at work on.
MAX_READERS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class FolderResult:
    """What became of the images."""

    out: Path
    labelled: int
    """Images finished by this call."""
    done_before: int
    """Images that were finished already, or that others have finished, with `resume`."""
    elsewhere: int
    """Images that another process was still at work on."""
    failures: tuple[tuple[str, str], ...]
    """Images that could not be labelled, and why."""
    areas: dict[str, float]
    """Share of each class in the pictures, those finished before included; largest first."""
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        parts = dataclasses.asdict(self) | {"out": str(self.out)}
        return parts | {"failures": [{"image": i, "error": e} for i, e in self.failures]}


def label_folder(
    predictor: Predictor,
    inputs: Sequence[Path | str],
    out: Path,
    *,
    save: Sequence[str] = ("color",),
    server: str | None = None,
    at: tuple[int, int] | None = None,
    config: PredictConfig | None = None,
    resume: bool = False,
    overwrite: bool = False,
    summary: Path | None = None,
    finish: bool = True,
    workers: int = -1,
    reporter: Reporter | None = None,
) -> FolderResult:
    """Label images and write what is asked for to `out`/KIND/NAME.

    An image that cannot be labelled is noted, and the others go on. With `resume`, images that are
    finished are skipped, and several calls, on any machines that see the folder, share the
    images: each takes one that nobody has, waits at the end for those that others have, and labels
    those that others have left. Files are complete or absent.

    Args:
        predictor: The model.
        inputs: Files, folders and patterns.
        out: Folder, made if missing.
        save: What to write of each, names of `ccsnet.outputs.KINDS`.
        server: Also write what the server of this name wants, one of `ccsnet.formats.FORMATS`.
        at: A row and a column: also draw where what this pixel read came from, to `out`/at/NAME.
        config: How to predict.
        resume: Go on with what an earlier call left, or share the work with others.
        overwrite: Replace what is there.
        summary: A JSON file of the result and of every finished image.
        finish: Wait for the others, and write what is said of all images in one file; of calls that
            were started together, one is enough.
        workers: Threads that read; -1: as many as there are processors, 8 at most.
        reporter: Told of each image; of a single one that is seen in windows, of each window.

    Raises:
        FileNotFoundError: An input names nothing.
        InputError: Two images would be written to one file, a file is there already, there is no
            image, the model cannot give what is asked for, or `out` cannot be written to.
        OSError: A result cannot be written.
    """
    if resume and overwrite:
        raise InputError("resume keeps what is there and overwrite replaces it: choose one.")
    save = tuple(dict.fromkeys(save))
    check_kinds(save)
    values = None if server is None else server_values(server, predictor.classes)
    plan, reporter = Targets(out, save, server, at), reporter or Silent()
    if plan.looks:
        attention_head(predictor)
    total = survey(inputs, plan, keep=resume or overwrite)
    _check_joined(plan, keep=resume or overwrite)
    check_writable_folder(out)
    check_writable_file(summary, "--json")
    config = config or PredictConfig()
    work = Work(
        predictor=predictor,
        plan=plan,
        config=config,
        values=values,
        claims=Claims(out / RECORDS, _fingerprint(predictor, config), anew=not resume),
        progress=_window_bar(reporter) if total == 1 else None,
    )
    reporter.start("predicting", total)
    started = time.perf_counter()
    workers = min(num_processors(), MAX_READERS) if workers < 0 else max(1, workers)
    try:
        _run(work, walk_images(inputs, out), workers, reporter if total > 1 else Silent())
        while finish and resume and work.elsewhere:
            work.forget()
            _run(work, _left(work, walk_images(inputs, out), reporter), workers, Silent())
    finally:
        work.claims.drop_all()
        reporter.end()
    result = _result(work, time.perf_counter() - started)
    if finish:
        _join(work, result, summary)
    return result


def _check_joined(plan: Targets, *, keep: bool) -> None:
    """Whether what is said of all images in one file has a place.

    Raises:
        InputError: There is one of earlier images.
    """
    for kind in plan.save:
        joined = KINDS[kind].joined
        if not keep and joined and (plan.out / joined).exists():
            raise InputError(
                f"{plan.out / joined} is there already. Give another --out folder, --resume to add "
                "to it, or --overwrite."
            )


def _window_bar(reporter: Reporter) -> Callable[[int, int], None]:
    """Tells the reporter of windows instead of images, from the first window on."""
    before = 0

    def told(done: int, total: int) -> None:
        nonlocal before
        if not before:
            reporter.start("windows", total)
        reporter.advance(done - before)
        before = done

    return told


def _fingerprint(predictor: Predictor, config: PredictConfig) -> str:
    """What decides how a result looks: the weights, the classes and how the model is used."""
    digest = hashlib.blake2b(digest_size=16)
    for model in predictor.models:
        for name, tensor in model.state_dict().items():
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(name.encode())
            digest.update(data.numpy())
    settings = {**dataclasses.asdict(config), "batch_size": None, "compile": None}  # Not how fast.
    digest.update(repr((predictor.info, sorted(settings.items()))).encode())
    return digest.hexdigest()


def _run(work: Work, images: Iterable[Found], workers: int, reporter: Reporter) -> None:
    """Threads read ahead, this one runs the network, another writes behind."""
    writes: collections.deque[concurrent.futures.Future[None]] = collections.deque()
    group: list[tuple[Found, np.ndarray]] = []

    def label_group() -> None:
        for (found, _), made in zip(group, _labelled(work, [p for _, p in group]), strict=True):
            if isinstance(made, Exception):
                work.fail(found, made)
            else:
                writes.append(writer.submit(work.write, found, made))
        reporter.advance(len(group))
        group.clear()
        while len(writes) > BEHIND:
            writes.popleft().result()

    with (
        concurrent.futures.ThreadPoolExecutor(workers, "ccsnet-read") as readers,
        concurrent.futures.ThreadPoolExecutor(1, "ccsnet-write") as writer,
    ):
        for found, answer, pixels in _ahead(readers, work.read, images, workers + 2):
            if isinstance(pixels, np.ndarray):
                if group and group[0][1].shape != pixels.shape:
                    label_group()
                group.append((found, pixels))
                if len(group) >= work.at_once(pixels):
                    label_group()
                continue
            if answer.record is not None:
                work.found(answer.record)
            elif isinstance(pixels, Exception):
                work.fail(found, pixels)
            else:
                work.elsewhere += 1
            reporter.advance()
        label_group()
        for write in writes:
            write.result()


def _left(work: Work, images: Iterable[Found], reporter: Reporter) -> Iterator[Found]:
    """The images, each when nobody else is at work on it any longer; those that failed left out.

    What is finished is found so, and what others have left is labelled. Nobody waits who holds an
    image: two that wait for each other would never end.
    """
    failed, told = {path for path, _ in work.failures}, False
    for found in images:
        if str(found.path) in failed:
            continue
        while work.claims.is_taken(found.name) and not work.claims.holds_any:
            if not told:
                reporter.note("Waiting for images that other processes are at work on.")
                told = True
            time.sleep(POLL)
        yield found


def _labelled(work: Work, images: list[np.ndarray]) -> list[Made | Exception]:
    """What the network says of images of one size, or why it says nothing of one."""
    if not images:
        return []
    try:
        return [*work.label(images)]
    except (InputError, OSError, MemoryError, FloatingPointError) as error:
        reason: Exception = error
    except RuntimeError as error:  # Torch has no type of its own for a processor's memory.
        if not isinstance(error, torch.OutOfMemoryError) and (
            "can't allocate memory" not in str(error)
        ):
            raise
        reason = MemoryError(f"It is too large for the memory: {str(error).splitlines()[0]}")
    if len(images) == 1:
        return [reason]
    return [made for image in images for made in _labelled(work, [image])]


def _ahead(
    pool: concurrent.futures.Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    depth: int,
) -> Iterator[Result]:
    """The results in the items' order, up to `depth` of them made before they are asked for."""
    waiting: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _result(work: Work, seconds: float) -> FolderResult:
    """What became of them."""
    num, classes = work.labelled + work.done_before, work.predictor.classes
    return FolderResult(
        out=work.plan.out,
        labelled=work.labelled,
        done_before=work.done_before,
        elsewhere=work.elsewhere,
        failures=tuple(work.failures),
        areas={classes[i]: share / num for i, share in work.shares.most_common()},
        seconds=seconds,
    )


def _join(work: Work, result: FolderResult, summary: Path | None) -> None:
    """Write what is said of all images in one file, from the records."""
    classes, colours = work.predictor.classes, work.predictor.colours
    while True:
        before = work.claims.count()
        for kind in work.plan.save:
            name = KINDS[kind].joined
            if kind == "area" and name:
                write_area_csv(work.plan.out / name, work.claims.records(), classes)
            elif kind == "segments" and name:
                path = work.plan.out / name
                write_segments_json(path, work.claims.records(), classes, colours)
        if summary is not None:
            write_summary(summary, result.to_dict(), work.claims.records(), classes)
        # Another process that finished in between may have written before this one did, and more.
        if work.claims.count() == before:
            return
