"""The pool of worker processes behind a loader: hands out batches, watches over the workers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from typing import Any

import numpy as np

from jtlightning.data.channel import Receiver, Sender, socket_pair
from jtlightning.data.diary import Diary
from jtlightning.data.recipe import Loaded, LoaderError, Recipe, name_of
from jtlightning.data.worker import ENVIRONMENT, START, Answer, Request, work

_FAREWELL_S = 1.0
_STOPS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class _Worker:
    """The parent's view of a worker.

    `life` is readable once the process is gone. Its `sentinel` is not, as long as it has children.
    """

    number: int
    process: SpawnProcess
    end: socket.socket
    life: int
    diary: Diary
    started: bool = False

    def __post_init__(self) -> None:
        self.sender, self.receiver = Sender(self.end), Receiver(self.end)
        self.answered = select.poll()
        self.answered.register(self.end, select.POLLIN)

    def __str__(self) -> str:
        return f"loader worker {self.number} (pid {self.process.pid})"


class WorkerPool:
    """Worker processes that load batches ahead; they stay from epoch to epoch.

    Batch k of a run goes to worker k modulo their number, so the order of delivery needs no
    bookkeeping and does not depend on who is faster.
    """

    def __init__(
        self,
        recipe: Recipe,
        workers: int,
        prefetch: int,
        timeout_s: float,
        start_timeout_s: float,
    ) -> None:
        self.prefetch = prefetch
        self.timeout_s = timeout_s
        self.start_timeout_s = start_timeout_s
        self._dataset = recipe.dataset
        self._run = START
        self._workers: list[_Worker] = []
        # Runs when the pool is dropped or the interpreter ends, before multiprocessing waits for
        # its children, which would wait for us.
        self._farewell = Finalize(self, _end, args=(self._workers,), exitpriority=100)
        for number in range(workers):
            # One batch in work besides those that wait and the one that the trainer has.
            self._workers.append(_start(number, recipe, prefetch + 2))

    @property
    def closed(self) -> bool:
        """Whether the workers have been ended, also after one died or hung."""
        return not self._farewell.still_active()

    def run(
        self, plan: Callable[[int], np.ndarray], numbers: Sequence[int], seed: int, epoch: int
    ) -> Generator[Loaded, None, None]:
        """Batches in the order of `numbers`; `plan` gives the indices of each."""
        self._abandon()
        return self._batches(self._run, plan, numbers, seed, epoch)

    def close(self) -> None:
        """End the workers."""
        self._farewell()

    def _batches(
        self,
        run: int,
        plan: Callable[[int], np.ndarray],
        numbers: Sequence[int],
        seed: int,
        epoch: int,
    ) -> Generator[Loaded, None, None]:
        asked = 0
        try:
            for position, number in enumerate(numbers):
                if self._run != run or self.closed:
                    raise LoaderError("this epoch was abandoned: another was opened or all closed")
                # Bounded, so that a slow trainer does not fill the memory.
                limit = min(len(numbers), position + self.prefetch * len(self._workers))
                for ahead in range(asked, limit):
                    worker = self._workers[ahead % len(self._workers)]
                    returned = worker.receiver.returned()
                    indices = plan(numbers[ahead])
                    request = Request(run, numbers[ahead], indices, seed, epoch, returned)
                    self._ask(worker, request)
                asked = limit
                worker = self._workers[position % len(self._workers)]
                answer = self._await(worker, run, number)
                if answer.error is not None:
                    raise answer.error
                assert answer.loaded is not None
                yield answer.loaded
                del answer  # or its memory would be kept until the next batch is there
        finally:
            if self._run == run and not self.closed:
                self._abandon()

    def _ask(self, worker: _Worker, request: Request) -> None:
        try:
            worker.sender.send(request)
        except (BrokenPipeError, ConnectionResetError):
            raise self._died(worker) from None

    def _await(self, worker: _Worker, run: int, number: int) -> Answer:
        """The worker's next answer of this run; answers of abandoned runs are dropped."""
        while True:
            limit_s = self.timeout_s if worker.started else self.start_timeout_s
            if not self._wait(worker, time.monotonic() + limit_s):
                message = self._hung(worker, number) if worker.started else self._late(worker)
                self.close()
                raise LoaderError(message)
            answer = self._receive(worker)
            worker.started = True
            if answer.run == run or (answer.run == START and answer.error is not None):
                return answer

    def _wait(self, worker: _Worker, deadline: float) -> bool:
        """Whether an answer of `worker` came before the deadline; any death is an error."""
        if worker.answered.poll(0):
            return True
        lives = {other.life: other for other in self._workers}
        ready = wait([worker.end, *lives], max(0.0, deadline - time.monotonic()))
        if worker.end in ready:
            return True
        for item in ready:
            if isinstance(item, int):
                raise self._died(lives[item])
        return False

    def _receive(self, worker: _Worker) -> Answer:
        try:
            answer: Answer = worker.receiver.receive()
        except (EOFError, ConnectionResetError):
            raise self._died(worker) from None
        return answer

    def _late(self, worker: _Worker) -> str:
        return (
            f"{worker} did not come up within {self.start_timeout_s:g} s: starting one imports the "
            'script again, so what takes long belongs under `if __name__ == "__main__":`; or raise '
            "start_timeout_s"
        )

    def _hung(self, worker: _Worker, number: int) -> str:
        index = worker.diary.index
        what = "collate" if index is None else name_of(self._dataset, index)
        where = worker.diary.traceback_of(worker.process.pid or 0)
        return (
            f"{worker} gave no batch {number} within {self.timeout_s:g} s: {what} hangs, or "
            f"timeout_s is too short; the worker was in\n\n{where or 'no Python code (stopped?)'}"
        )

    def _died(self, worker: _Worker) -> LoaderError:
        worker.process.join(_FAREWELL_S)
        code = worker.process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"left with {code}"
        if (index := worker.diary.index) is not None:
            how += f" while it loaded {name_of(self._dataset, index)}"
        # Not "out of memory": nobody knows, and the trainer takes that for certain.
        short = "the system does that where memory is short"
        hint = short if code == -signal.SIGKILL else "its own message stands above"
        if not worker.started and code == 1:
            hint += '; a script that trains needs `if __name__ == "__main__":` around its start'
        message = f"{worker} {how} ({hint})"
        self.close()
        return LoaderError(message)

    def _abandon(self) -> None:
        """Begin a new run: the workers forget what they have not begun, we what they have done."""
        self._run += 1
        for worker in self._workers:
            with contextlib.suppress(OSError, EOFError):  # a dead worker is the next run's error
                worker.sender.send(None)
                while worker.started and worker.answered.poll(0):
                    worker.receiver.receive()


