"""Shapes that rays can hit, in NumPy.

Only additions, products, divisions, square roots and comparisons touch the pixels: IEEE 754
fixes their results, so scenes come out the same on every machine.

World axes are x right, y forward, z up, in metres. P is the number of rays or points; vectors
are float32 arrays (3, P), and an origin shared by all rays is (3, 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

MISS = np.float32(np.inf)
_TINY = np.float32(1e-9)


@dataclass(frozen=True)
class Surface:
    """What shading needs to know of P points on a shape.

    Attributes:
        normal: (3, P) unit vectors that point out of the shape (into a room).
        u: (P,) first texture coordinate in metres.
        v: (P,) second texture coordinate in metres.
        margin: (P,) distance to the nearest edge of the face in metres, inf without edges.
    """

    normal: np.ndarray
    u: np.ndarray
    v: np.ndarray
    margin: np.ndarray


class Shape(Protocol):
    """A solid that stands in the room."""

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Return (P,) multiples of `direction` (3, P) from `origin` to the hit, inf for a miss."""

    def surface(self, points: np.ndarray) -> Surface:
        """Describe the surface at `points` (3, P), which lie on it."""


def _inverse(direction: np.ndarray) -> np.ndarray:
    """Return 1 / direction, finite also for rays that are parallel to an axis."""
    return np.float32(1) / np.where(np.abs(direction) < _TINY, _TINY, direction)


