"""Ctrl-C that waits for the end of a step.

An interrupt in the middle of an optimizer's step leaves half of the parameters moved. So the first
one sets a flag, which the training loop reads between steps; a second one no longer waits.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Training stopped between two steps because the user asked for it.

    The parameters are those after the last step. The message says where the state was saved, if
    anywhere, and how to go on.
    """


class Interrupt:
    """While entered, Ctrl-C sets :attr:`requested` instead of raising. Main thread only.

    A process that ignores the signal (``nohup``) goes on ignoring it, and a handler that Python
    cannot put back stays where it is.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if previous is not None and previous is not signal.SIG_IGN:
                self._previous = previous
                signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            self._previous = None
