"""Engines for the tests of the routes: one with a real model, one that does as it is told."""

import asyncio

import numpy as np

from ccsnet.predict_config import PredictConfig
from ccsnet.serve.engine import WorkerLostError
from ccsnet.serve.models import Facts, Trained, label_each
from ccsnet.serve.settings import Source
from tests.shapes import CLASSES, COLOURS

FACTS = Facts(name="tiny", classes=CLASSES, colours=COLOURS, channels=3, dataset="shapes")


class HereEngine:
    """The model in this process, an image at a time."""

    state = "ready"
    on_batch = on_restart = None

    def __init__(self, checkpoint):
        self.model = Trained(Source(run=str(checkpoint), config=PredictConfig(), cpu=True))
        self.facts = self.model.facts

    async def label(self, image):
        (result,) = await asyncio.to_thread(label_each, self.model, [image])
        self.on_batch(1, 0.1)
        return result


class TameEngine:
    """Class 1 for every pixel, when it is told to go on.

    Attributes:
        seen: Images that were asked for.
        cancelled: How many of them nobody wants any longer.
    """

    on_batch = on_restart = None

    def __init__(self, waits=False):
        self.facts, self.state, self.waits = FACTS, "ready", waits
        self.seen, self.cancelled = [], 0
        self.answer = None
        self.lost = False
        self._go = []

    async def label(self, image):
        self.seen.append(image)
        if self.waits:
            future = asyncio.get_running_loop().create_future()
            self._go.append((asyncio.get_running_loop(), future))
            try:
                await future
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if self.lost:
            raise WorkerLostError
        return np.ones(image.shape[:2], np.uint8) if self.answer is None else self.answer

    def go_on(self):
        """Answer what waits, and what comes."""
        self.waits = False
        for loop, future in self._go:
            loop.call_soon_threadsafe(lambda f=future: f.done() or f.set_result(None))