def _nearest_root(a: np.ndarray, half_b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """Return the smaller root of a t^2 + 2 half_b t + c = 0 where it exists and is positive."""
    discriminant = half_b * half_b - a * c
    root = (-half_b - np.sqrt(np.maximum(discriminant, 0))) / np.maximum(a, _TINY)
    return np.where((discriminant > 0) & (root > 0), root, MISS)


def _turn(x: np.ndarray, y: np.ndarray, cos: float, sin: float) -> tuple[np.ndarray, np.ndarray]:
    return x * cos + y * sin, y * cos - x * sin


def _pseudo_angle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return a number in [-2, 2] that grows with the angle of (x, y), without trigonometry."""
    ratio = y / np.maximum(np.abs(x) + np.abs(y), _TINY)
    return np.where(x >= 0, ratio, np.where(y >= 0, 2 - ratio, -2 - ratio))


@dataclass(frozen=True)
class Room:
    """The inside of an upright box from the origin to `extent` = (width, depth, height).

    Faces are numbered 0 x=0, 1 x=width, 2 y=0, 3 y=depth (walls), 4 floor, 5 ceiling.
    """

    extent: tuple[float, float, float]

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return distances (P,) and face numbers (P,) int8 of rays that start inside."""
        ends = np.array(self.extent, np.float32)[:, None] * (direction > 0)
        distances = (ends - origin) * _inverse(direction)
        # A ray along a wall never leaves through it.
        distances = np.where(np.abs(direction) < _TINY, MISS, distances)
        axis = np.argmin(distances, axis=0)
        distance = np.minimum(np.minimum(distances[0], distances[1]), distances[2])
        forward = np.take_along_axis(direction, axis[None], axis=0)[0] > 0
        return distance, (2 * axis + forward).astype(np.int8)

    def surface(self, points: np.ndarray, face: int) -> Surface:
        """Describe points (3, P) on one face; u, v are the two world axes along it."""
        axis, far = divmod(face, 2)
        normal = np.zeros_like(points)
        normal[axis] = -1 if far else 1
        first, second = ((1, 2), (0, 2), (0, 1))[axis]
        u, v = points[first], points[second]
        return Surface(normal, u, v, np.full_like(u, np.inf))


@dataclass(frozen=True)
class Decal:
    """A flat painted patch on a face of the room.

    Attributes:
        face: face of `Room` that carries it.
        centre: its middle in the (u, v) of that face.
        half: half its size along its own two axes.
        direction: cosine and sine of its rotation in the face.
        round: an ellipse instead of a rectangle.
    """

    face: int
    centre: tuple[float, float]
    half: tuple[float, float]
    direction: tuple[float, float] = (1.0, 0.0)
    round: bool = False

    def locate(self, host: Surface) -> Surface:
        """Express points of the host face in the patch's own axes; margin < 0 lies outside."""
        u, v = _turn(host.u - self.centre[0], host.v - self.centre[1], *self.direction)
        if self.round:
            a, b = u / self.half[0], v / self.half[1]
            margin = (1 - np.sqrt(a * a + b * b)) * min(self.half)
        else:
            margin = np.minimum(self.half[0] - np.abs(u), self.half[1] - np.abs(v))
        return Surface(host.normal, u, v, margin)


@dataclass(frozen=True)
class Box:
    """A box turned about the vertical axis.

    Attributes:
        centre: its middle.
        half: half its size along its own axes.
        direction: cosine and sine of its rotation.
    """

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    direction: tuple[float, float] = (1.0, 0.0)

    def _local(self, vector: np.ndarray, shift: bool) -> np.ndarray:
        moved = vector - np.array(self.centre, np.float32)[:, None] if shift else vector
        x, y = _turn(moved[0], moved[1], *self.direction)
        return np.stack([x, y, moved[2]])

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Return where rays that start outside enter the box."""
        inverse = _inverse(self._local(direction, shift=False))
        half = np.array(self.half, np.float32)[:, None]
        middle = -self._local(origin, shift=True) * inverse
        reach = half * np.abs(inverse)
        entry, leave = middle - reach, middle + reach
        near = np.maximum(np.maximum(entry[0], entry[1]), entry[2])
        far = np.minimum(np.minimum(leave[0], leave[1]), leave[2])
        return np.where((near < far) & (near > 0), near, MISS)

    def surface(self, points: np.ndarray) -> Surface:
        """Take the face whose plane is nearest."""
        local = self._local(points, shift=True)
        inside = np.array(self.half, np.float32)[:, None] - np.abs(local)
        axis = np.argmin(inside, axis=0)
        on_x, on_z = axis == 0, axis == 2
        sign = np.where(local < 0, np.float32(-1), np.float32(1))
        x = np.where(on_x, sign[0], 0)
        y = np.where(axis == 1, sign[1], 0)
        normal_x, normal_y = _turn(x, y, self.direction[0], -self.direction[1])
        normal = np.stack([normal_x, normal_y, np.where(on_z, sign[2], 0)])
        u = np.where(on_x, local[1], local[0])
        v = np.where(on_z, local[1], local[2])
        edge_u = np.where(on_x, inside[1], inside[0])
        edge_v = np.where(on_z, inside[1], inside[2])
        return Surface(normal.astype(np.float32), u, v, np.minimum(edge_u, edge_v))


@dataclass(frozen=True)
class Cylinder:
    """An upright cylinder around (x, y) from `bottom` to `top`."""

    x: float
    y: float
    radius: float
    bottom: float
    top: float

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Return the nearer of the hit on the side and those on the two caps."""
        ox, oy, oz = origin[0] - self.x, origin[1] - self.y, origin[2]
        dx, dy, dz = direction
        a = dx * dx + dy * dy
        side = _nearest_root(a, ox * dx + oy * dy, ox * ox + oy * oy - self.radius**2)
        z = oz + np.where(side < MISS, side, 0) * dz
        side = np.where((z >= self.bottom) & (z <= self.top), side, MISS)
        # The cap that faces the ray is hit first.
        cap = (np.where(dz < 0, self.top, self.bottom).astype(np.float32) - oz) * _inverse(dz)
        px, py = ox + cap * dx, oy + cap * dy
        on_cap = (px * px + py * py <= self.radius**2) & (cap > 0)
        return np.minimum(side, np.where(on_cap, cap, MISS))

    def surface(self, points: np.ndarray) -> Surface:
        """Wrap the texture around the side; the margin counts from the rims."""
        x, y, z = points[0] - self.x, points[1] - self.y, points[2]
        from_axis = np.sqrt(x * x + y * y)
        rim = np.minimum(np.abs(self.top - z), np.abs(z - self.bottom))
        on_cap = rim < self.radius - from_axis
        scale = np.where(on_cap, 0, 1 / np.maximum(from_axis, _TINY))
        up = np.where(on_cap, np.where(z > (self.top + self.bottom) / 2, 1, -1), 0)
        normal = np.stack([x * scale, y * scale, up]).astype(np.float32)
        u = np.where(on_cap, x, _pseudo_angle(x, y) * (1.5708 * self.radius))
        v = np.where(on_cap, y, z)
        margin = np.where(on_cap, self.radius - from_axis, rim)
        return Surface(normal, u, v, margin)


@dataclass(frozen=True)
class Ball:
    """A sphere."""

    centre: tuple[float, float, float]
    radius: float

    def intersect(self, origin: np.ndarray, direction: np.ndarray) -> np.ndarray:
        """Return the first hit of rays that start outside."""
        centre = np.array(self.centre, np.float32)[:, None]
        offset = origin - centre
        a = direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2
        half_b = offset[0] * direction[0] + offset[1] * direction[1] + offset[2] * direction[2]
        c = offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2 - self.radius**2
        return _nearest_root(a, half_b, c)

    def surface(self, points: np.ndarray) -> Surface:
        """Wrap the texture around the vertical axis like a beach ball's."""
        normal = (points - np.array(self.centre, np.float32)[:, None]) / self.radius
        u = _pseudo_angle(normal[0], normal[1]) * (1.5708 * self.radius)
        v = normal[2] * self.radius
        return Surface(normal, u, v, np.full_like(u, np.inf))
