"""Work that is done side by side: a queue for each lane, a thread for each queue, one user who may interrupt."""

import contextlib
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Generic, TypeVar

Job = TypeVar("Job")


class Lanes(Generic[Job]):
    """Queues of jobs, each worked off in a thread of its own.

    What a lane that goes out of service leaves undone is taken over by the others when their own is done; so is what
    waits in a lane that has more to do, where it may be moved.

    Args:
        queues: the jobs of each lane, in their order.
        work: does one job of a lane; False where nothing more can be done in that lane. Whatever it raises ends all.
        wanted: whether a job is still to be done, asked before it begins.
        ready: whether it may begin by now; it waits for jobs that come before it, never for later ones.
        may_move: whether a job that waits in one lane (the first number) may be done in another.
    """

    def __init__(
        self,
        queues: Sequence[Sequence[Job]],
        work: Callable[[int, Job], bool],
        *,
        wanted: Callable[[Job], bool] = lambda _job: True,
        ready: Callable[[Job], bool] = lambda _job: True,
        may_move: Callable[[Job, int, int], bool] = lambda _job, _lane, _other: False,
    ) -> None:
        self._queues = [deque(queue) for queue in queues]
        self._left: deque[Job] = deque()
        self._work = work
        self._wanted = wanted
        self._ready = ready
        self._may_move = may_move
        self._running = 0
        self._changed = threading.Condition()
        self._ended = False
        self._error: BaseException | None = None
        self.interrupts = 0

    def run(self) -> None:
        """Do all of it; returns when no lane works any more.

        Raises:
            KeyboardInterrupt: the user asked for the end.
            BaseException: what the first job to fail raised, once the others have ended.
        """
        threads = [
            threading.Thread(target=self._walk, args=(lane,), name=f"lane-{lane}") for lane in range(len(self._queues))
        ]
        with self._signals_count():
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.2)
                    if self.interrupts:
                        self.end()
        if self.interrupts:
            raise KeyboardInterrupt
        if self._error is not None:
            raise self._error

    def end(self) -> None:
        """Begin no more jobs; those that are being done go on."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def give_back(self, job: Job) -> None:
        """Leave a job that could not be begun to whichever lane is free next."""
        with self._changed:
            self._left.append(job)
            self._changed.notify_all()

    def _walk(self, lane: int) -> None:
        while (job := self._take(lane)) is not None:
            usable = False
            try:
                usable = self._work(lane, job)
            except BaseException as error:  # the main thread raises it
                with self._changed:
                    self._error = self._error or error
                    self._ended = True
            finally:
                with self._changed:
                    self._running -= 1
                    if not usable:
                        self._left.extend(self._queues[lane])
                        self._queues[lane].clear()
                    self._changed.notify_all()
            if not usable:
                return

    def _take(self, lane: int) -> Job | None:
        """The lane's next job; waits while there may be one, None where there is none any more."""
        with self._changed:
            while not self._ended:
                for queue in (self._queues[lane], self._left):
                    job = self._first(queue)
                    if job is not None:
                        self._running += 1
                        return job
                if not self._queues[lane] and (job := self._moved(lane)) is not None:
                    self._running += 1
                    return job
                if not self._running and not any(self._queues) and not self._left:
                    self._changed.notify_all()
                    return None
                self._changed.wait(0.5)
            return None

    def _moved(self, lane: int) -> Job | None:
        """What waits longest elsewhere: the last of the longest queue that may be moved here."""
        for source in sorted(range(len(self._queues)), key=lambda other: -len(self._queues[other])):
            for job in reversed(self._queues[source]):
                if source != lane and self._wanted(job) and self._ready(job) and self._may_move(job, source, lane):
                    self._queues[source].remove(job)
                    return job
        return None

    def _first(self, queue: "deque[Job]") -> Job | None:
        while queue and not self._wanted(queue[0]):
            queue.popleft()
        return queue.popleft() if queue and self._ready(queue[0]) else None

    @contextlib.contextmanager
    def _signals_count(self) -> Iterator[None]:
        """Count interrupts as a replay does: Ctrl-C once, an order from outside as two."""

        def note(number: int, _frame: FrameType | None) -> None:
            self.interrupts += 1 if number == signal.SIGINT else 2

        former = {
            number: signal.signal(number, note)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
