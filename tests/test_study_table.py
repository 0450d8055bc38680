"""The figures of a study, computed again by hand, and their place in a page."""

import numpy as np
import pytest

from ccsnet.errors import InputError
from ccsnet.metrics import Metrics
from ccsnet.study_cells import cells_of
from ccsnet.study_cost import Cost
from ccsnet.study_file import read_study
from ccsnet.study_results import results
from ccsnet.study_stats import mean_interval, paired_bootstrap
from ccsnet.study_table import check_section, markdown, write_section
from tests.study_program import settings, write

CLASSES = ("sky", "road|lane", "pole")
STUDY = """
title: Made up
data: streets
recipe: own
seeds: [0, 1, 5]
baseline: base
report: test
match: {by: gmacs}
rows:
  base: {head: segformer}
  ours: {head: ccs}
  never: {head: fcn}
"""


def confusions(row, seed):
    """Of four images; only the first two have a pole."""
    rng = np.random.default_rng((len(row), ord(row[0]), seed))
    made = rng.integers(1, 60, (4, 3, 3))
    made[2:, 2] = made[2:, :, 2] = 0
    return made


def finish(cell, order=(0, 1, 2, 3)):
    """What a finished cell leaves."""
    cell.note_start()
    found = confusions(cell.row, cell.seed)
    metrics = Metrics(classes=CLASSES, confusion=found.sum(0), images=4)
    images = []
    for i in order:
        counts = np.stack([np.diag(found[i]), found[i].sum(1), found[i].sum(0)])
        present = [c for c in range(3) if counts[1:, c].any()]
        images.append(
            {"image": f"image {i}", "counts": {CLASSES[c]: counts[:, c].tolist() for c in present}}
        )
    write(cell.figures, {**metrics.to_dict(), "per_image": images})
    write(cell.out / "best.json", {"step": 40 + cell.seed, "miou": 0.1 * (1 + cell.seed)})
    write(cell.out / "config.json", settings())
    (cell.out / "log.csv").write_text("step,seconds,images_per_second\n1,90.0,2.0\n")


@pytest.fixture
def study(tmp_path):
    (tmp_path / "made.yaml").write_text(STUDY)
    return read_study(tmp_path / "made.yaml")


@pytest.fixture
def cells(study, tmp_path):
    found = cells_of(study, tmp_path / "out")
    for cell in found:
        if cell.row == "base" or (cell.row == "ours" and cell.seed != 1):
            # Images are told worst first, which is not the same order in every run.
            finish(cell, np.random.default_rng(cell.seed).permutation(4).tolist())
    return found


def miou(row, seed):
    return Metrics(classes=CLASSES, confusion=confusions(row, seed).sum(0)).miou


def test_figures_by_hand(study, cells):
    costs = {name: Cost(2_500_000, 1.25) for name in study.rows}
    found = results(study, cells, costs)
    ours, base, never = (found["rows"][name] for name in ("ours", "base", "never"))
    assert ours["seeds"] == [0, 5]
    assert ours["miou"] == pytest.approx(np.mean([miou("ours", s) for s in (0, 5)]), abs=1e-6)
    mious = [miou("base", s) for s in (0, 1, 5)]
    assert base["miou"] == pytest.approx(np.mean(mious), abs=1e-6)
    assert (base["least"], base["greatest"]) == pytest.approx((min(mious), max(mious)), abs=1e-6)
    assert base["deviation"] == pytest.approx(np.std(mious, ddof=1), abs=1e-6)
    assert base["val_miou"] == pytest.approx((0.1 + 0.2 + 0.6) / 3, abs=1e-6)
    assert base["minutes"] == 1.5
    for c, name in enumerate(CLASSES):
        tables = [Metrics(classes=CLASSES, confusion=confusions("ours", s).sum(0)) for s in (0, 5)]
        assert ours["iou"][name] == pytest.approx(np.mean([t.iou[c] for t in tables]), abs=1e-6)
    assert (base["difference"], never["difference"], never["miou"]) == (None, None, None)
    assert never["seeds"] == []

    difference = ours["difference"]
    assert difference["seeds"] == [0, 5]
    each = [miou("ours", s) - miou("base", s) for s in (0, 5)]
    assert difference["each"] == pytest.approx(each, abs=2e-6)
    assert difference["over_seeds"] == pytest.approx(
        [float(end) for end in mean_interval(difference["each"]) or ()], abs=1e-4
    )
    counts = {
        row: [
            np.stack([found.diagonal(axis1=1, axis2=2), found.sum(2), found.sum(1)], 1)
            for found in (confusions(row, seed) for seed in (0, 5))
        ]
        for row in ("ours", "base")
    }
    expected = [float(end) for end in paired_bootstrap(counts["ours"], counts["base"])]
    assert difference["over_images"] == pytest.approx(expected, abs=1e-6)


