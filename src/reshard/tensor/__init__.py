"""A tensor without its bytes: element type, regions, byte runs, and how ranks share it."""

from .box import Box, ByteRange, Shape, TensorSpec, extent_of, row_major_boxes
from .dtype import DType
from .layout import MAX_RANK_COUNT, Layout, RowSplit, Strategy
from .patch import Patch, Views, plain_patch, view_boxes
from .runs import Runs, Scatter, box_scatter, slice_scatters, strided

__all__ = [
    "MAX_RANK_COUNT",
    "Box",
    "ByteRange",
    "DType",
    "Layout",
    "Patch",
    "RowSplit",
    "Runs",
    "Scatter",
    "Shape",
    "Strategy",
    "TensorSpec",
    "Views",
    "box_scatter",
    "extent_of",
    "plain_patch",
    "row_major_boxes",
    "slice_scatters",
    "strided",
    "view_boxes",
]
