import inspect
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import ccsnet
from ccsnet.checkpoint import ClassInfo
from ccsnet.errors import InputError
from ccsnet.grid import ScoreGrid
from ccsnet.heads._base import Output
from ccsnet.predict import Predictor
from ccsnet.segmenter import Segmenter
from ccsnet.video import CODECS, Smoother, label_video
from tests.notes import Notes
from tests.shapes import CLASSES, COLOURS, scene

SIZE = (72, 96)


def make_video(path, num=12, size=SIZE, rate=12.5):
    code = cv2.VideoWriter.fourcc(*CODECS[path.suffix])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, size[::-1])
    assert writer.isOpened()
    picture = scene(np.random.default_rng(3), size)[0]
    for i in range(num):
        writer.write(np.roll(picture, 2 * i, axis=1)[..., ::-1].copy())
    writer.release()
    return path


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    found = []
    while True:
        there, frame = capture.read()
        if not there:
            break
        found.append(frame[..., ::-1])
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return found, rate


class Flickers(Segmenter):
    """Ground and disc in turns, a little surer of the disc; no network."""

    def __init__(self):
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.zeros(()))
        self.calls = 0

    def forward(self, image):
        self.calls += 1
        logits = torch.zeros(len(image), 3, image.shape[2] // 4, image.shape[3] // 4)
        logits[:, self.calls % 2] = 1.0 + 0.2 * (self.calls % 2)
        return Output(logits)


@pytest.fixture(scope="module")
def predictor(run):
    return ccsnet.load(run.out, device="cpu")


@pytest.fixture
def flickering(predictor):
    return Predictor(Flickers(), ClassInfo(dataset="s", classes=CLASSES, colours=COLOURS))


@pytest.fixture
def clip(tmp_path):
    return make_video(tmp_path / "clip.mp4")


@pytest.mark.parametrize("suffix", CODECS)
def test_a_video_comes_out(predictor, clip, tmp_path, suffix):
    out = tmp_path / "deep" / f"out{suffix}"
    found = label_video(predictor, clip, out)
    assert (found.frames, found.size, found.rate) == (12, SIZE, 12.5)
    assert not found.interrupted
    assert not found.missing
    assert found.frames_per_second > 0
    frames, rate = frames_of(out)
    assert rate == pytest.approx(12.5)
    assert len(frames) == 12
    sources, _ = frames_of(clip)
    for frame, source in zip(frames, sources, strict=True):
        assert frame.shape == (*SIZE, 3)
        painted = predictor.predict(np.ascontiguousarray(source)).overlay()
        assert np.abs(frame.astype(int) - painted).mean() < 8  # Codecs lose a little.
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_odd_sides_lose_a_row_or_column(predictor, tmp_path):
    """The codecs hold even sides only; what is left out is said."""
    path = tmp_path / "odd.gif"  # OpenCV itself writes no odd sides.
    frames = [Image.new("RGB", (65, 47), (80 * i, 90, 90)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    told = Notes()
    found = label_video(predictor, path, tmp_path / "out.mp4", reporter=told)
    frames, rate = frames_of(tmp_path / "out.mp4")
    assert frames[0].shape[:2] == found.size
    assert found.size == (46, 64)
    assert rate == pytest.approx(10)
    assert told.notes == [
        "Of the frames' 65 x 47 pixels the last row or column is left out: the codecs hold even "
        "sides only."
    ]


def test_no_more_frames_than_asked_for(predictor, clip, tmp_path):
    found = label_video(predictor, clip, tmp_path / "out.mp4", max_frames=5)
    assert (found.frames, found.missing) == (5, 0)
    assert len(frames_of(tmp_path / "out.mp4")[0]) == 5


# Smoothing


def test_smoothing_is_an_exponential_average_of_probabilities():
    rng = np.random.default_rng(0)
    frames = [torch.from_numpy(rng.normal(size=(1, 3, 4, 5))).float() for _ in range(4)]
    smoother, expected = Smoother(0.7), None
    for values in frames:
        found = smoother(ScoreGrid(values, False, 1, (4, 5)))
        probs = values.exp() / values.exp().sum(1, keepdim=True)
        expected = probs if expected is None else 0.7 * expected + 0.3 * probs
        assert found.averaged
        assert torch.allclose(found.values, expected, atol=1e-6)
    probs = torch.softmax(frames[0], 1)
    again = Smoother(0.5)
    again(ScoreGrid(probs, True, 1, (4, 5)))  # Probabilities already, of several passes.
    assert torch.allclose(again(ScoreGrid(probs, True, 1, (4, 5))).values, probs)


def test_without_smoothing_nothing_is_touched():
    grid = ScoreGrid(torch.randn(1, 3, 4, 5), False, 1, (4, 5))
    assert Smoother(0.0)(grid) is grid


def test_smoothing_ends_flicker(flickering, clip, tmp_path):
    def changes(smooth):
        flickering.model.calls = 0
        out = tmp_path / f"{smooth}.avi"
        label_video(flickering, clip, out, smooth=smooth, opacity=1.0)
        red = [frame[..., 0].mean() > 120 for frame in frames_of(out)[0]]  # A disc is red.
        return sum(a != b for a, b in itertools.pairwise(red))

    assert changes(0.0) == 11
    assert changes(0.9) <= 1


# What can be wrong


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"smooth": 1.0}, "smooth is 1.0; it must be at least 0 and below 1"),
        ({"smooth": -0.1}, "smooth"),
        ({"opacity": 2.0}, "opacity is 2.0; it must be from 0 to 1"),
        ({"max_frames": 0}, "max_frames is 0"),
        ({"out": "out.gif"}, r"out\.gif: its name must end in \.mp4, \.mov, \.mkv, \.avi"),
        ({"out": "clip.mp4"}, r"clip\.mp4 is there already.*--overwrite"),
        ({"source": "."}, "is a folder; give a video file"),
        ({"source": "notes.txt"}, r"notes\.txt cannot be opened as a video"),
        ({"source": "empty.mp4"}, r"empty\.mp4 cannot be opened as a video"),
        ({"source": 97}, "Camera 97 cannot be opened as a video. Is it connected"),
    ],
)
def test_what_cannot_be_used(predictor, clip, tmp_path, change, text, capfd):
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "empty.mp4").touch()
    settings = {"source": clip, "out": tmp_path / "out.mp4"} | change
    for name in ("source", "out"):
        if isinstance(settings[name], str):
            settings[name] = tmp_path / settings[name]
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=text):
        label_video(predictor, **settings)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("suffix", CODECS)
