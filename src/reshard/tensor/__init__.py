"""A tensor without its bytes: element type, region, where its bytes lie, and how ranks share it."""

from .box import Box, ByteRange, Shape, TensorSpec, extent_of, row_major_boxes
from .dtype import DType
from .layout import Layout, RowSplit
from .patch import Patch, Views, plain_patch, plain_views, view_boxes
from .runs import Runs, Scatter, box_scatter, byte_runs, slice_scatters, strided
from .strategy import Strategy

__all__ = [
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
    "byte_runs",
    "extent_of",
    "plain_patch",
    "plain_views",
    "row_major_boxes",
    "slice_scatters",
    "strided",
    "view_boxes",
]
