"""Render a furnished room: colour, depth, labels and boxes of one scene."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segtasks.data.rooms.layout import (
    CEILING,
    CLASS_NAMES,
    FLOOR,
    FLOOR_FACE,
    WALL,
    Layout,
    draw_layout,
)
from segtasks.data.rooms.sensor import DEPTH_RANGE_M, measure_depth, photograph
from segtasks.data.rooms.shapes import Surface
from segtasks.data.rooms.texture import NOISE_SIZE, Material, paint

MIN_SIDE = 32
_MIN_BOX_SHARE = 0.001
_ATTEMPTS = 24
# Of 0.4 for eight classes with 5 % of the pixels each.
_GOOD_VIEW = 0.3


@dataclass(frozen=True)
class RoomsScene:
    """One rendered view of a room.

    Attributes:
        image: (H, W, 3) uint8, RGB.
        depth: (H, W) uint8, what the sensor reads: 255 is `DEPTH_RANGE_M`, 0 a hole.
        depth_m: (H, W) float32, exact distance along the optical axis in metres.
        label: (H, W) uint8, 1 to K as in `CLASS_NAMES`, 0 where a pixel mixes two classes.
        boxes_xyxy: (N, 4) float32, pixels, around the visible part of each object.
        box_classes: (N,) int64, labels of the objects (picture, rug, cabinet, column, ball).
        box_areas: (N,) int64, visible pixels of each object.
    """

    image: np.ndarray
    depth: np.ndarray
    depth_m: np.ndarray
    label: np.ndarray
    boxes_xyxy: np.ndarray
    box_classes: np.ndarray
    box_areas: np.ndarray


@dataclass(frozen=True)
class _Hits:
    """What P rays meet first.

    `part` numbers walls 0, floor 1, ceiling 2, then patches, then solids.
    """

    distance: np.ndarray
    part: np.ndarray
    face: np.ndarray


def render_scene(seed: int, index: int, size: tuple[int, int]) -> RoomsScene:
    """Render scene `index` of the series `seed`; the same arguments give the same scene.

    Args:
        seed: which series, 0 or more.
        index: which scene of it, 0 or more.
        size: (height, width) in pixels, at least 32 each.

    Raises:
        ValueError: when an argument is out of range.
    """
    height, width = size
    if seed < 0 or index < 0:
        raise ValueError(f"seed and index must be 0 or more, got {seed} and {index}")
    if min(size) < MIN_SIDE:
        raise ValueError(f"size must be at least {MIN_SIDE}x{MIN_SIDE}, got {height}x{width}")
    layout = _choose_layout(np.random.default_rng([seed, index, 0]))
    # Apart from the layout's, so that the number of attempts does not change the noise.
    generator = np.random.default_rng([seed, index, 1])
    table = generator.random((NOISE_SIZE, NOISE_SIZE), dtype=np.float32)
    rays = layout.camera.rays(height, width)
    hits = _trace(layout, rays)
    radiance, cosine = _shade(layout, rays, hits, table)
    depth_m = hits.distance.reshape(size)
    parts = hits.part.reshape(size)
    boxes, classes, areas = _visible_boxes(layout, parts)
    return RoomsScene(
        image=photograph(radiance.reshape(3, height, width), generator),
        depth=measure_depth(
            depth_m, cosine.reshape(size), layout.camera.half_width, table, generator
        ),
        depth_m=depth_m,
        label=_labels(_part_classes(layout)[parts]),
        boxes_xyxy=boxes,
        box_classes=classes,
        box_areas=areas,
    )


def _choose_layout(generator: np.random.Generator) -> Layout:
    """Return the first of a few layouts that shows most classes well, else the best of them."""
    looks_up = bool(generator.random() < 0.4)
    best, best_score = draw_layout(generator, looks_up), -1.0
    layout = best
    for _ in range(_ATTEMPTS):
        classes = _part_classes(layout)[_trace(layout, layout.camera.rays(24, 32)).part]
        shares = np.bincount(classes, minlength=len(CLASS_NAMES) + 1)[1:] / classes.size
        # Each class counts up to a share that is easy to see; one that fills the view costs.
        score = float(np.minimum(shares, 0.05).sum()) - max(0.0, float(shares.max()) - 0.4)
        if score > best_score:
            best, best_score = layout, score
        if score > _GOOD_VIEW:
            break
        layout = draw_layout(generator, looks_up)
    return best


def _part_classes(layout: Layout) -> np.ndarray:
    patches = [patch.class_id for patch in layout.patches]
    solids = [solid.class_id for solid in layout.solids]
    return np.array([WALL, FLOOR, CEILING, *patches, *solids], np.uint8)


def _trace(layout: Layout, rays: np.ndarray) -> _Hits:
    """Follow camera rays (3, P) to the first surface."""
    origin = np.array(layout.camera.position, np.float32)[:, None]
    distance, face = layout.room.intersect(origin, rays)
    part = np.maximum(face.astype(np.int16) - (FLOOR_FACE - 1), 0)
    for number, patch in enumerate(layout.patches, start=3):
        on_face = np.flatnonzero(face == patch.decal.face)
        points = origin + distance[on_face] * rays[:, on_face]
        place = patch.decal.locate(layout.room.surface(points, patch.decal.face))
        part[on_face[place.margin > 0]] = number
    for number, solid in enumerate(layout.solids, start=3 + len(layout.patches)):
        reach = solid.shape.intersect(origin, rays)
        closer = reach < distance
        part[closer] = number
        distance = np.minimum(distance, reach)
    return _Hits(distance, part, face)


def _surfaces(
    layout: Layout, points: np.ndarray, hits: _Hits
) -> list[tuple[np.ndarray, Surface, Material]]:
    """Return, for each visible piece of one material, its rays, its surface and the material."""
    pieces = []
    for number in np.unique(hits.part).tolist():
        chosen = hits.part == number
        if number >= 3 + len(layout.patches):
            solid = layout.solids[number - 3 - len(layout.patches)]
            rays = np.flatnonzero(chosen)
            pieces.append((rays, solid.shape.surface(points[:, rays]), solid.material))
            continue
        for face in np.unique(hits.face[chosen]).tolist():
            rays = np.flatnonzero(chosen & (hits.face == face))
            surface = layout.room.surface(points[:, rays], face)
            if number < 3:
                pieces.append((rays, surface, layout.surfaces[number]))
            else:
                patch = layout.patches[number - 3]
                pieces.append((rays, patch.decal.locate(surface), patch.material))
    return pieces


def _shade(
    layout: Layout, rays: np.ndarray, hits: _Hits, table: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return radiance (3, P) and the cosine (P,) between each ray and its surface."""
    points = np.array(layout.camera.position, np.float32)[:, None] + hits.distance * rays
    albedo, normal = np.empty_like(points), np.empty_like(points)
    for chosen, surface, material in _surfaces(layout, points, hits):
        albedo[:, chosen] = paint(material, surface, table)
        normal[:, chosen] = surface.normal
    to_light = np.array(layout.light, np.float32)[:, None] - points
    distance = np.sqrt(_dot(to_light, to_light))
    lambert = np.maximum(_dot(normal, to_light), 0) / distance
    lambert *= _lit(layout, points + np.float32(2e-3) * normal, to_light, lambert > 0)
    direct = (1 - layout.ambient) * lambert * 2 / (1 + np.float32(0.12) * distance * distance)
    # Light from all around comes a little more from above.
    around = layout.ambient * (1 + np.float32(0.15) * normal[2])
    cosine = np.abs(_dot(normal, rays)) / np.sqrt(_dot(rays, rays))
    return albedo * (around + direct), cosine


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    # Written out: matmul and einsum may add in another order on another machine.
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _lit(
    layout: Layout, points: np.ndarray, to_light: np.ndarray, facing: np.ndarray
) -> np.ndarray:
    """Return 1 where nothing stands between the point and the lamp, 0 in shadow."""
    lit = facing.copy()
    for solid in layout.solids:
        rays = np.flatnonzero(lit)
        blocked = solid.shape.intersect(points[:, rays], to_light[:, rays]) < 1
        lit[rays[blocked]] = False
    return lit.astype(np.float32)


def _labels(classes: np.ndarray) -> np.ndarray:
    """Set pixels between two classes to 0: their colour is a mixture."""
    label = classes.copy()
    label[:, :-1][classes[:, :-1] != classes[:, 1:]] = 0
    label[:-1][classes[:-1] != classes[1:]] = 0
    return label


def _visible_boxes(layout: Layout, parts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return boxes (N, 4), classes (N,) and areas (N,) of objects that are well visible."""
    boxes, classes, areas = [], [], []
    for number, class_id in enumerate(_part_classes(layout).tolist()):
        mask = parts == number
        area = int(mask.sum())
        if number < 3 or area < max(4, _MIN_BOX_SHARE * parts.size):
            continue
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
        classes.append(class_id)
        areas.append(area)
    return (
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(classes, np.int64),
        np.array(areas, np.int64),
    )


__all__ = ["CLASS_NAMES", "DEPTH_RANGE_M", "RoomsScene", "render_scene"]
