"""The report is one file that opens anywhere and says what was measured."""

import base64
import re

import cv2
import numpy as np
import pytest

from ccsnet import report
from ccsnet.metrics import Metrics

CLASSES = ("road", "sky & <sea>", "never")
COLOURS = ((128, 64, 128), (0, 0, 255), (255, 255, 0))


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(
        classes=CLASSES, confusion=np.array([[6, 2, 0], [1, 11, 0], [0, 0, 0]]), images=2
    )


def write(path, sections) -> str:
    report.write_report(
        path, title="T", lead="L", classes=CLASSES, colours=COLOURS, sections=sections
    )
    return path.read_text("utf-8")


def test_page_links_to_nothing_and_escapes_names(tmp_path, metrics):
    picture = report.picture(np.zeros((4, 6, 3), np.uint8), "a picture", legend=True)
    section = report.Section("S", ["text"], [report.class_table(metrics), picture])
    page = write(tmp_path / "report.html", [section])
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in page
    assert "sky &amp; &lt;sea&gt;" in page
    assert "<sea>" not in page
    assert "rgb(128, 64, 128)" in page


def test_pictures_are_inside_the_page_and_beside_it(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (50, 300, 3), np.uint8)
    beside = tmp_path / "wide.png"
    made = report.picture(pixels, "wide", beside=beside, max_width=100)
    inside = base64.b64decode(made.source.removeprefix("data:image/png;base64,"))
    decoded = cv2.imdecode(np.frombuffer(inside, np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (17, 100, 3)
    np.testing.assert_array_equal(cv2.imread(str(beside))[..., ::-1], pixels)


def test_class_table_shows_absent_classes_as_a_dash_and_leaves_them_out(metrics):
    table = report.class_table(metrics, metrics, "other")
    assert table.head[-1] == "IoU % of other"
    by_name = {row[0]: row for row in table.rows}
    assert by_name["road"][2] == by_name["road"][-1] == "66.7"
    assert by_name["never"][2] == "-"
    mean = (6 / 9 + 11 / 14) / 2
    assert by_name["mean"][2] == f"{100 * mean:.1f}"


def test_plots_draw(tmp_path, metrics):
    rows = [{"step": float(s), "loss": 1 / s} for s in range(1, 200)]
    validations = [{"step": 100.0, "miou": 0.4}, {"step": 199.0, "miou": 0.5}]
    for figure in (
        report.training_curve(rows, validations, 0.4),
        report.confusion_plot(metrics),
    ):
        made = report.plot(figure, "a plot", beside=tmp_path / "plot.png")
        assert made.source.startswith("data:image/png;base64,")
        assert cv2.imread(str(tmp_path / "plot.png")).std() > 0
    report.plot(report.training_curve(rows[:1], []), "a run of one step, not validated")


def test_comparison_is_image_truth_prediction_errors():
    image = np.full((2, 3, 3), 7, np.uint8)
    label = np.array([[0, 1, 255], [0, 1, 1]], np.uint8)
    prediction = np.array([[0, 0, 0], [0, 1, 1]], np.uint8)
    row = report.comparison(image, label, prediction, COLOURS)
    assert row.shape == (2, 4 * 3 + 3 * report.GAP, 3)
    step = 3 + report.GAP
    np.testing.assert_array_equal(row[:, :3], image)
    assert tuple(row[0, step + 1]) == COLOURS[1]
    assert tuple(row[0, step + 2]) == (0, 0, 0)
    assert tuple(row[0, 2 * step + 1]) == COLOURS[0]
    right, wrong, ignored = row[0, 3 * step : 3 * step + 3]
    assert tuple(wrong) == (200, 30, 30)
    assert tuple(right) != tuple(wrong) != tuple(ignored)


def test_mark_leaves_the_image_alone():
    image = np.zeros((40, 40, 3), np.uint8)
    assert report.mark(image, 20, 20).any()
    assert not image.any()
