"""Reads Python configurations as syntax: what they assign, without executing any of them."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segtasks.commands.convert_expressions import Expressions, Section, Unknown, shortened

_MAX_FILE_BYTES = 256 * 1024
#: Levels of an expression: evaluating takes three calls for each.
_MAX_DEPTH = 150
_LIBRARIES = ("os", "sys", "time", "argparse", "types", "numpy", "easydict", "datetime")


class SourceError(ValueError):
    """A Python configuration cannot be read; the message names file, line and remedy."""


@dataclass
class Module:
    """What a file assigns: values by name, where, and the statements that were not followed."""

    names: dict[str, Any] = field(default_factory=dict)
    lines: dict[str, str] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)


def read_module(path: Path, root: Path) -> Module:
    """Read a file and, for its relative imports, the files beside it.

    Args:
        path: The file.
        root: Folder that all of them must be in.

    Raises:
        SourceError: A file cannot be read, is no Python, or lies outside of `root`.
    """
    return _Reader(path, root, ()).read()


def inside(path: Path, root: Path, where: str) -> Path:
    """`path`, if it is a file below `root`, with symbolic links followed.

    Raises:
        SourceError: It is not; `where` names who asked for it.
    """
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise SourceError(
            f"{where}: {path} lies outside of {root}; if it is to be read, pass --root FOLDER"
        )
    if not real.is_file():
        raise SourceError(f"{where}: there is no file {path}")
    return real


class _Reader:
    """Follows the statements of one file."""

    def __init__(self, path: Path, root: Path, users: tuple[Path, ...]) -> None:
        self._path, self._root, self._users = path, root, users
        if path.resolve() in users:
            chain = " -> ".join(map(str, (*users, path.resolve())))
            raise SourceError(f"configurations import each other: {chain}")
        module = self._module = Module()
        self._expressions = Expressions(path.name, module.names, module.aliases)
        self._where = self._expressions.where

    def read(self) -> Module:
        for statement in _parse(self._path).body:
            self._statement(statement)
        return self._module

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Import | ast.ImportFrom):
            self._import(node)
        elif isinstance(node, ast.Assign):
            value = self._expressions.value(node.value)
            for target in node.targets:
                self._assign(target, value)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            self._assign(node.target, self._expressions.value(node.value))
        elif isinstance(node, ast.AugAssign):
            changed = ast.BinOp(_loaded(node.target), node.op, node.value)
            self._assign(node.target, self._expressions.value(ast.copy_location(changed, node)))
        elif not isinstance(node, ast.Pass | ast.AnnAssign) and not _is_docstring(node):
            self._ignore(node)

    def _ignore(self, node: ast.stmt) -> None:
        """Note a statement that is not followed; what it might have set is unknown from here."""
        words = ast.unparse(node).splitlines()[0]
        where = self._where(node)
        self._module.ignored.append(f"{where}: {shortened(words)}")
        if isinstance(node, ast.FunctionDef | ast.ClassDef) or _is_main(node):
            return
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name | ast.Attribute | ast.Subscript) and isinstance(
                inner.ctx, ast.Store | ast.Del
            ):
                self._assign(inner, Unknown(where, "a condition, loop or the like decides"))

    def _assign(self, target: ast.expr, value: Any) -> None:
        where = self._where(target)
        if isinstance(target, ast.Name):
            self._module.names[target.id] = value
            self._module.lines[target.id] = where
            return
        if isinstance(target, ast.Tuple | ast.List):
            known = isinstance(value, list | tuple) and len(value) == len(target.elts)
            for index, inner in enumerate(target.elts):
                self._assign(inner, value[index] if known else Unknown(where, "an unpacking"))
            return
        holder, key = self._holder(target)
        if isinstance(holder, dict) and isinstance(key, str):
            holder[key] = value
            if isinstance(holder, Section):
                holder.lines[key] = where
        else:
            self._module.ignored.append(f"{where}: {shortened(ast.unparse(target))} = ...")

    def _holder(self, target: ast.expr) -> tuple[Any, Any]:
        """What an attribute or an element is set in, and its name."""
        if isinstance(target, ast.Attribute):
            return self._object(target.value), target.attr
        if isinstance(target, ast.Subscript):
            return self._expressions.value(target.value), self._expressions.value(target.slice)
        return None, None

    def _object(self, node: ast.expr) -> Any:
        """What has attributes; whatever a name stands for becomes one when it is given some."""
        value = self._expressions.value(node)
        library = isinstance(node, ast.Name) and node.id in self._module.aliases
        if isinstance(node, ast.Name) and isinstance(value, Unknown) and not library:
            value = self._module.names[node.id] = Section()
        return value

    # ---- imports ------------------------------------------------------------------------------

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.partition(".")[0]
                self._module.aliases[name] = alias.name if alias.asname else name
            return
        module = node.module or ""
        file = self._imported(node.level, module, node)
        if file is None:
            for alias in node.names:
                self._module.aliases[alias.asname or alias.name] = f"{module}.{alias.name}"
            if module.partition(".")[0] not in _LIBRARIES:
                text = shortened(ast.unparse(node))
                self._module.ignored.append(f"{self._where(node)}: {text}")
            return
        other = _Reader(file, self._root, (*self._users, self._path.resolve())).read()
        for alias in node.names:
            self._take_over(other, alias, self._where(node))
        self._module.ignored += other.ignored

    def _imported(self, level: int, module: str, node: ast.stmt) -> Path | None:
        """The configuration that is imported, or None for a library."""
        parts = module.split(".") if module else []
        folder = self._root.resolve().parent
        if level:
            folder = self._path.parent
            for _ in range(level - 1):
                folder = folder.parent
        elif not parts or parts[0] != self._root.resolve().name:
            return None
        path = folder.joinpath(*parts)
        file = path / "__init__.py" if path.is_dir() else path.with_name(f"{path.name}.py")
        inside(file, self._root, self._where(node))
        return file

    def _take_over(self, other: Module, alias: ast.alias, where: str) -> None:
        module = self._module
        if alias.name == "*":
            module.names.update(other.names)
            module.lines.update(other.lines)
            module.aliases.update(other.aliases)
        else:
            unknown = Unknown(where, f"{alias.name} is not assigned there")
            name = alias.asname or alias.name
            module.names[name] = other.names.get(alias.name, unknown)
            module.lines[name] = where


def _parse(path: Path) -> ast.Module:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
        if len(data) > _MAX_FILE_BYTES:
            raise SourceError(
                f"{path} is larger than {_MAX_FILE_BYTES} bytes; is it the right file?"
            )
        tree = ast.parse(data, str(path))
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}; check the path") from None
    except SyntaxError as error:
        raise SourceError(f"{path}, line {error.lineno}: this is no Python: {error.msg}") from None
    except (RecursionError, MemoryError, ValueError) as error:
        if isinstance(error, SourceError):
            raise
        raise SourceError(f"{path} cannot be read as Python: {error}") from None
    _check_depth(tree, path)
    return tree


def _check_depth(tree: ast.Module, path: Path) -> None:
    """Without recursion, as its limit is another one in every program."""
    stack: list[tuple[ast.AST, int, int]] = [(tree, 0, 1)]
    while stack:
        node, depth, line = stack.pop()
        line = getattr(node, "lineno", line)
        if depth > _MAX_DEPTH:
            raise SourceError(f"{path}, line {line}: this is nested too deeply")
        stack += [(child, depth + 1, line) for child in ast.iter_child_nodes(node)]


def _loaded(target: ast.expr) -> ast.expr:
    """A target as an expression that reads it."""
    return ast.parse(ast.unparse(target), mode="eval").body


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
