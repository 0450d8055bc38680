"""The page in a real Chromium: what a visitor does, and what they then see."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from ccsnet.app import launch
from ccsnet.app.server import create_app
from ccsnet.app.settings import AppSettings
from ccsnet.draw import overlay
from ccsnet.folders import label_folder
from tests.app.browser import ARGUMENTS, CHROMIUM, PHONE, Visitor
from tests.shapes import COLOURS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here"),
]

WIDTH, HEIGHT = 96, 72


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as program:
        browser = program.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def address(trained, run):
    folder = launch.images_in(run.data / "images" / "val")
    with launch.serving(create_app([trained], ["shapes"], folder=folder), launch.listen(0)) as at:
        yield at


@pytest.fixture
def visit(browser):
    """Opens tabs, and checks at the end that nothing went wrong in them."""
    made = []

    def open_tab(address, *arguments, **options):
        made.append(Visitor(browser, address, *arguments, **options))
        return made[-1]

    yield open_tab
    for visitor in made:
        visitor.close()


@pytest.fixture
def visitor(visit, address, picture_file):
    """Someone who has opened the picture."""
    made = visit(address)
    made.open(picture_file)
    return made


@pytest.fixture
def label(trained, picture):
    return trained.predict(picture).label


def inside(label, index):
    """Row and column of a pixel deep inside a class."""
    import cv2

    depth = cv2.distanceTransform((label == index).astype(np.uint8), cv2.DIST_L2, 5)
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    assert depth.max() >= 2
    return int(row), int(column)


def assert_colour(visitor, row, column, expected, tolerance=2):
    found = visitor.colour(*visitor.place(column, row, WIDTH, HEIGHT))
    assert np.abs(np.subtract(found, expected)).max() <= tolerance, (found, expected)


def test_an_upload_is_seen_at_once(visitor, picture, label):
    painted = overlay(picture, label, COLOURS, 0.5)
    for index in np.unique(label):
        row, column = inside(label, index)
        assert_colour(visitor, row, column, painted[row, column])
    visitor.shot("upload")


def test_the_class_under_the_pointer_is_named(visitor, trained, picture, label):
    probs = trained.predict(picture, keep_probs=True).probs
    for index in np.unique(label):
        row, column = inside(label, index)
        visitor.page.mouse.move(*visitor.place(column, row, WIDTH, HEIGHT))
        said = visitor.page.locator(".readout").inner_text()
        assert trained.classes[index] in said
        sure = float(re.search(r"(\d+) %", said)[1]) / 100
        assert abs(sure - probs[:, row, column].max()) < 0.01
        assert f"row {row}, column {column}" in said


def test_the_legend_counts_and_switches(visitor, trained, picture, label):
    page = visitor.page
    index = int(np.bincount(label.ravel()).argmax())
    row, column = inside(label, index)
    item = page.locator("#classes li").first  # The largest stands first.
    assert trained.classes[index] in item.inner_text()
    assert f"{(label == index).mean():.0%}".replace("%", " %") in item.inner_text()

    item.get_by_role("checkbox").uncheck()
    page.mouse.move(0, 0)
    visitor.settle()
    assert_colour(visitor, row, column, picture[row, column])
    visitor.shot("class_off")
    page.click("#all")
    page.mouse.move(0, 0)
    visitor.settle()
    painted = overlay(picture, label, COLOURS, 0.5)
    assert_colour(visitor, row, column, painted[row, column])
    page.click("#none")
    visitor.settle()
    assert page.locator("#classes input:checked").count() == 0
    assert_colour(visitor, row, column, picture[row, column])
    item.get_by_role("button", name="Only").click()
    page.mouse.move(0, 0)
    visitor.settle()
    assert page.locator("#classes input:checked").count() == 1
    assert_colour(visitor, row, column, painted[row, column])


def test_opacity_slides(visitor, picture, label):
    row, column = inside(label, int(label[0, 0]))
    for value in (0, 30, 100):
        visitor.page.locator("#opacity").fill(str(value))
        visitor.settle()
        expected = overlay(picture, label, COLOURS, value / 100)[row, column]
        assert_colour(visitor, row, column, expected)
    visitor.page.keyboard.press("[")
    assert visitor.page.locator("#opacity-value").inner_text() == "90 %"
    visitor.page.keyboard.down("p")
    visitor.settle()
    assert_colour(visitor, row, column, picture[row, column])
    visitor.page.keyboard.up("p")


def test_downloads_are_the_files_of_predict(visitor, trained, picture, picture_file, tmp_path):
    label_folder(trained, [picture_file], tmp_path, save=["index", "color", "overlay"])
    for text, kind in (("index", "index"), ("palette", "color"), ("overlay", "overlay")):
        data, name = visitor.download(text)
        assert name == f"a_picture_{kind}.png"
        assert data == (tmp_path / kind / "a picture.png").read_bytes()
    # The overlay is as it is shown: this opacity, these classes.
    visitor.page.locator("#opacity").fill("80")
    visitor.page.locator("#classes input").first.uncheck()
    first = trained.classes.index(visitor.page.locator("#classes .name").first.inner_text())
    label = trained.predict(picture).label
    shown = overlay(picture, np.where(label == first, 255, label), COLOURS, 0.8)
    data, _ = visitor.download("overlay")
    assert np.array_equal(np.array(Image.open(io.BytesIO(data))), shown)


def test_a_wrong_file_is_said_and_nothing_breaks(visitor, picture_file):
    page = visitor.page
    bad = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image"}
    page.set_input_files("#file", bad)
    page.wait_for_selector("#message", state="visible")
    assert "notes.txt: This is no image" in page.locator("#message").inner_text()
    visitor.shot("wrong_file")
    assert page.locator("#classes li").count() > 0  # What was there before still is.
    visitor.open(picture_file)
    assert page.locator("#message").is_hidden()


def test_too_large_is_said_and_nothing_breaks(visit, trained, picture_file):
    settings = AppSettings(max_megabytes=0.05, max_megapixels=0.01)
    with launch.serving(create_app([trained], settings=settings), launch.listen(0)) as at:
        visitor = visit(at)
        page = visitor.page
        page.set_input_files("#file", {"name": "a.png", "mimeType": "", "buffer": b"x" * 60_000})
        page.wait_for_selector("#message", state="visible")
        assert (
            "a.png: 1 MiB are too many, at most 0 are taken"
            in page.locator("#message").inner_text()
        )
        buffer = io.BytesIO()
        Image.new("RGB", (200, 100)).save(buffer, "PNG")
        page.set_input_files(
            "#file", {"name": "b.png", "mimeType": "", "buffer": buffer.getvalue()}
        )
        page.wait_for_selector("#message >> text=100 x 200 pixels")
        visitor.shot("too_large")
        visitor.open(picture_file)
        visitor.close()


def test_a_click_asks_why(visitor, trained, label):
    page = visitor.page
    row, column = inside(label, int(label[0, 0]))
    before = visitor.colour(*visitor.place(3, 3, WIDTH, HEIGHT))
    page.mouse.click(*visitor.place(column, row, WIDTH, HEIGHT))
    page.wait_for_selector("#why .score")
    text = page.locator("#why").inner_text()
    assert f"Row {row}, column {column}: {trained.classes[label[row, column]]}." in text
    chosen = page.locator(".score[aria-pressed=true]")
    assert trained.classes[label[row, column]] in chosen.inner_text()
    assert page.locator(".score").count() >= 3  # The k relevant ones, and all that was read.
    visitor.settle()
    visitor.shot("why")
    first = visitor.colour(*visitor.place(3, 3, WIDTH, HEIGHT))
    assert first != before  # The heat map covers the classes.
    for button in page.locator(".score[aria-pressed=false]").all()[:1]:
        button.click()
        visitor.settle()
    assert page.locator(".score[aria-pressed=true]").count() == 1
    page.keyboard.press("Escape")
    page.mouse.move(0, 0)
    visitor.settle()
    assert page.locator("#why").is_hidden()
    assert visitor.colour(*visitor.place(3, 3, WIDTH, HEIGHT)) == before


def test_all_of_it_goes_by_keyboard(visit, address, label):
    visitor = visit(address)
    page = visitor.page
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip"
    for _ in range(20):
        page.keyboard.press("Tab")
        focused = page.evaluate("() => document.activeElement.getAttribute('aria-label')")
        if focused and focused.startswith("Example"):
            break
    page.keyboard.press("Enter")
    visitor.wait()
    page.locator("canvas").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    assert "per cent" in page.locator("#spoken").inner_text()
    before = page.locator(".where").inner_text()
    page.keyboard.press("Shift+ArrowDown")
    assert page.locator(".where").inner_text() != before
    page.keyboard.press("Enter")
    page.wait_for_selector("#why .score")
    visitor.shot("keyboard")
    page.keyboard.press("Escape")
    assert page.locator("#why").is_hidden()
    page.keyboard.press("?")
    assert page.locator("#keys").is_visible()
    page.keyboard.press("Escape")
    assert page.locator("#keys").is_hidden()
    box = page.locator("#classes input").first
    box.focus()
    page.keyboard.press("Space")
    assert not box.is_checked()
    page.keyboard.press("a")
    assert box.is_checked()
    page.keyboard.press("g")
    assert page.locator("#gallery").is_visible()
    # What has the focus can be seen.
    page.locator("#run-files").focus()
    outline = "() => getComputedStyle(document.activeElement).outlineStyle"
    page.keyboard.press("Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(outline) == "solid"


def test_the_wheel_zooms_and_a_drag_pans(visitor, label):
    page = visitor.page
    row, column = 20, 30
    x, y = visitor.place(column, row, WIDTH, HEIGHT)
    page.mouse.move(x, y)
    page.mouse.wheel(0, -500)
    visitor.settle()
    page.mouse.move(x + 1, y)
    assert f"row {row}, column {column}" in page.locator(".where").inner_text()
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=4)
    page.mouse.up()
    assert page.locator("#why").is_hidden()  # A drag is no click.
    page.mouse.move(x + 41, y)
    assert f"row {row}, column {column}" in page.locator(".where").inner_text()
    page.keyboard.press("0")
    visitor.settle()
    page.mouse.move(*visitor.place(5, 6, WIDTH, HEIGHT))
    assert "row 6, column 5" in page.locator(".where").inner_text()


def test_drop_and_paste(visit, address, picture_file):
    visitor = visit(address)
    page = visitor.page
    send = """([data, kind]) => {
        const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
        const files = new DataTransfer();
        files.items.add(new File([bytes], `${kind}.png`, { type: "image/png" }));
        const event = kind === "drop"
            ? new DragEvent("drop", { dataTransfer: files, bubbles: true, cancelable: true })
            : new ClipboardEvent("paste", { clipboardData: files, bubbles: true });
        document.body.dispatchEvent(event);
    }"""
    data = base64.b64encode(picture_file.read_bytes()).decode()
    for kind in ("drop", "paste"):
        page.evaluate(send, [data, kind])
        page.wait_for_selector(f"#facts >> text={kind}.png")
        visitor.wait()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_sideways_scrolling(visit, address, picture_file, scheme):
    options = {"has_touch": True, "device_scale_factor": 2, "color_scheme": scheme}
    visitor = visit(address, PHONE, **options)
    page = visitor.page
    width = "() => document.documentElement.scrollWidth"
    assert page.evaluate(width) <= PHONE[0]
    visitor.open(picture_file)
    page.touchscreen.tap(*visitor.place(40, 30, WIDTH, HEIGHT))
    page.wait_for_selector("#why .score")
    assert "row 30, column 40" in page.locator(".readout").inner_text()
    assert page.evaluate(width) <= PHONE[0]
    visitor.shot(f"phone_{scheme}", whole=True)
    page.click("#to-gallery")
    assert page.evaluate(width) <= PHONE[0]


def contrast(one, other):
    """Of two colours. Source: WCAG 2.2, relative luminance and contrast ratio."""

    def luminance(text):
        parts = np.array([float(p) for p in text[text.index("(") + 1 : -1].split(",")[:3]]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_in_both_lights(visit, address, picture_file, theme):
    visitor = visit(address, color_scheme=theme)
    page = visitor.page
    visitor.open(picture_file)
    style = "([what, of]) => getComputedStyle(document.querySelector(what))[of]"
    ground = page.evaluate(style, ["#legend", "backgroundColor"])
    for words in ("#classes .name", "#facts", "#classes .only", "#downloads a", "h2"):
        assert contrast(page.evaluate(style, [words, "color"]), ground) >= 4.5
    pressed = [page.evaluate(style, ["#to-picture", of]) for of in ("color", "backgroundColor")]
    assert contrast(*pressed) >= 4.5
    visitor.shot(f"theme_{theme}")


def test_the_theme_is_chosen_and_remembered(visit, address):
    visitor = visit(address, color_scheme="light")
    page = visitor.page
    ground = "() => getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    for _ in range(2):  # As the system, light, dark.
        page.click("#theme")
    assert page.evaluate(ground) != light
    page.reload()
    page.wait_for_selector("body.ready")
    assert page.evaluate(ground) != light


def test_two_models_move_together(visit, trained, other, picture_file, picture, label):
    app = create_app([trained, other], ["learnt", "drawn"])
    with launch.serving(app, launch.listen(0)) as at:
        visitor = visit(at)
        page = visitor.page
        visitor.open(picture_file)
        second = other.predict(picture).label
        share = (label != second).mean()
        assert page.locator("canvas").count() == 2
        assert f"differ on {share:.0%}".replace("%", " %") in page.locator("#facts").inner_text()
        page.mouse.move(*visitor.place(40, 30, WIDTH, HEIGHT))
        said = page.locator(".readout").all_inner_texts()
        for text, one, model in zip(said, (label, second), (trained, other), strict=True):
            assert model.classes[one[30, 40]] in text
        visitor.shot("compare")
        page.mouse.wheel(0, -300)
        visitor.settle()
        page.mouse.move(*visitor.place(40, 30, WIDTH, HEIGHT))
        where = page.locator(".where").all_inner_texts()
        assert where[0] == where[1]
        page.click("#fit")
        page.keyboard.press("d")
        visitor.settle()
        row, column = map(int, np.argwhere(label != second)[0])
        expected = 0.5 * picture[row, column] + 0.5 * np.array((230, 0, 150))
        assert_colour(visitor, row, column, expected)
        visitor.shot("difference")
        page.mouse.click(*visitor.place(40, 30, WIDTH, HEIGHT, pane=1))
        page.wait_for_selector("#why >> text=models with the head ccs")
        visitor.close()


def test_the_gallery_shows_the_least_sure_first(visit, address, picture_file, trained, run):
    visitor = visit(address)
    page = visitor.page
    page.click("#to-gallery")
    page.click("#run-folder")
    page.wait_for_selector("#run-text >> text=4 of 4 images labelled.")
    unsure = page.locator("#tiles li").evaluate_all(
        "(all) => all.map((x) => x.dataset.uncertainty)"
    )
    unsure = [float(one) for one in unsure]
    assert len(unsure) == 4
    assert unsure == sorted(unsure, reverse=True)
    images = launch.images_in(run.data / "images" / "val")
    probs = [trained.predict(path, keep_probs=True).probs.astype(np.float32) for path in images]
    expected = sorted((1 - one.max(0).mean() for one in probs), reverse=True)
    assert np.allclose(unsure, expected, atol=1e-3)
    visitor.shot("gallery")
    name = page.locator(".tile b").first.inner_text()
    page.locator(".tile").first.click()
    visitor.wait()
    assert name in page.locator("#facts").inner_text()
    # Several files go there too, one that is no image among them.
    bad = {"name": "bad.png", "mimeType": "image/png", "buffer": b"no image"}
    good = {"name": "g.png", "mimeType": "image/png", "buffer": picture_file.read_bytes()}
    page.set_input_files("#files", [bad, good])
    page.wait_for_selector("#run-text >> text=1 of 2 images labelled, 1 could not be.")
    assert page.locator(".tile").last.inner_text().startswith("bad.png")
    page.locator(".tile").first.click()
    visitor.wait()


def test_hundreds_of_classes(visit, many, picture_file, picture):
    with launch.serving(create_app([many]), launch.listen(0)) as at:
        visitor = visit(at)
        visitor.open(picture_file)
        label = many.predict(picture).label
        present = len(np.unique(label))
        assert visitor.page.locator("#classes li").count() == present
        absent = visitor.page.locator("#absent summary").inner_text()
        assert absent == f"{300 - present} not in the picture"
        painted = overlay(picture, label, many.colours, 0.5)
        assert_colour(visitor, 36, 48, painted[36, 48])
        visitor.close()


def test_the_gallery_is_cancelled(visit, address, picture_file):
    visitor = visit(address)
    page = visitor.page
    page.click("#to-gallery")
    one = {"mimeType": "image/png", "buffer": picture_file.read_bytes()}
    page.set_input_files("#files", [one | {"name": f"{i}.png"} for i in range(200)])
    page.wait_for_selector(".tile")
    page.click("#run-stop")
    page.wait_for_selector("#run-text >> text=cancelled")
    assert 0 < page.locator(".tile").count() < 200
    assert page.locator("#run-files").is_enabled()


def test_large_images_show_progress_and_are_cancelled(visit, address, tmp_path):
    visitor = visit(address)
    page = visitor.page
    pixels = np.random.default_rng(0).integers(0, 255, (2400, 3200, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "large.png", compress_level=1)
    page.set_input_files("#file", str(tmp_path / "large.png"))
    page.wait_for_selector("#work-text >> text=/[1-9][0-9]* of [0-9]+ windows/", timeout=60_000)
    visitor.shot("progress")
    page.click("#cancel")
    page.wait_for_selector("#work", state="hidden")
    assert page.locator("#panes").is_hidden()
    page.locator(".example").first.click()
    visitor.wait()
    assert "large" not in page.locator("#facts").inner_text()


def test_a_server_that_is_gone_is_said(visit, trained, picture_file):
    with launch.serving(create_app([trained]), launch.listen(0)) as at:
        visitor = visit(at)
    visitor.page.set_input_files("#file", str(picture_file))
    visitor.page.wait_for_selector("#message >> text=Is `ccsnet app` still running?")
    assert all("ERR_CONNECTION_REFUSED" in one for one in visitor.complaints)
    visitor.complaints.clear()
