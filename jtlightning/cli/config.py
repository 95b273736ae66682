"""Configuration files and overrides, merged into one tree that remembers where each key is from.

Layers, weakest first: the files that a file names under its top-level key `base`, the file
itself, further `--config` files, environment variables, the command line. Mappings merge key by
key, lists are replaced, and a part whose `class_path` changes starts anew.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

#: The sections that hold a class_path and init_args.
PARTS = ("data", "task")
#: How the origin of a key begins that a checkpoint holds.
INSIDE = "inside "
NODE_KEYS = ("class_path", "init_args", "dict_kwargs")


class ConfigError(ValueError):
    """The configuration or the command line is wrong; the message says where and what to do."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: 1e-3 is a number, 10:00:00:00, 2024-01-01, on and off are words."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag.rsplit(":", 1)[1] in ("null", "merge")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^(?:[-+]?0|[-+]?[1-9][0-9_]*|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "float",
        r"^(?:[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


class _Dumper(yaml.SafeDumper):
    """Quotes words that either version of YAML would take for a number or a date."""


_Dumper.yaml_implicit_resolvers = {
    first: [
        *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
        *_Loader.yaml_implicit_resolvers.get(first, []),
    ]
    for first in {**yaml.SafeDumper.yaml_implicit_resolvers, **_Loader.yaml_implicit_resolvers}
}


def dump(values: dict[str, Any]) -> str:
    """Values as YAML that `ConfigFinder.load` reads back equal."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


@dataclass
class Config:
    """Nested values, and for each dotted key where its value was written."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def where(self, key: str) -> str:
        """Where `key`, or else the innermost section around it, was written."""
        parts = key.split(".")
        for end in range(len(parts), 0, -1):
            origin = self.origins.get(".".join(parts[:end]))
            if origin is not None:
                return origin
        return "no file names it"

    def overlay(self, other: Config) -> None:
        """Lay a stronger configuration on top of this one."""
        _merge(self.values, other.values)
        self.origins.update(other.origins)

    def get(self, key: str) -> Any:
        """The value at a dotted key, or None."""
        node: Any = self.values
        for step in key.split("."):
            node = node.get(step) if isinstance(node, dict) else None
        return node

    def set(self, key: str, text: str, origin: str, *, append: bool = False) -> None:
        """Set one value as the command line writes it: `data.root` may leave out `init_args`.

        Text stays text, to be read as the type of the argument that it is for, except for
        `[...]` and `{...}`.
        """
        value = _inline(text, key)
        node, path = self._descend(key.split("."), origin)
        name = path.rsplit(".", 1)[-1]
        old = node.get(name)
        if append:
            added = value if isinstance(value, list) else [value]
            value = [*([] if old is None else old if isinstance(old, list) else [old]), *added]
        elif isinstance(value, str) and (path in PARTS or _is_node(old)):
            # `--task other.Task` changes the class; naming the same class again keeps its arguments
            kept = old if isinstance(old, dict) and old.get("class_path") in (None, value) else {}
            value = {**kept, "class_path": value}
            self.origins[f"{path}.class_path"] = origin
        elif isinstance(value, dict) and isinstance(old, dict):
            _merge(old, value)
            value = old
        node[name] = value
        self.origins[path] = origin

    def _descend(self, steps: Sequence[str], origin: str) -> tuple[dict[str, Any], str]:
        """The container of the last step, made where missing, and the full dotted key."""
        node: Any = self.values
        path: list[str] = []
        for index, step in enumerate(steps):
            if isinstance(node, list):
                last = str(len(node) - 1)
                node = self._last_element(node, ".".join(steps[: index + 1]))
                path.append(last)
            if step not in NODE_KEYS and (_is_node(node) or ".".join(path) in PARTS):
                node = node.setdefault("init_args", {})
                path.append("init_args")
            path.append(step)
            if index == len(steps) - 1:
                break
            child = node.get(step)
            if isinstance(child, str) and "." in child:
                child = {"class_path": child}
            elif child is None:
                child = {}
                self.origins[".".join(path)] = origin
            elif not isinstance(child, (dict, list)):
                raise ConfigError(
                    f"--{'.'.join(steps)}: {'.'.join(path)} is {child!r}, which has no parts"
                )
            node[step] = child
            node = child
        return node, ".".join(path)

    @staticmethod
    def _last_element(node: list[Any], key: str) -> dict[str, Any]:
        if node and isinstance(node[-1], str):
            node[-1] = {"class_path": node[-1]}
        if not node or not isinstance(node[-1], dict):
            raise ConfigError(f"--{key}: the list before it has no last element with arguments")
        return node[-1]


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and "class_path" in value


def _merge(below: dict[str, Any], above: Mapping[str, Any]) -> None:
    for key, value in above.items():
        old = below.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and not _changes_class(old, value):
            _merge(old, value)
        else:
            below[key] = value


def _changes_class(old: dict[str, Any], new: dict[str, Any]) -> bool:
    return _is_node(old) and _is_node(new) and old["class_path"] != new["class_path"]


def _inline(text: str, key: str) -> Any:
    if not text.startswith(("[", "{")):
        return text
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"--{key}: {text!r} is not valid YAML: {_reason(error)}") from error


