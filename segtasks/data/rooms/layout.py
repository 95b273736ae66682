"""What stands in a room, where, in which colours, and from where it is seen: drawn at random.

Cabinets, pictures and rugs share their palette, outlines and textures, and so do balls and round
pictures; in part of the rooms floor, walls and ceiling are painted alike. Depth tells them apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from segtasks.data.rooms.shapes import Ball, Box, Cylinder, Decal, Room, Shape
from segtasks.data.rooms.texture import PATTERNS, Material

CLASS_NAMES = ("wall", "floor", "ceiling", "picture", "rug", "cabinet", "column", "ball")
WALL, FLOOR, CEILING, PICTURE, RUG, CABINET, COLUMN, BALL = range(1, len(CLASS_NAMES) + 1)
FLOOR_FACE = 4


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: metres, world axes.
        yaw: radians from y (forward) towards x (right).
        pitch: radians upwards.
        roll: radians.
        half_width: half the image width at distance 1.
    """

    position: tuple[float, float, float]
    yaw: float
    pitch: float
    roll: float
    half_width: float

    def rays(self, height: int, width: int) -> np.ndarray:
        """Return directions (3, height * width) whose part along the optical axis is 1."""
        sin_yaw, cos_yaw = math.sin(self.yaw), math.cos(self.yaw)
        sin_pitch, cos_pitch = math.sin(self.pitch), math.cos(self.pitch)
        sin_roll, cos_roll = math.sin(self.roll), math.cos(self.roll)
        forward = np.array([sin_yaw * cos_pitch, cos_yaw * cos_pitch, sin_pitch])
        level = np.array([cos_yaw, -sin_yaw, 0.0])
        above = np.array([-sin_yaw * sin_pitch, -cos_yaw * sin_pitch, cos_pitch])
        right = cos_roll * level + sin_roll * above
        up = cos_roll * above - sin_roll * level
        step = 2 * self.half_width / width
        x = ((np.arange(width) + 0.5 - width / 2) * step)[None, None, :]
        y = ((height / 2 - np.arange(height) - 0.5) * step)[None, :, None]
        f, r, u = (axis[:, None, None] for axis in (forward, right, up))
        return (f + x * r + y * u).reshape(3, -1).astype(np.float32)


@dataclass(frozen=True)
class Solid:
    """A thing in the room."""

    class_id: int
    shape: Shape
    material: Material


@dataclass(frozen=True)
class Patch:
    """A picture or a rug."""

    class_id: int
    decal: Decal
    material: Material


@dataclass(frozen=True)
class Layout:
    """A furnished room with a light and a camera.

    Attributes:
        room: its walls.
        surfaces: materials of walls, floor and ceiling.
        patches: pictures and rugs; none overlap.
        solids: things that stand, hang or float in it.
        light: position of the lamp in metres.
        ambient: share of the light that comes from everywhere, 0 to 1.
        camera: where it is seen from.
    """

    room: Room
    surfaces: tuple[Material, Material, Material]
    patches: tuple[Patch, ...]
    solids: tuple[Solid, ...]
    light: tuple[float, float, float]
    ambient: float
    camera: Camera


