"""A target in memory: boxes of tensors that a reader asks for, in objects that nobody stores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ..formats.frame import Frame, make_frame
from ..planning.outputs.output import Output, SourceMetadata, TargetTensor, local_spec
from ..planning.targets.target import Target
from ..tensor import Box, extent_of

WantedBox = tuple[int, Box]
"""A tensor of a conversion, by index, and a box of it that is not empty."""


@dataclass(frozen=True)
class BoxesOutput(Output):
    """Boxes of tensors one after the other, with no header around them."""

    @cached_property
    def frame(self) -> Frame:
        """Where the elements of each box are."""
        boxes = enumerate(zip(self.specs, self.boxes, strict=True))
        return make_frame((slot, b"", 0, box.element_count, extent_of(spec)[1]) for slot, (spec, box) in boxes)


@dataclass(frozen=True, slots=True)
class BoxesTarget(Target):
    """Some boxes of tensors; those of one tensor are in different objects, so that they may overlap."""

    wanted: tuple[WantedBox, ...]

    def positions(self, tensors: Sequence[TargetTensor]) -> list[list[int]]:
        """Return which boxes each output holds, in its order, by their positions in ``wanted``."""

        def in_file_order(position: int) -> tuple[int, str]:
            spec = tensors[self.wanted[position][0]].spec
            return -spec.dtype.order, spec.name

        found: list[list[int]] = []
        counts: dict[int, int] = {}
        for position in sorted(range(len(self.wanted)), key=in_file_order):
            tensor = self.wanted[position][0]
            number = counts[tensor] = counts.get(tensor, -1) + 1
            if number == len(found):
                found.append([])
            found[number].append(position)
        return found

    def outputs(self, tensors: Sequence[TargetTensor], source_metadata: SourceMetadata) -> tuple[Output, ...]:
        """Put the first box of each tensor into one output, the second ones into another, and so on."""
        outputs = []
        for number, positions in enumerate(self.positions(tensors)):
            held = [self.wanted[position] for position in positions]
            specs = tuple(local_spec(tensors[tensor].spec, box) for tensor, box in held)
            indices, boxes = tuple(tensor for tensor, _ in held), tuple(box for _, box in held)
            outputs.append(BoxesOutput((str(number),), indices, boxes, specs, {}))
        return tuple(outputs)
