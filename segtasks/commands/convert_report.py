"""What became of each key of a configuration that is converted; none is lost silently."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from segtasks.commands.convert_expressions import Unknown, shortened

_MAX_KEYS = 10_000
_MISSING = object()


@dataclass(frozen=True)
class Taken:
    """A key that became something here; all as text."""

    key: str
    value: str
    place: str


@dataclass
class Conversion:
    """A configuration of ours and the fate of each key of the other one.

    Attributes:
        values: Ours, nested, as YAML writes it.
        taken: Keys that became something.
        dropped: Keys without a counterpart that nobody will miss, with the reason.
        remarks: What differs or needs a decision.
        unknown: Keys that nobody here knows, with value and line.
        unread: What reading alone does not give, with line and reason.
    """

    values: dict[str, Any] = field(default_factory=dict)
    taken: list[Taken] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)

    def notes(self) -> dict[str, list[str]]:
        """All but what was taken, by title."""
        return {
            "not needed": self.dropped,
            "note": self.remarks,
            "unknown key": self.unknown,
            "not understood": self.unread,
        }

    def set(self, place: str, value: Any) -> None:
        """Write one value at a dotted place."""
        node = self.values
        *sections, name = place.split(".")
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = list(value) if isinstance(value, tuple) else value


class Keys:
    """The keys of a configuration, each taken once; what is left is reported by `finish`.

    Args:
        values: Values by dotted key.
        lines: File and line of a key, or of the leading part of it.
        report: Where their fate is told.
    """

    def __init__(
        self, values: Mapping[str, Any], lines: Mapping[str, str], report: Conversion
    ) -> None:
        self._left = dict(values)
        self._lines = lines
        self._report = report

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def where(self, key: str) -> str:
        """File and line of a key."""
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            if (line := self._lines.get(".".join(parts[:end]))) is not None:
                return line
        return "?"

    def take(self, key: str, kind: type | tuple[type, ...], place: str = "") -> Any:
        """The value of a key, or None where it is not there, None or not understood.

        Args:
            key: Its name.
            kind: What it must be.
            place: Where it goes, for the report; without it the caller reports.

        Raises:
            ValueError: It is of another kind.
        """
        value = self._left.pop(key, _MISSING)
        if value is _MISSING or value is None:
            return None
        if isinstance(value, Unknown):
            self._report.unread.append(f"{key} ({value.where}): {value.reason}")
            return None
        kinds = kind if isinstance(kind, tuple) else (kind,)
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
        if not fits or (isinstance(value, bool) and bool not in kinds):
            wanted = " or ".join(k.__name__ for k in kinds)
            raise ValueError(f"{self.where(key)}: {key} is {shown(value)}, which is no {wanted}")
        if isinstance(value, list | tuple):
            self._check_items(key, value)
        if place:
            self.told(key, value, place)
        return float(value) if kinds == (float,) else value

    def told(self, key: str, value: Any, place: str) -> None:
        """Report that a key became something."""
        self._report.taken.append(Taken(key, shown(value), place))

    def drop(self, key: str, reason: str) -> None:
        """Leave a key out that has no counterpart; nothing where it is not there."""
        if key in self._left:
            self._report.dropped.append(f"{key}: {reason}")
            del self._left[key]

    def finish(self) -> None:
        """Report every key that nobody took."""
        for key, value in self._left.items():
            if isinstance(value, Unknown):
                self._report.unread.append(f"{key} ({value.where}): {value.reason}")
            else:
                self._report.unknown.append(f"{key} = {shown(value)} ({self.where(key)})")

    def _check_items(self, key: str, value: list[Any] | tuple[Any, ...]) -> None:
        if not all(isinstance(item, str | int | float) for item in value):
            raise ValueError(
                f"{self.where(key)}: {key} must be a list of numbers or texts that can be read "
                "without running the file"
            )


def shown(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return f"dict of {len(value)}"
    if isinstance(value, list | tuple) and len(value) > 6:
        return f"{len(value)} values"
    return shortened(repr(value))


def plain_values(value: Any) -> dict[str, Any]:
    """Nested dicts as one, by dotted key; lists and all else stay whole.

    Raises:
        ValueError: It is no configuration but something huge.
    """
    found: dict[str, Any] = {}
    stack: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while stack:
        place, item = stack.pop()
        if isinstance(item, dict) and item:
            stack += [((*place, str(key)), child) for key, child in reversed(item.items())]
        else:
            found[".".join(place)] = item
        if len(found) + len(stack) > _MAX_KEYS:
            raise ValueError(f"the configuration has more than {_MAX_KEYS} values")
    return found