class _Painter:
    """Draws materials: quiet ones for the room, strong ones for things of whatever class."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        raw = generator.uniform(0.03, 0.9, (6, 3))
        self.palette = _saturate(raw, generator.uniform(0.7, 1.2, (6, 1)))
        raw = generator.uniform(0.25, 0.8, (3, 3))
        self.quiet = _saturate(raw, generator.uniform(0.15, 0.5, (3, 1)))

    def _colour(self, unlike: tuple[float, float, float]) -> tuple[float, float, float]:
        order = self.generator.permutation(len(self.palette))
        # Paint on a wall of the same colour could not be seen at all.
        distance = np.abs(self.palette[order] - np.array(unlike)).sum(axis=1)
        return _floats(self.palette[order[int(np.argmax(distance > 0.5))]])

    def surface(self) -> Material:
        """Return a quiet material for floor, walls or ceiling."""
        pattern = PATTERNS[self.generator.choice(6, p=[0.4, 0.08, 0.1, 0.2, 0.2, 0.02])]
        colour, other = (self.quiet[row] for row in self.generator.permutation(3)[:2])
        second = colour + self.generator.uniform(0.2, 0.5) * (other - colour)
        scale = float(self.generator.uniform(0.2, 0.6))
        return Material(_floats(colour), _floats(second), pattern, scale)

    def thing(self, host: Material) -> Material:
        """Return a material that stands out from `host`, often with a frame."""
        pattern = PATTERNS[self.generator.choice(6, p=[0.4, 0.14, 0.12, 0.1, 0.16, 0.08])]
        colour = self._colour(host.colour)
        scale = float(self.generator.uniform(0.1, 0.3))
        width = float(self.generator.uniform(0.04, 0.09))
        frame = width if self.generator.random() < 0.5 else 0.0
        second, edge = self._colour(colour), self._colour(colour)
        return Material(colour, second, pattern, scale, frame, edge)


def _saturate(colours: np.ndarray, strength: np.ndarray) -> np.ndarray:
    grey = colours.mean(axis=1, keepdims=True)
    return np.clip(grey + (colours - grey) * strength, 0.03, 0.95)


def _floats(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def draw_layout(generator: np.random.Generator, looks_up: bool) -> Layout:
    """Draw a room, its furniture and a camera that looks at it from near one wall.

    Args:
        generator: the source of every choice.
        looks_up: whether to hold the camera so that the ceiling is seen as well.
    """
    width, depth = generator.uniform(3.2, 5.2, 2)
    room = Room((float(width), float(depth), float(generator.uniform(2.3, 3.0))))
    camera = _draw_camera(room, looks_up, generator)
    painter = _Painter(generator)
    wall, floor, ceiling = painter.surface(), painter.surface(), painter.surface()
    if generator.random() < 0.4:
        floor = wall
    if generator.random() < 0.5:
        ceiling = wall
    solids = _draw_solids(room, camera, painter, wall, generator)
    patches = _draw_patches(room, camera, painter, (wall, floor), generator)
    light = (
        float(generator.uniform(0.25, 0.75) * width),
        float(generator.uniform(0.15, 0.75) * depth),
        room.extent[2] - 0.2,
    )
    ambient = float(generator.uniform(0.3, 0.5))
    surfaces = (wall, floor, ceiling)
    return Layout(room, surfaces, patches, solids, light, ambient, camera)


def _draw_camera(room: Room, looks_up: bool, generator: np.random.Generator) -> Camera:
    width, _, height = room.extent
    side = float(generator.uniform(0.15, 0.85))
    position = (
        side * width,
        float(generator.uniform(0.25, 0.9)),
        float(generator.uniform(0.35, 0.8) * height),
    )
    yaw = math.radians(generator.uniform(-35, 35)) + 0.9 * (0.5 - side)
    pitch = math.radians(generator.uniform(-4, 20) if looks_up else generator.uniform(-36, -4))
    roll = math.radians(generator.uniform(-10, 10))
    half_width = math.tan(math.radians(generator.uniform(31, 39)))
    return Camera(position, yaw, pitch, roll, half_width)


def _draw_solids(
    room: Room, camera: Camera, painter: _Painter, wall: Material, generator: np.random.Generator
) -> tuple[Solid, ...]:
    """Place things one after the other where the camera looks and nothing stands yet."""
    wanted: list[tuple[int, Callable[..., tuple[Shape, float]]]] = []
    wanted += [(CABINET, _cabinet)] * int(generator.integers(1, 4))
    wanted += [(COLUMN, _column)] * int(generator.integers(1, 3))
    wanted += [(BALL, _ball)] * int(generator.integers(2, 4))
    taken: list[tuple[float, float, float]] = [(*camera.position[:2], 0.6)]
    solids = []
    for class_id, draw in wanted:
        for _ in range(12):
            x, y = _spot(room, camera, generator)
            shape, radius = draw(room, x, y, generator)
            centre = shape.centre[:2] if isinstance(shape, Box) else (x, y)
            if any(math.dist(centre, (a, b)) < radius + r for a, b, r in taken):
                continue
            taken.append((*centre, radius))
            solids.append(Solid(class_id, shape, painter.thing(wall)))
            break
    return tuple(solids)


def _spot(room: Room, camera: Camera, generator: np.random.Generator) -> tuple[float, float]:
    """Return a place on the floor in the camera's horizontal field of view."""
    bearing = camera.yaw + math.atan(camera.half_width) * generator.uniform(-1, 1)
    distance = generator.uniform(1.3, 4.5)
    x = camera.position[0] + distance * math.sin(bearing)
    y = camera.position[1] + distance * math.cos(bearing)
    width, depth, _ = room.extent
    return min(max(float(x), 0.4), width - 0.4), min(max(float(y), 0.4), depth - 0.4)


