"""Rendered indoor scenes with colour, depth, labels and boxes: no download, any number.

`render_scene` makes one in memory, `write_rooms` a data set on disk.
"""

from segtasks.data.rooms.folder import RoomsFolder, RoomsFolderError, write_rooms
from segtasks.data.rooms.render import CLASS_NAMES, DEPTH_RANGE_M, RoomsScene, render_scene

__all__ = [
    "CLASS_NAMES",
    "DEPTH_RANGE_M",
    "RoomsFolder",
    "RoomsFolderError",
    "RoomsScene",
    "render_scene",
    "write_rooms",
]
