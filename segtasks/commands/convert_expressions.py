"""Values of Python expressions by reading alone: nothing is executed.

Understood are literals, names assigned earlier, arithmetic, text put together by `+`, `%`,
f-strings and `format`, and a handful of functions computed here (`os.path.join`, `dict` ...).
Anything else is an `Unknown` that remembers its line, and so is all that is computed from it.
"""

from __future__ import annotations

import ast
import operator
import os.path
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

#: Characters of a text and elements of a list; what a configuration has no use for.
_MAX_LENGTH = 10_000
_MAX_NUMBER = 2**63
_MAX_EXPONENT = 64

_OPERATORS: Mapping[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_SIGNS: Mapping[type, Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_SCALARS = (str, int, float, bool, type(None))
_OBJECTS = ("easydict.EasyDict", "argparse.Namespace", "types.SimpleNamespace")


@dataclass(frozen=True)
class Unknown:
    """A value that reading alone does not give."""

    where: str
    reason: str


class Section(dict[str, Any]):
    """An object with attributes, such as the `C` of the official configurations.

    `lines` holds where each of them was assigned last.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, str] = {}


class _NotUnderstoodError(Exception):
    """Reading alone does not give the value of an expression."""


class Expressions:
    """Evaluates expressions of one file.

    Args:
        file: Its name, for messages.
        names: Values assigned so far; others may change them.
        aliases: Full names of what is imported from libraries, by their names in the file.
    """

    def __init__(self, file: str, names: Mapping[str, Any], aliases: Mapping[str, str]) -> None:
        self._file, self._names, self._aliases = file, names, aliases

    def where(self, node: ast.AST) -> str:
        """File and line."""
        return f"{self._file}, line {getattr(node, 'lineno', '?')}"

    def value(self, node: ast.expr) -> Any:
        """The value of an expression; Unknown where reading does not give it."""
        try:
            return self._evaluate(node)
        except _NotUnderstoodError as error:
            return Unknown(self.where(node), str(error))

    def _evaluate(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return _checked(node.value)
        method = getattr(self, f"_of_{type(node).__name__.lower()}", None)
        if method is None:
            raise _NotUnderstoodError(f"{shortened(ast.unparse(node))} is not evaluated")
        return _checked(method(node))

    def _known(self, node: ast.expr) -> Any:
        """A value that the surrounding expression needs."""
        value = self._evaluate(node)
        if isinstance(value, Unknown):
            raise _NotUnderstoodError(f"{value.reason} ({value.where})")
        return value

    def _of_name(self, node: ast.Name) -> Any:
        if node.id not in self._names:
            raise _NotUnderstoodError(f"{node.id} is not assigned before")
        return self._names[node.id]

    def _of_list(self, node: ast.List) -> Any:
        return [self.value(item) for item in node.elts]

    def _of_tuple(self, node: ast.Tuple) -> Any:
        return tuple(self.value(item) for item in node.elts)

    def _of_dict(self, node: ast.Dict) -> Any:
        made: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                made.update(self._mapping(value))
            else:
                name = self._known(key)
                if not isinstance(name, _SCALARS):
                    raise _NotUnderstoodError("a key is neither text nor a number")
                made[name] = self.value(value)
        return made

    def _mapping(self, node: ast.expr) -> dict[Any, Any]:
        value = self._known(node)
        if not isinstance(value, dict):
            raise _NotUnderstoodError(f"{shortened(ast.unparse(node))} is no dict")
        return value

    def _of_attribute(self, node: ast.Attribute) -> Any:
        holder = self._known(node.value)
        if isinstance(holder, Section) and node.attr in holder:
            return holder[node.attr]
        raise _NotUnderstoodError(f"{shortened(ast.unparse(node))} is not assigned before")

    def _of_subscript(self, node: ast.Subscript) -> Any:
        holder, key = self._known(node.value), self._known(node.slice)
        return _computed(node, lambda: holder[key])

    def _of_unaryop(self, node: ast.UnaryOp) -> Any:
        value = self._known(node.operand)
        return _computed(node, lambda: _SIGNS[type(node.op)](value))

    def _of_binop(self, node: ast.BinOp) -> Any:
        left, right = self._known(node.left), self._known(node.right)
        _check_effort(node.op, left, right)
        return _computed(node, lambda: _OPERATORS[type(node.op)](left, right))

    def _of_joinedstr(self, node: ast.JoinedStr) -> Any:
        text = ""
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                spec = "" if part.format_spec is None else self._of_joinedstr(part.format_spec)  # type: ignore[arg-type]
                value = _scalar(self._known(part.value))
                _check_template(spec)
                shown = repr(value) if part.conversion == ord("r") else value
                text += _computed(node, partial(format, shown, spec))
            else:
                text += self._known(part)
            _checked(text)
        return text

    def _of_call(self, node: ast.Call) -> Any:
        if isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            template = self._known(node.func.value)
            if isinstance(template, str):
                return self._formatted(node, template)
        name = self._dotted(node.func)
        if name.rpartition(".")[2] in ("EasyDict", "edict") or name in _OBJECTS:
            section = Section()
            section.update(self._keywords(node))
            section.lines.update(dict.fromkeys(section, self.where(node)))
            return section
        if name == "dict" and len(node.args) <= 1:
            return {**(self._mapping(node.args[0]) if node.args else {}), **self._keywords(node)}
        function = _FUNCTIONS.get(name)
        if function is None:
            raise _NotUnderstoodError(f"{shortened(ast.unparse(node))} is not called")
        arguments = [self._known(argument) for argument in node.args]
        return _computed(node, lambda: function(*arguments))

    def _formatted(self, node: ast.Call, template: str) -> str:
        arguments = [_scalar(self._known(argument)) for argument in node.args]
        keywords = {k: _scalar(v) for k, v in self._keywords(node).items()}
        # Fields with dots or brackets would look into objects.
        if not all(re.fullmatch(r"\w*(![rs])?(:[^{}]*)?", f) for f in _fields(template)):
            raise _NotUnderstoodError(f"{shortened(template)} is not plain")
        longest = max((len(str(v)) for v in (*arguments, *keywords.values())), default=0)
        _check_template(template, longest)
        return _computed(node, lambda: template.format(*arguments, **keywords))

    def _keywords(self, node: ast.Call) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                made.update(self._mapping(keyword.value))
            else:
                made[keyword.arg] = self.value(keyword.value)
        return made

    def _dotted(self, node: ast.expr) -> str:
        """The full name of a function: `osp.join` is os.path.join."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name) or node.id in self._names:
            return ""
        parts.append(self._aliases.get(node.id, node.id))
        return ".".join(reversed(parts))


def _join(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts) or sum(map(len, parts)) > _MAX_LENGTH:
        raise _NotUnderstoodError("os.path.join of something that is no path")
    return os.path.join(*parts)  # noqa: PTH118 (it is what the file says)


#: What is computed as the file says; all without effects.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "os.path.join": _join,
    "os.path.normpath": os.path.normpath,
    # Relative to the folder in which the command will be run, as it would be for Python.
    "os.path.abspath": os.path.normpath,
    "os.path.realpath": os.path.normpath,
    "os.getcwd": lambda: ".",
    "numpy.array": list,
    "list": list,
    "tuple": tuple,
    "int": lambda value: int(_scalar(value)),
    "float": lambda value: float(_scalar(value)),
    "str": lambda value: str(_scalar(value)),
    "len": len,
}


def _computed(node: ast.AST, compute: Callable[[], Any]) -> Any:
    try:
        return compute()
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise _NotUnderstoodError(f"{shortened(ast.unparse(node))} fails: {error}") from None


def _scalar(value: Any) -> Any:
    if not isinstance(value, _SCALARS):
        raise _NotUnderstoodError(f"a {type(value).__name__} is not put into a text or number")
    return value


def _checked(value: Any) -> Any:
    """Values that grow without end are none of a configuration."""
    too_long = isinstance(value, str | list | tuple | dict) and len(value) > _MAX_LENGTH
    if too_long or (isinstance(value, int) and abs(value) > _MAX_NUMBER):
        raise _NotUnderstoodError("the value is too large for a configuration")
    return value


def _check_effort(op: ast.operator, left: Any, right: Any) -> None:
    """Refuse what would take long or much memory before it is computed."""
    if type(op) not in _OPERATORS:
        raise _NotUnderstoodError(f"the operator {type(op).__name__} is not evaluated")
    if isinstance(op, ast.Pow) and not (isinstance(right, int | float) and right <= _MAX_EXPONENT):
        raise _NotUnderstoodError("the exponent is too large")
    if isinstance(op, ast.Mult):
        for sequence, count in ((left, right), (right, left)):
            repeated = isinstance(sequence, str | list | tuple) and isinstance(count, int)
            if repeated and len(sequence) * count > _MAX_LENGTH:
                raise _NotUnderstoodError("the value is too large for a configuration")
    if isinstance(op, ast.Mod) and isinstance(left, str):
        values = right if isinstance(right, tuple) else (right,)
        _check_template(left, max((len(str(_scalar(value))) for value in values), default=0))


def _check_template(template: str, longest: int = 0) -> None:
    """Widths and many long parts make a text of any length."""
    fields = template.count("{") + template.count("%")
    if re.search(r"\d{4}|\*", template) or fields * longest > 10 * _MAX_LENGTH:
        raise _NotUnderstoodError(f"{shortened(template)} would be too long")


def _fields(template: str) -> list[str]:
    return re.findall(r"\{([^{}]*)\}", template.replace("{{", "").replace("}}", ""))


def shortened(text: str) -> str:
    """At most 60 characters of a text, for messages."""
    return text if len(text) <= 60 else text[:57] + "..."
