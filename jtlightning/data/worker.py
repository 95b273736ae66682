"""A loader's worker process: no Jittor, one thread, gone when its parent is gone."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import select
import signal
import socket
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass

import numpy as np

from jtlightning.data.channel import Receiver, Sender
from jtlightning.data.diary import NO_SAMPLE, Diary
from jtlightning.data.recipe import Loaded, LoaderError, Recipe, SampleError

# What the process must find in its environment before it imports anything: a script that imports
# Jittor at its top is imported again in here, and must take no GPU, start no threads, and fork no
# compilers, which would outlive us.
ENVIRONMENT = {
    "nvcc_path": "",
    "DISABLE_MULTIPROCESSING": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONFAULTHANDLER": "1",  # a crash in a decoder prints where it was
    # Images come and go: without these, glibc gives their pages back and asks for them again,
    # which took 12 % of the time of a worker that decodes, resizes and cuts.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}
START = 0  # the `run` of the first answer, which says that the worker is there
_PARENT_CHECK_S = 0.5


@dataclass(frozen=True)
class Request:
    """Ask for a batch.

    Attributes:
        run: Counts the epochs that the pool has opened.
        returned: Memory files that the worker may use again.
    """

    run: int
    number: int
    indices: np.ndarray
    seed: int
    epoch: int
    returned: tuple[int, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A batch, or why there is none."""

    run: int
    loaded: Loaded | None = None
    error: LoaderError | None = None


def work(end: socket.socket, parent: int, kept: int) -> None:
    """Receive a recipe, then answer requests until the other end is closed.

    Args:
        end: Of the socket pair.
        parent: Its process id.
        kept: Memory files to keep for batches.
    """
    # Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent ends us when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sender, receiver = Sender(end, kept), Receiver(end)
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            diary = Diary(socket.recv_fds(end, 1, 1)[1][0])
            diary.open_for_tracebacks()
            recipe: Recipe = receiver.receive()
            if importlib.util.find_spec("cv2") is not None:
                importlib.import_module("cv2").setNumThreads(0)
        except (EOFError, ConnectionResetError):
            raise
        except Exception:  # noqa: BLE001 - handed to the parent, which raises it
            sender.send(Answer(START, error=_failure("the dataset cannot be rebuilt in a worker")))
            return
        sender.send(Answer(START))
        _serve(end, sender, receiver, recipe, diary)


def _serve(
    end: socket.socket, sender: Sender, receiver: Receiver, recipe: Recipe, diary: Diary
) -> None:
    arrived = select.poll()
    arrived.register(end, select.POLLIN)
    pending: deque[Request] = deque()
    while True:
        # First take whatever has arrived: it may be the news that the epoch was abandoned.
        while not pending or arrived.poll(0):
            request = receiver.receive()
            if request is None:
                pending.clear()
            else:
                sender.reclaim(request.returned)
                pending.append(request)
        request = pending.popleft()
        try:
            loaded = recipe.batch(request.indices, request.seed, request.epoch, diary.note)
            sender.send(Answer(request.run, loaded))
            del loaded  # or its memory would be kept until the next batch is there
        except SampleError as error:
            sender.send(Answer(request.run, error=error))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception:  # noqa: BLE001 - handed to the parent, which raises it
            failure = _failure(f"batch {request.number} cannot be sent to the trainer")
            sender.send(Answer(request.run, error=failure))
        diary.note(NO_SAMPLE)


def _failure(what: str) -> LoaderError:
    return LoaderError(f"{what}; the original error was\n\n{traceback.format_exc()}")


def _end_with(parent: int) -> None:
    """Leave when the parent is gone.

    The closed socket tells the same, but not while a sample is being loaded, nor where some other
    child of the parent has inherited its end.
    """
    # The main thread answers them: its traceback is the one that is wanted.
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    while os.getppid() == parent:
        time.sleep(_PARENT_CHECK_S)
    os._exit(0)
