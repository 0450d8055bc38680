"""The report of any run: real ones, interrupted ones, and data of every kind."""

import json
import re
import shutil

import numpy as np
import pytest
import tifffile
from PIL import Image

from ccsnet import run_report
from ccsnet.checkpoint import read_checkpoint
from ccsnet.datasets._folder import read_spec
from ccsnet.evaluate import Evaluation
from ccsnet.metrics import Metrics
from ccsnet.progress import Silent
from ccsnet.report import Picture, Table
from ccsnet.run_folder import BEST_FILE
from ccsnet.run_report import write_run_report
from ccsnet.runlog import COLUMNS, LOG_FILE
from tests.shapes import make_shapes


class Stages(Silent):
    """Remembers what was begun."""

    def __init__(self):
        self.begun = {}

    def start(self, stage, total, done=0):
        self.begun[stage] = total


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run.out, tmp_path / "a run")


def write(out, **given):
    reporter = Stages()
    page = write_run_report(out, reporter=reporter, **given).read_text("utf-8")
    return page, reporter.begun


def facts(blocks):
    (table,) = (b for b in blocks if isinstance(b, Table))
    return dict(table.rows)


# A whole report


def test_report_of_a_run(run, copy):
    page, begun = write(copy)
    assert begun == {"drawing images": 4}  # Nothing is measured again.
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    miou = 100 * run.result.best_miou
    assert (
        f"On 4 images of the split &#39;val&#39;, the model reaches a mean IoU of {miou:.1f} %"
        in page
    )
    for heading in (
        *("What it reached", "Training", "What is taken for what", "The best and the worst images"),
        *("Use it", "Model and data", "How this was made"),
    ):
        assert f"<h2>{heading}</h2>" in page
    assert page.count("<img ") == 6
    assert "ccsnet predict &#39;" in page  # The folder's name has a space.
    assert "60 of 60, 4 images in each" in page
    assert "model.head_config.top_k" in page
    assert "torch " in page


def test_other_figures_than_the_checkpoints_are_not_taken(copy):
    file = copy / BEST_FILE
    stored = json.loads(file.read_text())
    stored["step"] -= 1
    file.write_text(json.dumps(stored))
    page, begun = write(copy)
    assert begun == {"evaluating": 4, "drawing images": 4}
    file.unlink()
    assert write(copy)[0] == page


def test_figures_that_are_given_are_taken(copy):
    confusion = np.array([[9, 1, 0], [0, 0, 0], [0, 0, 0]])
    metrics = Metrics(classes=("ground", "disc", "box"), confusion=confusion, images=7)
    page, _ = write(copy, evaluation=Evaluation(metrics, [("0", 0.25)]))
    assert "On 7 images" in page
    assert "1 of 3 classes are neither labelled nor predicted" in page
    assert page.count("Picture, truth, prediction") == 2  # Caption and alternative text.


def test_what_was_measured_with_it_is_shown(copy):
    page, _ = write(copy)
    assert "95 % of such sets would have a mIoU of" in page  # From what training has stored.
    assert "95 % interval" in page
    assert "How sure it is" not in page
    metrics = Metrics(
        classes=("ground", "disc", "box"),
        confusion=np.diag([9, 8, 7]),
        images=4,
        boundary=np.array([[1, 2, 2], [2, 2, 2], [2, 2, 2]]),
        calibration=np.array([[24], [24], [12 * 2**24]]),
    )
    page, _ = write(copy, evaluation=Evaluation(metrics, ranked("0", "1")))
    assert "boundary IoU 77.8 %." in page
    assert "calibration error is 50.0 %" in page


# Training


def log_of(out, steps, columns):
    values = {"step": 0, "loss": 0.5, "epoch": 2, "images_per_second": 8, "wait": 0.25}
    lines = [",".join(columns)]
    for step in steps:
        row = values | {"step": step, "seconds": 4000 * step, "memory_gib": step / 4}
        lines.append(",".join(str(row.get(name, 0.1)) for name in columns))
    (out / LOG_FILE).write_text("\n".join(lines) + "\n")


def test_time_is_that_of_all_sittings(copy):
    config = read_checkpoint(copy).config
    log_of(copy, range(1, 31), COLUMNS[LOG_FILE])
    section = run_report.training_section(copy, config)
    found = facts(section.blocks)
    assert found["steps"] == "30 of 60, 4 images in each"
    assert found["time, over all sittings"] == "1 d 9:20:00, validation left out"
    assert found["of the time waiting for data"] == "25.0 %"
    assert found["most memory"] == "7.5 GiB"


def test_logs_of_older_versions_and_none(copy):
    config = read_checkpoint(copy).config
    log_of(copy, range(1, 31), COLUMNS[LOG_FILE][:7])
    found = facts(run_report.training_section(copy, config).blocks)
    assert not {"of the time waiting for data", "most memory"} & set(found)
    log_of(copy, (), COLUMNS[LOG_FILE])
    assert run_report.training_section(copy, config).blocks == []
    (copy / LOG_FILE).unlink()
    assert "no log.csv" in run_report.training_section(copy, config).texts[0]


# Images


class Guess:
    """A model that says class 0 everywhere."""

    def __init__(self, spec):
        self.spec, self.seen = spec, []

    def predict(self, image):
        self.seen.append(image.shape)
        return np.zeros(image.shape[:2], np.uint8 if self.spec.ignore_index == 255 else np.uint16)


