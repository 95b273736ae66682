from __future__ import annotations

from jtlightning.runtime import machine

ANSWER = """\
The following options are target specific:
  -m128bit-long-double        \t\t[enabled]
  -mavx                       \t\t[enabled]
  -mavx512f                   \t\t[disabled]
  -march=                     \t\tsapphirerapids
  -mtune=                     \t\tgeneric
  Known valid arguments for -march= option:
    i386 i486
"""


def test_the_processor_is_its_architecture_and_what_is_enabled() -> None:
    assert machine.processor(ANSWER) == "sapphirerapids -m128bit-long-double -mavx"


def test_this_machine_equals_itself() -> None:
    here = machine.describe()
    assert all(here.values())
    assert here["processor"].split()[0] not in ("unknown", "native")
    assert machine.differences(here, machine.describe()) == []


def test_a_fact_that_the_other_did_not_note_differs() -> None:
    assert machine.differences({"libc": "2.36"}, {}) == ["libc: 2.36 here, unknown there"]
