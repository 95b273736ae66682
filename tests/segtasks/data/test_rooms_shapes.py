"""Shapes against an independent answer: distances by hand, and marching along the ray."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from segtasks.data.rooms.shapes import Ball, Box, Cylinder, Decal, Room, Shape, Surface

TURN = (math.cos(0.7), math.sin(0.7))
BOX = Box((0.2, 3.0, 0.9), (0.6, 0.3, 0.5), TURN)
CYLINDER = Cylinder(-0.1, 3.0, 0.5, 0.2, 1.3)
BALL = Ball((0.1, 2.8, 1.0), 0.6)


def inside_box(points: np.ndarray) -> np.ndarray:
    x, y, z = points - np.array([[0.2], [3.0], [0.9]])
    along = x * TURN[0] + y * TURN[1]
    across = y * TURN[0] - x * TURN[1]
    return (abs(along) < 0.6) & (abs(across) < 0.3) & (abs(z) < 0.5)


def inside_cylinder(points: np.ndarray) -> np.ndarray:
    x, y, z = points
    return (np.hypot(x + 0.1, y - 3) < 0.5) & (z > 0.2) & (z < 1.3)


def inside_ball(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points - np.array([[0.1], [2.8], [1.0]]), axis=0) < 0.6


SOLIDS = [(BOX, inside_box), (CYLINDER, inside_cylinder), (BALL, inside_ball)]


def rays(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return an origin above eye level and directions around the shapes."""
    directions = rng.uniform((-0.6, 1, -0.9), (0.6, 1, 0.3), (400, 3)).T
    return np.array([[0.0], [0.3], [1.8]], np.float32), directions.astype(np.float32)


@pytest.mark.parametrize(("shape", "inside"), SOLIDS, ids=["box", "cylinder", "ball"])
def test_rays_stop_where_marching_along_them_enters_the_solid(
    shape: Shape, inside: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> None:
    origin, directions = rays(rng)
    steps = np.linspace(0, 5, 2001)
    entered = np.stack([inside(origin + step * directions) for step in steps])
    marched = np.where(entered.any(axis=0), steps[entered.argmax(axis=0)], np.inf)

    hit = shape.intersect(origin, directions)

    # A ray that cuts an edge thinner than a step is missed by the march.
    both = np.isfinite(marched)
    assert both.sum() > 50
    assert np.isfinite(hit[both]).all()
    np.testing.assert_allclose(hit[both], marched[both], atol=0.004)
    assert np.isfinite(hit).sum() <= both.sum() + 8


@pytest.mark.parametrize(("shape", "inside"), SOLIDS, ids=["box", "cylinder", "ball"])
def test_normals_are_unit_and_lead_out_of_the_solid(
    shape: Shape, inside: Callable[[np.ndarray], np.ndarray], rng: np.random.Generator
) -> None:
    origin, directions = rays(rng)
    distance = shape.intersect(origin, directions)
    hit = np.isfinite(distance)
    points = origin + distance[hit] * directions[:, hit]

    normal = shape.surface(points).normal

    np.testing.assert_allclose(np.linalg.norm(normal, axis=0), 1, atol=1e-5)
    outside = ~inside(points + 0.01 * normal) & inside(points - 0.01 * normal)
    # Points within 1 cm of an edge lie under two faces.
    assert outside.mean() > 0.95


def test_the_faces_of_a_turned_box_are_square_to_its_axes(rng: np.random.Generator) -> None:
    origin, directions = rays(rng)
    distance = BOX.intersect(origin, directions)
    hit = np.isfinite(distance)

    normal = BOX.surface(origin + distance[hit] * directions[:, hit]).normal

    cos, sin = TURN
    # Seen from the front, above: of its long sides the near one, of its short ones the left.
    expected = {(round(sin, 3), round(-cos, 3), 0.0), (round(-cos, 3), round(-sin, 3), 0.0)}
    expected.add((0.0, 0.0, 1.0))
    found = {tuple((np.round(row.astype(float), 3) + 0.0).tolist()) for row in normal.T}
    assert found == expected


def test_the_room_is_left_through_the_face_ahead() -> None:
    room = Room((4.0, 5.0, 2.5))
    origin = np.array([[1.0], [1.0], [1.0]], np.float32)
    directions = np.array(
        [[-1, 0, 0], [1, 0, 0], [0, -1, 0], [0, 1, 0], [0, 0, -1], [0, 0, 1], [2, 1, 0.1]],
        np.float32,
    ).T

    distance, face = room.intersect(origin, directions)

    np.testing.assert_allclose(distance, [1, 3, 1, 4, 1, 1.5, 1.5], rtol=1e-6)
    assert face.tolist() == [0, 1, 2, 3, 4, 5, 1]


def test_a_decal_covers_what_lies_within_its_turned_outline() -> None:
    u = np.array([1.0, 1.5, 1.0, 2.0, 1.3], np.float32)
    v = np.array([1.0, 1.5, 1.4, 1.0, 0.7], np.float32)
    host = Surface(np.zeros((3, 5), np.float32), u, v, np.full(5, np.inf))
    diagonal = (math.cos(math.pi / 4), math.sin(math.pi / 4))

    place = Decal(4, (1.0, 1.0), (0.8, 0.2), diagonal).locate(host)

    # Along the diagonal it reaches 0.8 m, across it 0.2 m.
    assert (place.margin > 0).tolist() == [True, True, False, False, False]
    np.testing.assert_allclose(place.u[1], math.sqrt(0.5), rtol=1e-6)


def test_a_round_decal_is_an_ellipse() -> None:
    u = np.array([0.0, 0.35, 0.3, 0.0], np.float32)
    v = np.array([0.0, 0.0, 0.15, 0.25], np.float32)
    host = Surface(np.zeros((3, 4), np.float32), u, v, np.full(4, np.inf))

    place = Decal(0, (0.0, 0.0), (0.4, 0.2), round=True).locate(host)

    assert (place.margin > 0).tolist() == [True, True, False, False]
