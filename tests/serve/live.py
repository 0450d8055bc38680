"""A real server in a process of its own, on a port of this machine's choosing."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Live:
    """A server that runs."""

    def __init__(self, process, url):
        self.process, self.url = process, url
        self.log = []

    def get(self, path, data=None, headers=None, timeout=60):
        """Status, headers and content; of a request that was not answered, None."""
        request = urllib.request.Request(self.url + path, data, headers or {})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def predict(self, picture, output="label", **options):
        """Status and content."""
        headers = {"Content-Type": "image/png"}
        status, _, content = self.get(f"/predict?output={output}", picture, headers, **options)
        return status, content

    def health(self):
        """What the server says of itself."""
        return json.loads(self.get("/health")[2])["status"]

    def worker(self):
        """The process that computes."""
        from tests.processes import descendants

        def command(pid):
            with contextlib.suppress(OSError):
                return Path(f"/proc/{pid}/cmdline").read_bytes()
            return b""

        return next(p for p in descendants(self.process.pid) if b"spawn_main" in command(p))

    def stop(self, number=signal.SIGTERM, timeout=60):
        """Exit status and what was printed."""
        self.process.send_signal(number)
        status = self.process.wait(timeout)
        return status, self.process.stdout.read()


@contextlib.contextmanager
def serving(checkpoint, *options, env=None):
    """A server that is ready."""
    command = [sys.executable, "-m", "ccsnet", "serve", str(checkpoint), "--port", "0", "--cpu"]
    process = subprocess.Popen(
        [*command, *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    log = []
    reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
    reader.start()
    try:
        first = process.stdout.readline()
        assert first.startswith("Serving "), "".join(log)
        assert process.stdout.readline().endswith(
            "/docs says what can be asked. Ctrl-C stops it.\n"
        )
        live = Live(process, first.split()[-1])
        live.log = log
        yield live
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5)
        process.stdout.close()
        process.stderr.close()


def until(condition, seconds=60):
    """Wait for something that another process does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