def test_the_order_of_images_does_not_show(study, cells):
    before = results(study, cells, {})
    for cell in cells:
        if cell.state == "done":
            finish(cell, (3, 1, 0, 2))
    assert results(study, cells, {}) == before


def test_other_images_have_no_interval(study, cells):
    """A split that changed between runs is compared by its mIoU alone."""
    finish(cells[0], (0, 1, 2))
    found = results(study, cells, {})["rows"]["ours"]["difference"]
    assert found["over_images"] is None
    assert found["over_seeds"] is not None


def test_the_tables(study, cells):
    costs = {name: Cost(2_500_000, 1.25) for name in study.rows}
    timing = {"milliseconds": {"ours": 123.4}, "images": 4, "rounds": 9}
    timing |= {"machine": "a machine", "commit": "abc"}
    text = markdown(results(study, cells, costs, timing))
    lines = text.splitlines()
    assert lines[0].startswith("**Made up.** Data `streets`, seeds 0, 1, 5. Each run's checkpoint")
    assert "come nearest to those of `base`" in lines[0]
    table = [line for line in lines if line.startswith("|")]
    assert len({line.replace(r"\|", "").count("|") for line in table[:5]}) == 1
    ours = next(line for line in table if line.startswith("| `ours` | 2 of 3 | **"))
    assert "| 2.50 | 1.25 | 123 | 1.5 | " in ours
    never = next(line for line in table if line.startswith("| `never` |"))
    assert never.startswith("| `never` | 0 of 3 | not run | - | - | - | - |")
    assert never.endswith("| not measured | - | - |")
    classes = table[table.index(r"| row | sky | road\|lane | pole |") :]
    # A mean over fewer seeds does not pass for one over all.
    assert [line.split(" | ")[0] for line in classes[2:]] == ["| `base`", "| `ours` (2 of 3)"]
    assert text.count("ccsnet train streets --recipe own") == 3
    assert "--seed 0 --out RUN" in text
    assert "(the other seeds: 1, 5)" in text
    assert "NaN" not in text
    assert "nan" not in text


def test_one_split_for_both_is_said(tmp_path):
    (tmp_path / "made.yaml").write_text(STUDY.replace("report: test", "report: val"))
    study = read_study(tmp_path / "made.yaml")
    text = markdown(results(study, cells_of(study, tmp_path), {}))
    assert "selected and reported on the same split, `val`" in text
    assert text.count("val mIoU") == 1


PAGE = """# Results
<!-- study: other -->
kept
<!-- end -->
Before.
<!-- study: made -->
old text
<!-- end -->
After.
"""


def test_a_mark_in_the_text_is_no_mark(tmp_path):
    page = tmp_path / "results.md"
    said = "The tables stand between `<!-- study: made -->` and `<!-- end -->`.\n"
    page.write_text(said + PAGE)
    write_section(page, "made", "new text")
    assert page.read_text() == said + PAGE.replace("old text", "\nnew text\n")


def test_a_section_of_a_page(tmp_path):
    page = tmp_path / "results.md"
    page.write_text(PAGE)
    check_section(page, "made")
    assert page.read_text() == PAGE
    for text in ("new\n\n| a \\1 |\n", "newer"):
        write_section(page, "made", text)
        expected = f"<!-- study: made -->\n\n{text.strip()}\n\n<!-- end -->"
        assert page.read_text() == PAGE.replace(
            "<!-- study: made -->\nold text\n<!-- end -->", expected
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# Results\n", "has no section"),
        (PAGE.replace("study: made", "study: made2"), "has no section"),
        (PAGE + PAGE, "has two sections"),
        ("<!-- study: made -->\ntext\n", "has no section"),
        ("<!-- study: made -->\n<!-- study: other -->\n<!-- end -->\n", "has no section"),
    ],
)
def test_marks_that_are_missing(tmp_path, text, message):
    page = tmp_path / "results.md"
    page.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        write_section(page, "made", "new")
    assert "<!-- study: made -->\n<!-- end -->" in str(caught.value)
    assert page.read_text() == text