def _start(number: int, recipe: Recipe, kept: int) -> _Worker:
    ours, theirs = socket_pair()
    diary, process = Diary.create(), None
    try:
        socket.send_fds(ours, [b" "], [diary.file])
        _hand_over(ours, recipe)
        context = multiprocessing.get_context("spawn")
        process = context.Process(
            target=work,
            args=(theirs, os.getpid(), kept),
            name=f"loader worker {number}",
            daemon=True,
        )
        with _signals_blocked(), _environment(ENVIRONMENT):
            process.start()
        life = os.pidfd_open(process.pid or 0)
    except BaseException:
        if process is not None and process.pid is not None:
            process.kill()  # it may be deep in its imports, and notice a closed socket late
            process.join()
            process.close()
        ours.close()
        diary.close()
        raise
    finally:
        theirs.close()
    return _Worker(number, process, ours, life, diary)


def _hand_over(end: socket.socket, recipe: Recipe) -> None:
    """Send the recipe, which waits in the socket for the worker to come up.

    Raises:
        ValueError: Something in it cannot be pickled, named.
    """
    try:
        Sender(end).send(recipe)
    except OSError:
        raise
    except Exception as error:
        place = _unpicklable(recipe, "", 4)
        raise ValueError(
            f"{place} cannot be sent to loader workers ({error}): use module-level functions and "
            "classes, open files lazily in __getitem__, or set num_workers=0"
        ) from error


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """Child processes started in the block get no SIGINT and SIGTERM until `work` ignores them.

    Ctrl-C while they import would otherwise print a traceback for each of them.
    """
    # Started by the first child otherwise, and it unblocks both signals.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        with _signals_put_off():
            yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _signals_put_off() -> Iterator[None]:
    """Act on SIGINT and SIGTERM after the block.

    A mask is not enough: some library's thread takes the signal, and Python interrupts the main
    thread, maybe between the start of a child and what it is told then.
    """
    caught: list[int] = []
    handlers = {number: signal.getsignal(number) for number in _STOPS}
    if threading.current_thread() is not threading.main_thread() or None in handlers.values():
        yield  # signals are not ours to handle
        return
    for number in handlers:
        signal.signal(number, lambda received, _: caught.append(received))
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for received in caught:
            signal.raise_signal(received)


def _end(workers: list[_Worker]) -> None:
    """Close the sockets, on which workers leave by themselves, and kill who is too slow."""
    for worker in workers:
        worker.end.close()
    deadline = time.monotonic() + _FAREWELL_S
    for worker in workers:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.exitcode is None:
            worker.process.kill()
            worker.process.join()
        worker.process.close()
        worker.diary.close()
        os.close(worker.life)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for child processes started in the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _unpicklable(value: Any, name: str, depth: int) -> str:
    """Name of the innermost attribute that fails to pickle."""
    for key, item in getattr(value, "__dict__", {}).items() if depth else ():
        try:
            pickle.dumps(item)
        except Exception:  # noqa: BLE001 - whatever it is, this is the attribute that fails
            return _unpicklable(item, f"{name}.{key}".lstrip("."), depth - 1)
    return name
