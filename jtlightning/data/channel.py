"""Objects with large arrays between two processes, without copying them twice.

The bytes lie in memory files (memfd) that both processes have mapped; a message on a local socket
tells which one and where. The receiver lends it to the arrays that it hands out and returns it to
the sender once they are gone, so that a file's pages are made once and not for every batch.
A memory file has no name, so nothing is left behind when a process is killed, and it does not
count against the small /dev/shm of containers.
"""

from __future__ import annotations

import array
import mmap
import os
import pickle
import socket
import struct
import weakref
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np

_ALIGNMENT = 64
_PACKET_BYTES = 2**17  # room for the sizes of 16,000 arrays
_INLINE_BYTES = 2**13
# A file that is not used again costs a descriptor as long as one of its arrays lives; small ones
# are copied out of it.
_MAP_BYTES = 4 * 2**20
_INLINE, _ONCE, _NONE = -1, -2, -3
# Number of the file (or one of the above), its size, and a file that is given up.
_HEADER = struct.Struct("<qqq")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends; each may be sent to another process.

    Raises:
        ValueError: The system has no memory files.
    """
    if not hasattr(os, "memfd_create"):
        raise ValueError("loader workers need Linux: use num_workers=0 on this system")
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Sender:
    """The sending side of an end.

    Args:
        end: The socket.
        kept: Memory files to keep and use again; where more are lent, messages travel in files of
            their own.
    """

    def __init__(self, end: socket.socket, kept: int = 0) -> None:
        self._end, self._kept = end, kept
        self._files: dict[int, mmap.mmap] = {}
        self._free: list[int] = []
        self._next = 0

    def reclaim(self, numbers: Iterable[int]) -> None:
        """Use these files again, which the receiver has returned."""
        self._free += numbers

    def send(self, message: Any) -> None:
        """Send a picklable object; the message arrives whole or not at all.

        Raises:
            OSError: The other end is closed (BrokenPipeError), or memory or file descriptors
                ran out.
        """
        buffers: list[pickle.PickleBuffer] = []
        body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
        parts = [memoryview(body), *(buffer.raw() for buffer in buffers)]
        size = sum(part.nbytes + -part.nbytes % _ALIGNMENT for part in parts)
        if size <= _INLINE_BYTES:
            packet = pickle.dumps(message, protocol=5) if buffers else body
            self._end.sendall(_HEADER.pack(_INLINE, 0, _NONE) + packet)
            return
        sizes = struct.pack(f"<{len(parts)}Q", *(part.nbytes for part in parts))
        number = next((n for n in reversed(self._free) if len(self._files[n]) >= size), None)
        if number is None:
            self._send_new(parts, size, sizes)
            return
        self._free.remove(number)
        _fill(self._files[number], parts)
        self._end.sendall(_HEADER.pack(number, len(self._files[number]), _NONE) + sizes)

    def _send_new(self, parts: list[memoryview], size: int, sizes: bytes) -> None:
        given_up = _NONE
        if self._free:  # smaller ones; they give way one by one
            given_up = self._free.pop()
            del self._files[given_up]
        keep = len(self._files) < self._kept
        # Room for a somewhat larger batch; pages that are never touched cost nothing.
        capacity = size + (size // 4 if keep else 0)
        file = os.memfd_create("jtlightning-batch")
        try:
            os.ftruncate(file, capacity)
            memory = mmap.mmap(file, capacity)
            _fill(memory, parts)
            header = _HEADER.pack(self._next if keep else _ONCE, capacity, given_up)
            socket.send_fds(self._end, [header + sizes], [file])
        finally:
            os.close(file)
        if keep:
            self._files[self._next] = memory
            self._next += 1


class Receiver:
    """The receiving side of an end.

    Args:
        end: The socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._files: dict[int, mmap.mmap] = {}
        self._lent: dict[int, weakref.ref[np.ndarray]] = {}
        self._returned: deque[int] = deque()

    def returned(self) -> tuple[int, ...]:
        """Files that may be used again, since the last call: for the sender's `reclaim`."""
        return tuple(self._returned.popleft() for _ in range(len(self._returned)))

    def receive(self) -> Any:
        """Wait for the next object; its arrays are writable.

        Raises:
            EOFError: The other end is closed.
            OSError: File descriptors ran out.
        """
        packet, ancillary, _, _ = self._end.recvmsg(_PACKET_BYTES, socket.CMSG_SPACE(4))
        if not packet:
            raise EOFError("the other end is closed")
        number, capacity, given_up = _HEADER.unpack_from(packet)
        self._files.pop(given_up, None)
        rest = memoryview(packet)[_HEADER.size :]
        if number == _INLINE:
            return pickle.loads(rest)
        memory = self._files.get(number)
        if memory is None:
            memory = _mapped(ancillary, capacity)
            if number != _ONCE:
                self._files[number] = memory
        sizes = [size for (size,) in struct.iter_unpack("<Q", rest)]
        return self._load(memory, number, sizes)

    def _load(self, memory: mmap.mmap, number: int, sizes: list[int]) -> Any:
        used = sum(size + -size % _ALIGNMENT for size in sizes)
        whole = np.frombuffer(memory, np.uint8, used)
        if number != _ONCE:
            # Every array that is made of `whole` keeps it alive.
            self._lent[number] = weakref.ref(whole, partial(self._give_back, number))
        elif used < _MAP_BYTES:
            whole = whole.copy()
        views, position = [], 0
        for size in sizes:
            views.append(whole[position : position + size])
            position += size + -size % _ALIGNMENT
        return pickle.loads(views[0].data, buffers=views[1:])

    def _give_back(self, number: int, _: object) -> None:
        self._returned.append(number)


def _mapped(ancillary: list[tuple[int, int, bytes]], capacity: int) -> mmap.mmap:
    files = array.array("i")
    for _, _, data in ancillary:
        files.frombytes(data)
    if not files:
        raise OSError("no file descriptor is left to receive a batch: raise `ulimit -n`")
    try:
        return mmap.mmap(files[0], capacity)
    finally:
        os.close(files[0])


def _fill(memory: mmap.mmap, parts: list[memoryview]) -> None:
    position = 0
    for part in parts:
        if part.nbytes:
            memory[position : position + part.nbytes] = part.cast("B")
        position += part.nbytes + -part.nbytes % _ALIGNMENT
