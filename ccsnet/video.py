"""Label a video or a camera's pictures, and write them as a video with the classes painted over."""

import collections
import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from ccsnet.draw import overlay
from ccsnet.errors import InputError
from ccsnet.files import atomic_path
from ccsnet.grid import ScoreGrid
from ccsnet.predict import PredictConfig, Predictor
from ccsnet.progress import Reporter, Silent
from ccsnet.stopping import StopSignals

# Source: four-character codes that the FFmpeg of OpenCV's wheels can write; tried with 5.0.
CODECS = {".mp4": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
CAMERA_RATE = 30.0
"""Frames per second written where the source does not say how many it has."""

_OPENING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """What was written."""

    out: Path
    frames: int
    size: tuple[int, int]
    """Height and width of the frames written."""
    rate: float
    """Frames per second of the video."""
    seconds: float
    """How long labelling took."""
    interrupted: bool
    """Whether Ctrl-C ended it; the file is whole up to there."""
    missing: int
    """Frames that the file announces, but that could not be read."""

    @property
    def frames_per_second(self) -> float:
        """How many were labelled in a second."""
        return self.frames / max(self.seconds, 1e-9)


class Smoother:
    """An exponential average of the probabilities of frames that follow each other.

    Args:
        amount: What the frames before count, 0 to below 1; the newest counts the rest.
    """

    def __init__(self, amount: float) -> None:
        if not 0 <= amount < 1:
            raise InputError(f"smooth is {amount}; it must be at least 0 and below 1, such as 0.7.")
        self.amount = amount
        self._mean: Float[Tensor, "B N h w"] | None = None

    def __call__(self, scores: ScoreGrid) -> ScoreGrid:
        """The scores averaged with those before; as they are where nothing is averaged."""
        if not self.amount:
            return scores
        values = scores.values.float()
        probs = values if scores.averaged else values.softmax(1)
        mean = probs if self._mean is None else self._mean.lerp(probs, 1 - self.amount)
        self._mean = mean
        return scores._replace(values=mean, averaged=True)


def label_video(
    predictor: Predictor,
    source: Path | str | int,
    out: Path,
    *,
    config: PredictConfig | None = None,
    smooth: float = 0.0,
    opacity: float = 0.5,
    max_frames: int | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> VideoResult:
    """Label every frame and write the overlays as a video of the same frame rate, without sound.

    The video has the size of the source's frames; of odd sides the last row or column is left out,
    which the codecs cannot hold. Ctrl-C ends it as if the source had ended there.

    Args:
        predictor: A model of three channels.
        source: A video file, or the number of a camera, 0 the first.
        out: The video to write: .mp4, .mov, .mkv or .avi; absent until it is whole.
        config: How to predict.
        smooth: What the frames before count in each, 0 to below 1: against flicker.
        opacity: Of the paint, 0 to 1.
        max_frames: Stop after so many.
        overwrite: Replace a file that is there.
        reporter: Told of each frame.

    Raises:
        FileNotFoundError: There is no such video.
        InputError: It has no frame that can be read, or `out` cannot be a video.
        OSError: The file cannot be written.
    """
    reporter, smoother = reporter or Silent(), Smoother(smooth)
    _check(predictor, out, opacity, max_frames, overwrite)
    _spare(source, out)
    with _opened(source) as capture, StopSignals() as stop:
        stop.hold()  # A frame is finished, then the file.
        first = _next(capture)
        if first is None:
            raise InputError(f"{_name(source)} has no frame that can be read. Is it whole?")
        size = (first.shape[0] // 2 * 2, first.shape[1] // 2 * 2)
        if 0 in size:
            raise InputError(f"{_name(source)} has frames of {first.shape[1]} x {first.shape[0]}.")
        if size != first.shape[:2]:
            reporter.note(
                f"Of the frames' {first.shape[1]} x {first.shape[0]} pixels the last row or column "
                "is left out: the codecs hold even sides only."
            )
        rate, announced = _rate(capture), _num_frames(capture, source)
        total = min(filter(None, (announced, max_frames)), default=0)
        reporter.start("frames", total)
        num, started = 0, time.perf_counter()
        try:
            with atomic_path(out, durable=False) as aside, _writer(aside, out, size, rate) as put:
                for frame in _frames(capture, first, max_frames):
                    scores = smoother(predictor.pipeline(config).scores([frame]))
                    label = scores.label(0, (frame.shape[0], frame.shape[1])).cpu().numpy()
                    put(overlay(frame, label, predictor.colours, opacity)[: size[0], : size[1]])
                    num += 1
                    reporter.advance(images_s=num / max(time.perf_counter() - started, 1e-9))
                    if stop.asked:
                        break
        finally:
            reporter.end()
        seconds = time.perf_counter() - started
    wanted = 0 if stop.asked else total
    return VideoResult(
        out=out,
        frames=num,
        size=size,
        rate=rate,
        seconds=seconds,
        interrupted=bool(stop.asked),
        missing=max(0, wanted - num),
    )


def _check(
    predictor: Predictor, out: Path, opacity: float, max_frames: int | None, overwrite: bool
) -> None:
    if predictor.info.channels != 3:
        raise InputError(
            f"This model takes images of {predictor.info.channels} channels; a video has 3."
        )
    if out.suffix.lower() not in CODECS:
        raise InputError(
            f"The video cannot be written as {out.name}: its name must end in {', '.join(CODECS)}."
        )
    if out.exists() and not overwrite:
        raise InputError(f"{out} is there already. Give another --out, or --overwrite.")
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity is {opacity}; it must be from 0 to 1.")
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames is {max_frames}; it must be at least 1.")


def _spare(source: Path | str | int, out: Path) -> None:
    """Refuse to put the result in the place of what it is made of."""
    if isinstance(source, int) or not (out.exists() and Path(source).exists()):
        return
    if out.samefile(source):
        raise InputError(f"{out} is the video to label itself. Give another --out.")


def _name(source: Path | str | int) -> str:
    return f"Camera {source}" if isinstance(source, int) else str(source)


@contextlib.contextmanager
def _opened(source: Path | str | int) -> Iterator[cv2.VideoCapture]:
    if not isinstance(source, int):
        path = Path(source)
        if path.is_dir():
            raise InputError(f"{path} is a folder; give a video file, or the number of a camera.")
        if not path.exists():
            raise FileNotFoundError(
                f"No video {path}. Give a file, or the number of a camera, 0 for the first."
            )
    with _quiet():
        capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
    try:
        if not capture.isOpened():
            hint = (
                "Is it connected, and in no other program's use?"
                if isinstance(source, int)
                else "Is it a video, and whole? `ffmpeg -i` tells more, and can make an .mp4 of it."
            )
            raise InputError(f"{_name(source)} cannot be opened as a video. {hint}")
        yield capture
    finally:
        capture.release()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """OpenCV and FFmpeg do not write to the terminal by themselves: what matters is raised."""
    # Source: AV_LOG_QUIET of libavutil; read by OpenCV when the first video is opened.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    with _OPENING:
        before = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            yield
        finally:
            cv2.utils.logging.setLogLevel(before)


def _next(capture: cv2.VideoCapture) -> UInt8[np.ndarray, "H W 3"] | None:
    """The next frame in RGB; None at the end."""
    there, frame = capture.read()
    if not there or frame is None:
        return None
    if frame.ndim == 2:
        return cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)
    return cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


def _frames(
    capture: cv2.VideoCapture, first: UInt8[np.ndarray, "H W 3"], most: int | None
) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """All frames; the next is decoded while this one is labelled."""
    with concurrent.futures.ThreadPoolExecutor(1, "ccsnet-video") as reader:
        frame, num = first, 0
        while frame is not None:
            num += 1
            following = None if num == most else reader.submit(_next, capture)
            yield frame
            frame = None if following is None else following.result()


def _rate(capture: cv2.VideoCapture) -> float:
    rate = capture.get(cv2.CAP_PROP_FPS)
    return rate if 0 < rate < 1000 else CAMERA_RATE


def _num_frames(capture: cv2.VideoCapture, source: Path | str | int) -> int:
    """As the file says; 0 where it does not."""
    num = capture.get(cv2.CAP_PROP_FRAME_COUNT)
    return 0 if isinstance(source, int) or not 0 < num < 2**40 else int(num)


@contextlib.contextmanager
def _writer(
    aside: Path, out: Path, size: tuple[int, int], rate: float
) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that takes RGB frames; they are encoded while the next is labelled."""
    code = cv2.VideoWriter.fourcc(*CODECS[out.suffix.lower()])
    with _quiet():
        video = cv2.VideoWriter(str(aside), cv2.CAP_FFMPEG, code, rate, (size[1], size[0]))
    pending: collections.deque[concurrent.futures.Future[Any]] = collections.deque()
    num = 0

    def put(frame: np.ndarray) -> None:
        nonlocal num
        num += 1
        pending.append(encoder.submit(video.write, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR)))
        while len(pending) > 2:
            pending.popleft().result()

    with concurrent.futures.ThreadPoolExecutor(1, "ccsnet-video") as encoder:
        try:
            if not video.isOpened():
                raise InputError(
                    f"OpenCV cannot write {out.name} with {size[1]} x {size[0]} pixels at {rate:g} "
                    "frames per second. Choose another ending, .avi being the simplest."
                )
            yield put
            for one in pending:
                one.result()
        finally:
            encoder.shutdown()
            video.release()
    if not _has_frame(aside, num - 1):
        raise OSError(f"{out} could not be written to its end. Is the disk full?")


def _has_frame(path: Path, index: int) -> bool:
    """Whether a frame can be read again: the writer does not tell what it could not write."""
    with _quiet():
        capture = cv2.VideoCapture(str(path))
    try:
        capture.set(cv2.CAP_PROP_POS_FRAMES, index)
        return capture.read()[0]
    finally:
        capture.release()
