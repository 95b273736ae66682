from __future__ import annotations

from jtlightning.loggers.recent import Recent


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def steps(recent: Recent) -> list[int]:
    return [step for _, step, _ in recent.rows()]


def test_a_row_is_kept_until_the_client_has_had_its_successor_for_a_while() -> None:
    clock = Clock()
    recent = Recent(keep_s=5.0, clock=clock)
    recent.add({"loss": 1.0}, 1, 0)()
    clock.now_s = 200.0
    sent = recent.add({"loss": 2.0}, 2, 0)
    clock.now_s = 300.0  # the client is late
    recent.add({"loss": 3.0}, 3, 0)
    assert steps(recent) == [1, 2, 3]
    sent()
    clock.now_s = 304.0
    recent.add({"loss": 4.0}, 4, 1)
    assert steps(recent) == [1, 2, 3, 4]
    clock.now_s = 306.0
    recent.add({"loss": 5.0}, 5, 1)
    assert steps(recent) == [2, 3, 4, 5]  # 2 was held back until 3 came, which is not there yet


def test_the_newest_row_is_kept_however_old() -> None:
    clock = Clock()
    recent = Recent(keep_s=5.0, clock=clock)
    recent.add({"loss": 1.0}, 1, 0)()
    clock.now_s = 1e6
    recent.add({"val": 2.0}, 1, 0)()
    clock.now_s = 2e6
    assert list(recent.rows()) == [({"loss": 1.0, "val": 2.0}, 1, 0)]
    recent.add({"loss": 3.0}, 2, 0)
    assert steps(recent) == [1, 2]


def test_the_number_of_rows_is_bounded() -> None:
    recent = Recent(most=3)
    for step in range(10):
        recent.add({}, step, 0)
    assert steps(recent) == [7, 8, 9]


def test_the_rows_survive_a_checkpoint() -> None:
    recent = Recent()
    recent.add({"loss": 1.0}, 1, 0)
    restored = Recent()
    restored.add({"loss": 9.0}, 9, 9)
    restored.load_state_dict(recent.state_dict())
    assert list(restored.rows()) == [({"loss": 1.0}, 1, 0)]
