"""A real Chromium and the page that it shows, for the tests that need both."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parents[2]
SHOTS = ROOT / "build" / "screenshots"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESK, PHONE = (1280, 800), (375, 740)


class Visitor:
    """A tab with the page in it, and all that it complained of or asked of others."""

    def __init__(self, browser, address, size=DESK, **options):
        width, height = size
        self.context = browser.new_context(
            viewport={"width": width, "height": height}, accept_downloads=True, **options
        )
        self.address = address
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.complaints = []
        self.elsewhere = []
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", self._asked)
        self.page.goto(address)
        self.page.wait_for_selector("body.ready")

    def _heard(self, message):
        # That the tests read a canvas often is no fault of the page's.
        if message.type in ("error", "warning") and "willReadFrequently" not in message.text:
            self.complaints.append(message.text)

    def _asked(self, request):
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.elsewhere.append(request.url)

    def open(self, *files):
        """Choose files as with the button; wait for what comes of one."""
        self.page.set_input_files("#file", list(files))
        self.wait()

    def wait(self):
        """Until nothing is at work and a picture is there."""
        self.page.wait_for_selector("body.has-picture #panes", state="visible")
        self.page.wait_for_selector("#work", state="hidden")
        self.settle()

    def settle(self):
        """Until what has changed is drawn."""
        self.page.evaluate(
            "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )

    def place(self, column, row, width, height, pane=0):
        """Where a pixel of an image of a size is on the screen, when all of it is shown."""
        box = self.page.locator("canvas").nth(pane).bounding_box()
        scale = min(box["width"] / width, box["height"] / height)
        x = box["x"] + box["width"] / 2 + (column + 0.5 - width / 2) * scale
        y = box["y"] + box["height"] / 2 + (row + 0.5 - height / 2) * scale
        return x, y

    def colour(self, x, y, pane=0):
        """The colour of the canvas at a point of the screen."""
        return self.page.evaluate(
            """([x, y, pane]) => {
                const canvas = document.querySelectorAll("canvas")[pane];
                const box = canvas.getBoundingClientRect();
                const scale = canvas.width / box.width;
                const at = [Math.floor((x - box.left) * scale), Math.floor((y - box.top) * scale)];
                return [...canvas.getContext("2d").getImageData(...at, 1, 1).data].slice(0, 3);
            }""",
            [x, y, pane],
        )

    def shot(self, name, whole=False):
        """Write a picture of the page to the build folder."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png", full_page=whole)

    def download(self, text):
        """The bytes of what a link gives, and how the file is called."""
        with self.page.expect_download() as found:
            self.page.get_by_role("link", name=text).first.click()
        return Path(found.value.path()).read_bytes(), found.value.suggested_filename

    def close(self):
        """End it; nothing may have gone wrong on the way."""
        self.context.close()
        assert self.complaints == []
        assert self.elsewhere == []