def _cabinet(room: Room, x: float, y: float, generator: np.random.Generator) -> tuple[Box, float]:
    """Return a box: against a wall, hanging on it at a picture's height, or free."""
    half_w, half_d = (float(v) for v in generator.uniform((0.3, 0.15), (0.6, 0.3)))
    half_h = float(generator.uniform(0.25, 0.8))
    kind = generator.random()
    if kind < 0.3:
        angle = float(generator.uniform(0, math.pi))
        centre = (x, y, half_h)
        return Box(centre, (half_w, half_d, half_h), (math.cos(angle), math.sin(angle))), half_w
    z = half_h
    if kind > 0.65:
        half_h = float(generator.uniform(0.25, 0.45))
        z = float(generator.uniform(1.1, 1.7))
    width, depth, _ = room.extent
    gaps = (x, width - x, depth - y)
    nearest = gaps.index(min(gaps))
    if nearest == 2:
        return Box((x, depth - half_d, z), (half_w, half_d, half_h)), half_w
    side = half_d if nearest == 0 else width - half_d
    return Box((side, y, z), (half_d, half_w, half_h)), half_w


def _column(
    room: Room, x: float, y: float, generator: np.random.Generator
) -> tuple[Cylinder, float]:
    """Return a bin, or a column up to the ceiling."""
    radius = float(generator.uniform(0.18, 0.35))
    height = room.extent[2]
    top = height if generator.random() < 0.5 else float(generator.uniform(0.6, 1.4))
    return Cylinder(x, y, radius, 0.0, top), radius


def _ball(room: Room, x: float, y: float, generator: np.random.Generator) -> tuple[Ball, float]:
    """Return a ball on the floor or a balloon above it."""
    radius = float(generator.uniform(0.22, 0.4))
    high = float(generator.uniform(1.0, room.extent[2] - radius))
    z = radius if generator.random() < 0.5 else high
    return Ball((x, y, z), radius), radius


def _draw_patches(
    room: Room,
    camera: Camera,
    painter: _Painter,
    hosts: tuple[Material, Material],
    generator: np.random.Generator,
) -> tuple[Patch, ...]:
    """Put pictures on the walls and rugs on the floor where the camera's rays meet them."""
    origin = np.array(camera.position, np.float32)[:, None]
    rays = camera.rays(24, 32)
    distance, faces = room.intersect(origin, rays)
    points = origin + distance * rays
    patches: list[Patch] = []
    wall, floor = hosts
    for face in np.unique(faces).tolist():
        if face > FLOOR_FACE:
            continue
        on_face = room.surface(points[:, faces == face], face)
        seen = np.stack([on_face.u, on_face.v], axis=1)
        wanted = int(generator.integers(1, 3)) if face == FLOOR_FACE else 2
        draw, class_id, host = (
            (_rug, RUG, floor) if face == FLOOR_FACE else (_picture, PICTURE, wall)
        )
        taken: list[tuple[float, float, float]] = []
        for _ in range(wanted):
            u, v = (float(value) for value in seen[generator.integers(len(seen))])
            decal, radius = draw(room, face, u, v, generator)
            if all(math.dist(decal.centre, (a, b)) > radius + r for a, b, r in taken):
                taken.append((*decal.centre, radius))
                patches.append(Patch(class_id, decal, painter.thing(host)))
    return tuple(patches)


def _picture(
    room: Room, face: int, u: float, v: float, generator: np.random.Generator
) -> tuple[Decal, float]:
    half_u, half_v = (float(value) for value in generator.uniform(0.35, 0.7, 2))
    round_one = bool(generator.random() < 0.3)
    if round_one:
        half_u = half_v = min(half_u, half_v)
    length = room.extent[1] if face < 2 else room.extent[0]
    u = min(max(u, half_u + 0.1), length - half_u - 0.1)
    v = min(max(v, half_v + 0.2), room.extent[2] - half_v - 0.1)
    return Decal(face, (u, v), (half_u, half_v), round=round_one), max(half_u, half_v)


def _rug(
    room: Room, face: int, u: float, v: float, generator: np.random.Generator
) -> tuple[Decal, float]:
    half_u, half_v = (float(value) for value in generator.uniform((0.7, 0.5), (1.3, 0.9)))
    angle = float(generator.uniform(0, math.pi))
    reach = math.hypot(half_u, half_v)
    u = min(max(u, 0.5), room.extent[0] - 0.5)
    v = min(max(v, 0.5), room.extent[1] - 0.5)
    round_one = bool(generator.random() < 0.25)
    direction = (math.cos(angle), math.sin(angle))
    return Decal(face, (u, v), (half_u, half_v), direction, round_one), reach