def test_a_full_disk(predictor, clip, tmp_path, monkeypatch, suffix):
    """OpenCV says nothing of it: the end of the video is missing, and what was there stays."""
    out = tmp_path / f"out{suffix}"
    out.write_bytes(b"the video before")
    writer = cv2.VideoWriter

    class Full:
        fourcc = staticmethod(writer.fourcc)

        def __init__(self, name, *arguments):
            self.path, self.writer = Path(name), writer(name, *arguments)

        def __getattr__(self, name):
            return getattr(self.writer, name)

        def release(self):
            self.writer.release()
            whole = self.path.read_bytes()
            self.path.write_bytes(whole[: len(whole) // 2])

    monkeypatch.setattr(cv2, "VideoWriter", Full)
    with pytest.raises(OSError, match="could not be written to its end"):
        label_video(predictor, clip, out, overwrite=True)
    assert not list(tmp_path.glob(".*"))
    assert out.read_bytes() == b"the video before"


def test_the_video_itself_is_not_replaced(predictor, clip, tmp_path):
    whole = clip.read_bytes()
    (tmp_path / "link.mp4").symlink_to(clip)
    for out in (clip, tmp_path / "link.mp4"):
        with pytest.raises(InputError, match=r"\.mp4 is the video to label itself"):
            label_video(predictor, clip, out, overwrite=True)
    assert clip.read_bytes() == whole


def test_a_video_that_is_not_there(predictor, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No video .*none\.mp4"):
        label_video(predictor, tmp_path / "none.mp4", tmp_path / "out.mp4")


def test_cut_videos(predictor, tmp_path):
    """An .mp4 without its end, where its index is, is refused; of an .avi what is there is used."""
    whole = make_video(tmp_path / "whole.mp4", num=30)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(InputError, match=r"cut\.mp4"):
        label_video(predictor, tmp_path / "cut.mp4", tmp_path / "out.mp4")
    whole = make_video(tmp_path / "whole.avi", num=30)
    data = whole.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    found = label_video(predictor, tmp_path / "cut.avi", tmp_path / "out.mp4")
    assert 5 < found.frames < 30
    assert len(frames_of(tmp_path / "out.mp4")[0]) == found.frames
    assert found.missing == 30 - found.frames


def test_unwritable_folder(predictor, clip, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        label_video(predictor, clip, tmp_path / "file" / "out.mp4")


def test_models_of_other_channels(predictor, clip, tmp_path):
    info = ClassInfo(dataset="s", classes=CLASSES, colours=COLOURS, channels=4)
    with pytest.raises(InputError, match="takes images of 4 channels; a video has 3"):
        inspect.unwrap(label_video)(Predictor(predictor.model, info), clip, tmp_path / "out.mp4")


def test_an_error_leaves_no_file(flickering, clip, tmp_path):
    class Fails(Flickers):
        def forward(self, image):
            if self.calls == 4:
                raise InputError("enough")
            return super().forward(image)

    flickering.model = Fails()
    with pytest.raises(InputError, match="enough"):
        label_video(flickering, clip, tmp_path / "out.mp4")
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_ctrl_c_finishes_the_file(flickering, clip, tmp_path):
    class Pressed(Flickers):
        def forward(self, image):
            if self.calls == 6:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.05)
            return super().forward(image)

    flickering.model = Pressed()
    found = label_video(flickering, clip, tmp_path / "out.mp4")
    assert found.interrupted
    assert found.missing == 0
    assert found.frames == 7
    assert len(frames_of(tmp_path / "out.mp4")[0]) == 7


def test_the_command(run, clip, tmp_path, capsys):
    from ccsnet.cli import run as call

    out = tmp_path / "out.mp4"
    command = ["video", str(run.out), str(clip), "--out", str(out), "--smooth", "0.7", "--cpu"]
    assert call(command) == 0
    told = capsys.readouterr().out
    assert "out.mp4: 12 frames of 96 x 72 at 12.5 per second, without sound; labelled at" in told
    assert call(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert call(["video", str(run.out)]) == 2
    assert "Which video?" in capsys.readouterr().err
    assert call(["video", str(run.out), "97", "--out", str(tmp_path / "camera.mp4")]) == 2
    assert "error: Camera 97 cannot be opened as a video" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_leaves_a_video_that_plays(run, tmp_path, number):
    clip = make_video(tmp_path / "long.avi", num=3000)
    out = tmp_path / "out.mp4"
    command = ["-m", "ccsnet", "video", str(run.out), str(clip), "--out", str(out), "--cpu"]
    with subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        until = time.monotonic() + 120
        while not list(tmp_path.glob(".out-*")) and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(number)
        told, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "and stopped there." in told
    frames, rate = frames_of(out)
    assert f"out.mp4: {len(frames)} frames of" in told
    assert 0 < len(frames) < 3000
    assert rate == pytest.approx(12.5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.avi", "out.mp4"]
