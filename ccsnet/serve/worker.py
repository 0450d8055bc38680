"""The process that owns the model: jobs come through a pipe, label maps go back through it.

It is a process of its own so that its end, whatever ends it, is not the server's: the system kills
the largest process when memory runs out. What goes through the pipe is told by its first word:

to the worker   label NUMBER IMAGE, cancel NUMBER, stop 0
from it         ready FACTS, failed TEXT; batch SIZE SECONDS, done NUMBER RESULT
"""

import contextlib
import logging
import os
import threading
import time
from multiprocessing.connection import Connection

from ccsnet.errors import InputError
from ccsnet.memory import keep_freed_memory
from ccsnet.serve.batching import Job, Waiting
from ccsnet.serve.models import Model, label_each, open_model
from ccsnet.serve.settings import Source
from ccsnet.stopping import ignore_stop_signals

LOG = logging.getLogger("ccsnet.serve")


def work(connection: Connection, source: Source) -> None:
    """Label what comes, until the other end of the pipe is closed."""
    # Ctrl-C and a service manager tell every process; this one ends when the server has finished.
    ignore_stop_signals()
    keep_freed_memory()
    with contextlib.suppress(BrokenPipeError):  # Where the server ended without a word.
        try:
            model = open_model(source)
        except (InputError, OSError, FloatingPointError) as error:
            connection.send(("failed", str(error)))
            return
        connection.send(("ready", model.facts))
        waiting = Waiting(source.max_wait, model.at_once)
        threading.Thread(target=_listen, args=(connection, model, waiting), daemon=True).start()
        while (batch := waiting.next_batch()) is not None:
            started = time.perf_counter()
            results = label_each(model, [job.image for job in batch])
            connection.send(("batch", len(batch), time.perf_counter() - started))
            for job, result in zip(batch, results, strict=True):
                connection.send(("done", job.number, result))


def _listen(connection: Connection, model: Model, waiting: Waiting) -> None:
    """Put in what comes, while the network computes."""
    try:
        while True:
            what, number, *rest = connection.recv()
            if what == "stop":
                os._exit(0)
            if what == "cancel":
                waiting.cancel(number)
                continue
            (image,) = rest
            waiting.put(Job(number=number, image=image, key=model.key(image), came=waiting.clock()))
    except (EOFError, OSError):  # Nobody waits for anything any longer.
        os._exit(0)
    except Exception:  # A worker that no longer listens would look ready for ever.
        LOG.exception("The worker cannot take what comes.")
        os._exit(1)
