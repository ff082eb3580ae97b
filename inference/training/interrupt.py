"""Ctrl-C, and a scheduler's SIGTERM, that wait for the end of a step.

An interrupt in the middle of an optimizer's step leaves half of the parameters moved. So the first
one sets a flag, which the training loop reads between steps; a second one no longer waits.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped between two steps because the user, or a scheduler, asked for it.

    The parameters are those after the last step. The message says where the state was saved, if
    anywhere, and how to go on.

    Attributes:
        signal: the signal that asked.
    """

    def __init__(self, message: str, signal: signal.Signals = signal.SIGINT) -> None:
        super().__init__(message)
        self.signal = signal


class Interrupt:
    """While entered, a signal sets :attr:`requested` instead of raising. Main thread only.

    A process that ignores the signal (``nohup``) goes on ignoring it, a handler that Python cannot
    put back stays where it is, and so does one that the program has made for SIGTERM.

    Args:
        echo: seconds in which a second signal is taken for the first one, told twice: a launcher
            passes on the Ctrl-C that its terminal has sent to all processes.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.requested: signal.Signals | None = None
        self.echo = echo
        self._since = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and time.monotonic() - self._since >= self.echo:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested, self._since = signal.Signals(number), time.monotonic()

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if previous is not None and previous is not signal.SIG_IGN:
                self._take_over(signal.SIGINT)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._take_over(signal.SIGTERM)
        return self

    def _take_over(self, number: signal.Signals) -> None:
        self._previous[number] = signal.signal(number, self._handle)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())