@pytest.fixture
def show(monkeypatch):
    """The images section of a data set, whatever predicts."""

    def show(data, ranking, **options):
        spec, root = read_spec(data)
        guess = Guess(spec)
        confusion = np.zeros((spec.num_classes, spec.num_classes), int)
        evaluation = Evaluation(Metrics(classes=spec.classes, confusion=confusion), ranking)
        pairs = spec.pairs(root, "val")
        section = run_report.images_section(evaluation, guess.predict, spec, pairs, **options)
        return section, guess

    return show


def ranked(*names):
    return [(name, 0.1 * i) for i, name in enumerate(names)]


@pytest.mark.parametrize(
    ("num", "kinds"),
    [(1, "b"), (2, "bw"), (3, "bbw"), (8, "bbbbwwww"), (20, "bbbbwwww")],
)
def test_at_most_eight_images_each_once(tmp_path, show, num, kinds):
    data = make_shapes(tmp_path, train=1, val=num)
    names = [str(i) for i in range(num)]
    section, guess = show(data, ranked(*names))
    captions = [block.caption for block in section.blocks if isinstance(block, Picture)]
    assert "".join(c[0] for c in captions) == kinds
    assert len({c.split(",")[0].split(": ")[1] for c in captions}) == len(guess.seen) == len(kinds)
    assert captions[0].startswith(f"best: {num - 1}, mIoU {10 * (num - 1):.1f} %")


@pytest.mark.parametrize(
    ("num", "heading"),
    [(9, "all 9 images, worst first"), (24, "the worst 20 of 24 images, worst first")],
)
def test_of_many_images_the_worst_are_named(tmp_path, show, num, heading):
    data = make_shapes(tmp_path, train=1, val=num)
    section, _ = show(data, ranked(*map(str, range(num))))
    table = section.blocks[-1]
    assert table.head == [heading, "mIoU %"]
    assert table.rows[:2] == [["0", "0.0"], ["1", "10.0"]]
    assert len(table.rows) == min(num, 20)


def test_without_a_pixel_that_counts_the_first_images_are_shown(tmp_path, show):
    data = make_shapes(tmp_path, train=1, val=5)
    for path in (data / "labels" / "val").iterdir():
        label = np.asarray(Image.open(path))
        Image.fromarray(np.full_like(label, 255)).save(path)
    section, guess = show(data, [])
    assert len(guess.seen) == 2
    assert section.texts == ["No image has a pixel that counts; these are the first."]
    assert "mIoU - %" in section.blocks[0].caption


@pytest.mark.parametrize("bands", [1, 5])
def test_images_of_any_bands(tmp_path, show, bands):
    yaml = (
        "classes: [a, b]\nimages: images/{split}/*.tif\nlabels: labels/{split}/*.png\n"
        f"channels: {bands}\n"
    )
    data = make_shapes(tmp_path, train=1, val=2, yaml=yaml)
    for path in (data / "labels" / "val").iterdir():
        size = np.asarray(Image.open(path)).shape
        Image.fromarray(np.zeros(size, np.uint8)).save(path)
        image = np.random.default_rng(0).integers(0, 4000, (*size, bands)).astype(np.uint16)
        tifffile.imwrite(
            data / "images" / "val" / f"{path.stem}.tif",
            image if bands > 1 else image[..., 0],
            photometric="minisblack",
            planarconfig="contig" if bands > 1 else None,
        )
    section, guess = show(data, ranked("0", "1"))
    assert [shape[2] for shape in guess.seen] == [bands, bands]
    assert all(isinstance(block, Picture) for block in section.blocks)


def test_of_huge_images_fewer_are_shown_and_small(tmp_path, show, monkeypatch):
    data = make_shapes(tmp_path, train=1, val=8)
    monkeypatch.setattr(run_report, "PIXELS_SHOWN", 4 * 72 * 96 + 1)
    monkeypatch.setattr(run_report, "SIZE_SHOWN", (20, 30))
    sizes = []
    real = run_report.picture

    def kept(pixels, *args, **options):
        sizes.append(pixels.shape)
        return real(pixels, *args, **options)

    monkeypatch.setattr(run_report, "picture", kept)
    _, guess = show(data, ranked(*"01234567"))
    assert len(guess.seen) in (2, 4)
    assert all(height <= 20 and width <= 4 * 30 + 18 for height, width, _ in sizes)


def test_only_classes_that_are_shown_are_explained(tmp_path, show):
    names = ", ".join(f"c{i}" for i in range(300))
    yaml = f"classes: [{names}]\nimages: images/{{split}}/*.png\nlabels: labels/{{split}}/*.png\n"
    data = make_shapes(tmp_path, train=1, val=2, yaml=yaml)
    section, _ = show(data, ranked("0", "1"))
    for block in section.blocks:
        assert set(block.legend) <= {0, 1, 2, 255}
        assert 0 in block.legend


def test_the_demos_captions_and_files(tmp_path, show):
    data = make_shapes(tmp_path / "data", train=1, val=2)
    section, _ = show(
        data,
        ranked("0", "1"),
        describe=lambda name: f"tile {name}",
        beside=lambda kind, name: tmp_path / f"{kind}_{name}.png",
    )
    assert section.blocks[0].caption.startswith("best: tile 1, mIoU 10.0 %")
    assert (tmp_path / "best_1.png").is_file()
    assert (tmp_path / "worst_0.png").is_file()
