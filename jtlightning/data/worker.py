"""A loader's worker process: no Jittor, one thread, gone when its parent is gone."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import socket
import threading
import time
import traceback
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait

import numpy as np

from jtlightning.data.channel import receive, send
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
}
START = 0  # the `run` of the first answer, which says that the worker is there
_PARENT_CHECK_S = 0.5


@dataclass(frozen=True)
class Request:
    """Ask for a batch. `run` counts the epochs that the pool has opened."""

    run: int
    number: int
    indices: np.ndarray
    seed: int
    epoch: int


@dataclass(frozen=True)
class Answer:
    """A batch, or why there is none."""

    run: int
    loaded: Loaded | None = None
    error: LoaderError | None = None


def work(end: socket.socket, parent: int) -> None:
    """Receive a recipe, then answer requests until the other end is closed."""
    # Ctrl-C and a scheduler's SIGTERM reach the whole group; the parent ends us when it is done.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        try:
            diary = Diary(socket.recv_fds(end, 1, 1)[1][0])
            diary.open_for_tracebacks()
            recipe: Recipe = receive(end)
            if importlib.util.find_spec("cv2") is not None:
                importlib.import_module("cv2").setNumThreads(0)
        except (EOFError, ConnectionResetError):
            raise
        except Exception:  # noqa: BLE001 - handed to the parent, which raises it
            send(end, Answer(START, error=_failure("the dataset cannot be rebuilt in a worker")))
            return
        send(end, Answer(START))
        _serve(end, recipe, diary)


def _serve(end: socket.socket, recipe: Recipe, diary: Diary) -> None:
    pending: deque[Request] = deque()
    while True:
        # First take whatever has arrived: it may be the news that the epoch was abandoned.
        while not pending or wait([end], 0):
            request = receive(end)
            if request is None:
                pending.clear()
            else:
                pending.append(request)
        request = pending.popleft()
        try:
            loaded = recipe.batch(request.indices, request.seed, request.epoch, diary.note)
            send(end, Answer(request.run, loaded))
            del loaded  # or its memory would be kept until the next batch is there
        except SampleError as error:
            send(end, Answer(request.run, error=error))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except Exception:  # noqa: BLE001 - handed to the parent, which raises it
            failure = _failure(f"batch {request.number} cannot be sent to the trainer")
            send(end, Answer(request.run, error=failure))
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
