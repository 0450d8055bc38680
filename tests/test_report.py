"""The report is one file that opens anywhere and says what was measured."""

import base64
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest

from ccsnet import report, run_report
from ccsnet.errors import InputError
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


def test_class_table_has_all_that_was_measured(metrics):
    assert report.class_table(metrics).head == [
        *("class", "share of pixels %", "IoU %", "Dice %", "accuracy %", "precision %")
    ]
    more = replace(
        metrics,
        per_image=np.array([[[6, 11, 0], [8, 12, 0], [7, 13, 0]]]),
        boundary=np.array([[1, 0, 0], [2, 0, 0], [3, 0, 0]]),
    )
    table = report.class_table(more, metrics)
    assert table.head[2:4] == ["IoU %", "95 % interval"]
    assert table.head[-2:] == ["boundary IoU %", "IoU % of baseline"]
    by_name = {row[0]: row for row in table.rows}
    assert by_name["road"][3] == "66.7 to 66.7"  # Of one image.
    assert by_name["never"][3] == "-"
    assert [by_name[name][-2] for name in (*CLASSES, "mean")] == ["25.0", "-", "-", "25.0"]
    assert by_name["road"][6] == "85.7"  # Precision: 6 of 7.


def test_diagram_of_calibration(metrics):
    pixels = np.zeros(10, int)
    pixels[[4, 9]] = 30, 70
    right = np.zeros(10, int)
    right[[4, 9]] = 15, 70
    confidence = np.zeros(10, int)
    confidence[[4, 9]] = 30 * 0.45 * 2**24, 70 * 0.95 * 2**24
    more = replace(metrics, calibration=np.stack([pixels, right, confidence]))
    left, below = report.reliability_plot(more).axes
    heights = [bar.get_height() for bar in left.patches]
    assert (heights[4], heights[9]) == (50, 100)
    assert np.isnan(heights[:4]).all()
    assert [bar.get_height() for bar in below.patches][-1] == 70
    report.plot(report.reliability_plot(more), "drawn without a warning")
    with pytest.raises(InputError, match="not measured"):
        report.reliability_plot(metrics)
    assert run_report.calibration_sections(metrics) == []
    (section,) = run_report.calibration_sections(more)
    assert "error is 5.0 %" in section.texts[0]
    assert "80.0 % sure" in section.texts[0]  # 0.3 x 45 % + 0.7 x 95 %
    assert "85.0 % of the pixels are right" in section.texts[0]


def test_words_are_on_the_left_and_numbers_on_the_right(tmp_path, metrics):
    tables = [report.confusion_table(metrics), report.class_table(metrics)]
    page = write(tmp_path / "r.html", [report.Section("S", [], tables)])
    assert '<td class="words">road</td><td class="words">sky &amp; &lt;sea&gt;</td><td>25' in page
    assert '<td class="words">road</td><td>40.0</td>' in page


def test_plots_draw(tmp_path, metrics):
    rows = [{"step": float(s), "loss": 1 / s} for s in range(1, 200)]
    validations = [{"step": 100.0, "miou": 0.4}, {"step": 199.0, "miou": 0.5}]
    for figure in (
        report.training_curve(rows, validations, 0.4, "colour alone"),
        report.confusion_plot(metrics),
    ):
        made = report.plot(figure, "a plot", beside=tmp_path / "plot.png")
        assert made.source.startswith("data:image/png;base64,")
        assert cv2.imread(str(tmp_path / "plot.png")).std() > 0
    report.plot(report.training_curve(rows[:1], []), "a run of one step, not validated")


def test_of_many_classes_those_with_mistakes_are_plotted():
    num = report.NAMED_CLASSES + 20
    confusion = np.diag(np.full(num, 100))
    confusion[40, 45] = 7
    metrics = Metrics(classes=[f"c{i}" for i in range(num)], confusion=confusion)
    (axes,) = report.confusion_plot(metrics).axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert len(names) == report.NAMED_CLASSES
    assert {"c40", "c45"} < set(names)
    report.plot(report.confusion_plot(metrics), "no formula: $a$")


def test_most_frequent_mistakes(metrics):
    table = report.confusion_table(metrics)
    assert table.rows == [
        ["road", "sky & <sea>", "25.0", "10.0"],
        ["sky & <sea>", "road", "8.3", "5.0"],
    ]


def test_a_legend_of_some_classes_and_code(tmp_path):
    picture = report.picture(np.zeros((4, 6, 3), np.uint8), "a picture", legend=(0,))
    page = write(tmp_path / "r.html", [report.Section("S", [], [picture, report.Code("a < b")])])
    assert "rgb(128, 64, 128)" in page
    assert "rgb(0, 0, 255)" not in page
    assert "<pre><code>a &lt; b</code></pre>" in page
