from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from jtlightning.loggers.background import Background

LOG = logging.getLogger("tracker")


class Client:
    """What a test calls through a `Background`, and whether it was closed or interrupted."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.let_go = threading.Event()
        self.closed = threading.Event()

    def hang(self) -> None:
        assert self.let_go.wait(30)
        raise ConnectionError("interrupted")


@pytest.fixture
def client() -> Iterator[Client]:
    client = Client()
    yield client
    client.let_go.set()


def make(client: Client, **arguments: float) -> Background:
    return Background(
        "Tracker",
        LOG,
        close=client.closed.set,
        interrupt=client.let_go.set,
        **arguments,  # type: ignore[arg-type]
    )


def test_calls_are_made_in_order_and_all_before_the_end(client: Client) -> None:
    background = make(client)
    for number in range(500):
        background.put(lambda number=number: client.calls.append(number))  # type: ignore[misc]
    background.close()
    assert client.calls == list(range(500))
    assert not client.closed.is_set()


def test_a_full_queue_is_waited_for(client: Client) -> None:
    background = make(client, limit=1)
    for number in range(300):
        background.put(lambda number=number: client.calls.append(number))  # type: ignore[misc]
    background.close()
    assert client.calls == list(range(300))


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3)])
def test_the_first_error_is_the_last_call(
    client: Client, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def fail() -> None:
        raise error

    background = make(client)
    background.put(fail)
    assert not background.run(lambda: client.calls.append(1), timeout_s=30)
    background.close()
    assert client.calls == []
    assert client.closed.is_set()
    (record,) = caplog.records
    expected = f"Tracker stops, training goes on: {type(error).__name__}: {error}"
    assert record.getMessage() == expected


def test_a_call_that_hangs_is_interrupted_after_its_time(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    background = make(client)
    assert not background.run(client.hang, timeout_s=0.2)
    background.close()
    assert client.let_go.is_set()
    assert client.closed.is_set()
    assert [r.getMessage() for r in caplog.records] == [
        "Tracker stops, training goes on: the client has not answered for 0.2 s"
    ]


def test_a_client_that_hangs_holds_the_run_up_no_longer_than_its_patience(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    background = make(client, limit=2, patience_s=0.3)
    background.put(client.hang)
    for _ in range(1000):  # each would wait again, were the patience not that of the whole run
        background.put(lambda: client.calls.append(1))
    background.close()
    assert client.calls == []
    (record,) = caplog.records
    assert "2 calls are waiting" in record.getMessage()
