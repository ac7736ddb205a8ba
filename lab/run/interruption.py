"""SIGINT (Ctrl-C) and SIGTERM: the run stops between two updates, and says how it goes on."""

import signal
import threading
from contextlib import contextmanager


class Interruption:
    """Both signals as a KeyboardInterrupt, which waits for the end of an update. A second signal does not wait.

    code: what the process exits with. came: whether a signal has come."""

    def __init__(self):
        self.code = 128 + signal.SIGINT
        self.came = False
        self.waiting = False  # an update is under way

    @contextmanager
    def caught(self):
        """Handle the signals in this block. Python allows that in the main thread only; elsewhere nothing changes."""
        before, in_main_thread = {}, threading.current_thread() is threading.main_thread()
        self.code, self.came = 128 + signal.SIGINT, False
        for number in (signal.SIGINT, signal.SIGTERM) if in_main_thread else ():
            before[number] = signal.signal(number, self.handle)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle(self, number, frame):
        second, self.came, self.code = self.came, True, 128 + number
        if second or not self.waiting:
            raise KeyboardInterrupt

    def between(self, steps):
        """Yield the steps one after another. An interruption waits until one is over."""
        self.waiting = True
        try:
            for step in steps:
                yield step
                if self.came:
                    raise KeyboardInterrupt
        finally:
            self.waiting = False


interruption = Interruption()