def _reason(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error)


def closest(name: str, known: Iterable[str]) -> str | None:
    """The most similar of the known names, if any is similar."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), None)


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?`, or nothing."""
    found = closest(name, known)
    return f"; did you mean {found}?" if found else ""


# ---- files ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfigFinder:
    """Finds configuration files by path, or by name in the folders of shipped ones."""

    folders: Sequence[Path] = ()

    def shipped(self) -> list[str]:
        """Names of the shipped files, such as `demo.yaml` and `base/nyuv2.yaml`."""
        return sorted(
            file.relative_to(folder).as_posix()
            for folder in self.folders
            for file in folder.rglob("*.yaml")
        )

    def find(self, name: str, beside: Path | None = None) -> Path:
        """The file that `name` means; `beside` is the file that names it as its base.

        Raises:
            ConfigError: There is none; the message names the nearest shipped file.
        """
        near = Path() if beside is None else beside.parent
        for folder in (near, *self.folders):
            path = folder / Path(name).expanduser()
            if path.is_file():
                return path
        shipped = self.shipped()
        hint = suggestion(name, shipped) or suggestion(Path(name).name, shipped)
        asked = "" if beside is None else f" (a base of {beside})"
        listed = f" Shipped: {', '.join(shipped)}." if shipped else ""
        raise ConfigError(f"there is no configuration file {name}{asked}{hint or '.'}{listed}")

    def load(self, names: Iterable[str]) -> Config:
        """Load files in order, each on top of its bases and of the files before it."""
        config = Config()
        for name in names:
            config.overlay(self._load(self.find(name), ()))
        return config

    def _load(self, path: Path, users: tuple[Path, ...]) -> Config:
        if path.resolve() in users:
            chain = " -> ".join(str(user) for user in (*users, path.resolve()))
            raise ConfigError(f"configuration files name each other as base: {chain}")
        own = read_file(path)
        bases = own.values.pop("base", [])
        if isinstance(bases, str):
            bases = [bases]
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise ConfigError(f"base is {bases!r} ({path}); give a list of configuration files")
        config = Config()
        for base in bases:
            config.overlay(self._load(self.find(base, path), (*users, path.resolve())))
        config.overlay(own)
        return config


def read_file(path: Path) -> Config:
    """Read one YAML file, without its bases.

    Raises:
        ConfigError: Unreadable, not YAML, a key twice, or not a mapping; names file and line.
    """
    try:
        loader = _Loader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        origins = dict(_origins(node, path.name, ())) if node is not None else {}
        values = loader.construct_document(node) if node is not None else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"{path}{line}: this is not valid YAML: {_reason(error)}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: this is not valid YAML: {_reason(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds a {type(values).__name__}; it must hold sections such as trainer, data "
            "and task"
        )
    return Config(values, origins)


def _origins(node: yaml.Node, file: str, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """Dotted keys with file and line; list elements count as keys 0, 1, ..."""
    children: list[tuple[str, yaml.Node, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), key, value) for key, value in node.value if key.value != "<<"]
        _refuse_doubled(children, path)
    elif isinstance(node, yaml.SequenceNode):
        children = [(str(index), item, item) for index, item in enumerate(node.value)]
    for name, marked, child in children:
        yield ".".join((*path, name)), f"{file}, line {marked.start_mark.line + 1}"
        yield from _origins(child, file, (*path, name))


def _refuse_doubled(
    children: list[tuple[str, yaml.Node, yaml.Node]], path: tuple[str, ...]
) -> None:
    seen: dict[str, int] = {}
    for name, key, _ in children:
        if name in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key {'.'.join((*path, name))} stands here and in line {seen[name]}",
                problem_mark=key.start_mark,
            )
        seen[name] = key.start_mark.line + 1
