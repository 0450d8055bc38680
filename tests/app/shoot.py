"""Make docs/images/app.jpg: python -m tests.app.shoot RUN, of a run of `ccsnet demo`."""

import io
import sys

from PIL import Image
from playwright.sync_api import sync_playwright

from ccsnet.app import launch
from ccsnet.app.server import create_app
from ccsnet.predict import load
from tests.app.browser import ARGUMENTS, CHROMIUM, ROOT, Visitor

EXAMPLE, PLACE, SIDE = 4, (75, 190), 300  # India; inland; pixels of a tile.


def shoot(run: str) -> None:
    """Open an example of the Earth, ask why at a pixel, and keep what is seen."""
    app = create_app([load(run, "cpu")], ["demo"])
    with launch.serving(app, launch.listen(0)) as address, sync_playwright() as program:
        browser = program.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        visitor = Visitor(browser, address, (1180, 760))
        visitor.page.locator(".example").nth(EXAMPLE).click()
        visitor.wait()
        visitor.page.wait_for_timeout(500)  # Small pictures are read one after the other.
        row, column = PLACE
        visitor.page.mouse.click(*visitor.place(column, row, SIDE, SIDE))
        visitor.page.wait_for_selector("#why .score")
        visitor.settle()
        data = visitor.page.screenshot()
        visitor.close()
        browser.close()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture.save(ROOT / "docs" / "images" / "app.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    shoot(sys.argv[1])
