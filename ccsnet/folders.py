"""Label any number of images: read ahead, written behind, resumed, shared between processes.

Memory does not grow with the number of images: of each only its name is looked at, and what is
noted of it lies in a small file (`ccsnet.claims`).
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ccsnet.attention import attention_head, attention_of, pixel_picture, relevant_picture
from ccsnet.claims import Answer, Claims
from ccsnet.data.images import read_image, write_index_png, write_png
from ccsnet.data.parallel import num_processors
from ccsnet.errors import InputError
from ccsnet.formats import server_values
from ccsnet.outputs import (
    KINDS,
    areas_of,
    check_kinds,
    write_area_csv,
    write_segments_json,
    write_summary,
)
from ccsnet.predict import PredictConfig, Prediction, Predictor
from ccsnet.progress import Reporter, Silent
from ccsnet.walk import Found, Targets, survey, walk_images

RECORDS = ".records"
"""The folder, in that of the results, that knows which images are finished."""
BEHIND = 4  # Results that may wait to be written.
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
    """Images that were finished already, with `resume`."""
    elsewhere: int
    """Images that another process was at work on."""
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
    workers: int = -1,
    reporter: Reporter | None = None,
) -> FolderResult:
    """Label images and write what is asked for to `out`/KIND/NAME.

    An image that cannot be labelled is noted, and the others go on. With `resume`, images that are
    finished are skipped, and several calls, on any machines that see the folder, share the
    images: each takes one that nobody has. Files are complete or absent.

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
        workers: Threads that read; -1: as many as there are processors, 8 at most.
        reporter: Told of each image; of a single one that is seen in windows, of each window.

    Raises:
        FileNotFoundError: An input names nothing.
        InputError: Two images would be written to one file, a file is there already, there is no
            image, or the model cannot give what is asked for.
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
    config = config or PredictConfig()
    work = _Work(
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
    finally:
        work.claims.drop_all()
        reporter.end()
    result = work.result(time.perf_counter() - started)
    _join(work, result, summary)
    return result


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
    settings = {**dataclasses.asdict(config), "batch_size": None}  # Not how fast.
    digest.update(repr((predictor.info, sorted(settings.items()))).encode())
    return digest.hexdigest()


class Made(NamedTuple):
    """What the network says of an image."""

    prediction: Prediction
    looked: dict[str, np.ndarray]
    """Pictures of what it looked at, by kind, where they are wanted."""


@dataclass(kw_only=True)
class _Work:
    """What the steps of labelling share."""

    predictor: Predictor
    plan: Targets
    config: PredictConfig
    values: np.ndarray | None
    claims: Claims
    progress: Callable[[int, int], None] | None
    labelled: int = 0
    done_before: int = 0
    elsewhere: int = 0
    shares: collections.Counter[int] = field(default_factory=collections.Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)

    def read(self, found: Found) -> tuple[Found, Answer, np.ndarray | Exception | None]:
        """Whose an image is, and its pixels if it is ours; runs in a thread."""
        answer = self.claims.ask(found.name, self.kinds, self.plan.out)
        if answer.whose != "ours":
            return found, answer, None
        try:
            return found, answer, read_image(found.path, self.predictor.info.channels)
        except (InputError, OSError, MemoryError) as error:
            return found, answer, error

    @property
    def kinds(self) -> tuple[str, ...]:
        """All that is made of an image."""
        at = "" if self.plan.at is None else "at {} {}".format(*self.plan.at)
        return (*self.plan.save, *filter(None, [self.plan.server, at]))

    def at_once(self, image: np.ndarray) -> int:
        """How many images of this one's size to label together."""
        try:
            pipeline = self.predictor.pipeline(self.config)
            return pipeline.images_at_once(image.shape[:2], image.shape[2])
        except InputError:  # It does not fit into the memory: labelling it says so.
            return 1

    def label(self, images: list[np.ndarray]) -> list[Made]:
        """The predictions of images of one size."""
        keep_probs = any(KINDS[kind].probs for kind in self.plan.save)
        predictions = self.predictor.predict_batch(
            images, self.config, self.progress, keep_probs=keep_probs
        )
        return [Made(one, self._looked(one)) for one in predictions]

    def _looked(self, prediction: Prediction) -> dict[str, np.ndarray]:
        pictures: dict[str, np.ndarray] = {}
        if not self.plan.looks:
            return pictures
        image, names = prediction.image, (self.predictor.classes, self.predictor.colours)
        attention = attention_of(self.predictor, image)
        if "relevant" in self.plan.save:
            pictures["relevant"] = relevant_picture(image, attention, *names)
        if self.plan.at is not None:
            pictures["at"] = pixel_picture(image, attention, *names, *self.plan.at)
        return pictures

    def write(self, found: Found, made: Made) -> None:
        """Write an image's files and then its record; runs in a thread."""
        prediction, looked = made
        files, segments = self.plan.files(found.name), None
        for kind, file in files.items():
            path = self.plan.out / file
            if kind == self.plan.server:
                assert self.values is not None, "a server has values"
                write_index_png(path, self.values[prediction.label])
            elif kind in looked:
                write_png(path, looked[kind])
            else:
                write = KINDS[kind].write
                assert write is not None, "only such kinds have files"
                segments = write(path, prediction) or segments
        areas = areas_of(prediction.label, len(self.predictor.classes))
        record = {
            "image": found.name,
            "kinds": self.kinds,
            "files": list(files.values()),
            "size": prediction.label.shape,
            "pixels": list(areas.items()),
        }
        self.claims.finish(found.name, record | ({"segments": segments} if segments else {}))
        self.labelled += 1
        self.count(record)

    def fail(self, found: Found, error: Exception) -> None:
        """Note why an image has no result, and leave it to a later call."""
        self.failures.append((str(found.path), str(error) or type(error).__name__))
        self.claims.drop(found.name)

    def count(self, record: Mapping[str, Any]) -> None:
        """Add an image's areas."""
        pixels = record["size"][0] * record["size"][1]
        self.shares.update({index: num / pixels for index, num in record["pixels"]})

    def result(self, seconds: float) -> FolderResult:
        """What became of them."""
        num, classes = self.labelled + self.done_before, self.predictor.classes
        return FolderResult(
            out=self.plan.out,
            labelled=self.labelled,
            done_before=self.done_before,
            elsewhere=self.elsewhere,
            failures=tuple(self.failures),
            areas={classes[i]: share / num for i, share in self.shares.most_common()},
            seconds=seconds,
        )


def _run(work: _Work, images: Iterable[Found], workers: int, reporter: Reporter) -> None:
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
                work.done_before += 1
                work.count(answer.record)
            elif isinstance(pixels, Exception):
                work.fail(found, pixels)
            else:
                work.elsewhere += 1
            reporter.advance()
        label_group()
        for write in writes:
            write.result()


def _labelled(work: _Work, images: list[np.ndarray]) -> list[Made | Exception]:
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


def _join(work: _Work, result: FolderResult, summary: Path | None) -> None:
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
