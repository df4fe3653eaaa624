"""What every kind of source must do, as tests: a subclass writes one model as its kind, and names what it wrote."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np
import pytest
from support.checkpoints import array_shape, random_model, stored
from support.recording_store import RecordingStore

from reshard.engine.sources import SOURCE_FORMATS, Listing, SourceOptions, read_catalog, read_contents
from reshard.engine.workers import working
from reshard.errors import FormatError, UsageError
from reshard.planning.sources.selection import NameFilter
from reshard.storage import Location, MemoryStore, unwrapped
from reshard.tensor import ByteRange

MODEL = random_model(
    {
        "embed.weight": ("F32", (8, 6)),
        "layers.0.weight": ("BF16", (4, 6)),
        "layers.1.weight": ("BF16", (4, 6)),
        "norm": ("F16", (6,)),
        "none": ("F32", (0, 4)),
        "scale": ("F64", ()),
    }
)


NONE: Mapping[str, object] = {}


class PinningStore(MemoryStore):
    """Takes no read without an etag while a source is read."""

    is_strict = False

    def read(self, key, span, etag=None):
        assert etag or not self.is_strict, f"{key}: read without an etag"
        return super().read(key, span, etag)


class SourceContract:
    """Of :class:`reshard.engine.sources.SourceFormat`."""

    source_format: type
    """The kind that must be detected."""
    model = MODEL
    metadata = texts = training_state = NONE
    has_ranks = False
    """Whether options about ranks apply."""

    def write(self, place: Location) -> Location:
        """Write the model below a place, with metadata and texts; return the source's location."""
        raise NotImplementedError

    def options(self, **more) -> SourceOptions:
        return SourceOptions(**more)

    def break_headers(self, place: Location) -> list[str]:
        """Break the header of every object that has one; return their names."""
        names = [name for name in stored(place) if name.endswith((".safetensors", ".ckpt"))]
        for name in names:
            place.store.put(place.child(name).key, b"\xff" * 100)
        return names

    @pytest.fixture
    def place(self) -> Location:
        return Location(RecordingStore(PinningStore()), "models/m")

    @pytest.fixture
    def source(self, place: Location) -> Location:
        return self.write(place)

    def read(self, source, worker_count=2, *, compare=True, **more):
        store = unwrapped(source.store)
        store.is_strict = True
        try:
            with working(worker_count, source.store) as workers:
                return (read_catalog if compare else read_contents)(source, self.options(**more), workers)
        finally:
            store.is_strict = False

    def test_is_detected_by_its_own_format_first(self, source):
        with working(1, source.store) as workers:
            found = (each.detect(Listing(source), self.options(), workers) for each in SOURCE_FORMATS)
            assert type(next(each for each in found if each is not None)) is self.source_format

    def test_nothing_is_not_detected(self, place):
        with working(1, place.store) as workers:
            assert self.source_format.detect(Listing(place), self.options(), workers) is None

    def test_tensors_are_those_of_the_model(self, source):
        found = {entry.spec.name: (entry.spec.dtype, entry.spec.shape) for entry in self.read(source).entries}
        assert found == {name: (dtype, shape) for name, (dtype, shape, _) in self.model.items()}

    def test_placements_tile_every_tensor_and_every_holder_has_its_bytes(self, source):
        catalog = self.read(source)
        base = Location(source.store, catalog.url.removeprefix(f"{source.store.url}/"))
        for entry in catalog.entries:
            dtype, shape, expected = self.model[entry.spec.name]
            extent = array_shape(dtype, shape)
            times = np.zeros(extent[:-1], int)
            for placement in entry.placements:
                box, nbytes = placement.box, placement.box.element_count * extent[-1]
                inside = tuple(slice(*ends) for ends in zip(box.start, box.stop, strict=True))
                times[inside] += 1
                assert placement.holders
                for index, first in placement.holders:
                    item = catalog.objects[index]
                    span = ByteRange(first, first + nbytes)
                    held = base.store.read(base.child(item.key).key, span, item.etag) if nbytes else b""
                    array = np.frombuffer(held, np.uint8).reshape(*box.shape, extent[-1])
                    # Elements beyond the tensor's end are padding.
                    assert np.array_equal(array[tuple(slice(n) for n in times[inside].shape)], expected[inside])
            assert (times == 1).all(), f"{entry.spec.name} is not tiled"

    def test_objects_are_pinned(self, source):
        catalog = self.read(source)
        base = Location(source.store, catalog.url.removeprefix(f"{source.store.url}/"))
        assert catalog.objects
        for item in catalog.objects:
            info = base.store.head(base.child(item.key).key)
            assert (item.nbytes, item.etag) == (info.nbytes, info.etag)

    def test_only_headers_are_read_and_all_are_counted(self, source):
        before = source.store.figures.read_bytes
        catalog = self.read(source, compare=False)
        assert catalog.header_bytes == source.store.figures.read_bytes - before > 0

    def test_metadata_texts_and_training_state_go_along(self, source):
        catalog = self.read(source)
        assert self.metadata.items() <= catalog.metadata.items()
        assert catalog.texts == self.texts
        assert catalog.training_state == self.training_state

    def test_keep_and_drop(self, source):
        names = NameFilter(keep=("layers.*", "norm"), drop=("*.1.*", "prefix:norm", "odd"))
        catalog = self.read(source, names=names)
        assert {entry.spec.name for entry in catalog.entries} == {"layers.0.weight"}
        assert set(catalog.dropped) == {*self.model, *self.texts} - {"layers.0.weight"}
        assert catalog.texts == {}
        assert any(
            note.startswith(f"{len(catalog.dropped)} tensors are left out as requested") for note in catalog.notes
        )
        assert "drop pattern odd matches no tensor" in catalog.notes

    def test_what_is_dropped_is_not_missed(self, source):
        catalog = self.read(source)
        assert catalog.dropped == ()
        assert not any("left out" in note for note in catalog.notes)

    @pytest.mark.parametrize("compare", [True, False])
    def test_to_keep_what_is_not_there_is_refused(self, source, compare):
        with pytest.raises(UsageError, match="`keep` matches no tensor") as caught:
            self.read(source, compare=compare, names=NameFilter(keep=("norm", "nrom", "*.2.*")))
        assert caught.value.problems == ("nrom", "*.2.*")

    def test_broken_headers_are_all_in_one_error(self, source):
        broken = self.break_headers(source)
        assert broken
        with pytest.raises(FormatError) as caught:
            self.read(source)
        said = "\n".join([caught.value.message, *caught.value.problems])  # a whole error folds what is alike
        assert all(name in said for name in broken)

    def test_options_of_ranks(self, source):
        if self.has_ranks:
            with pytest.raises(UsageError, match="keep_rank='99', but there are ranks 0"):
                self.read(source, keep_rank=99)
            return
        for option in ({"file_suffix": "1_1"}, {"keep_rank": 0}, {"strategy": object()}):
            with pytest.raises(UsageError, match=r"chooses among rank shards|without ranks|a source strategy is given"):
                self.read(source, **option)

    def test_reading_again_gives_the_same(self, source):
        first = self.read(source, worker_count=1)
        assert self.read(source, worker_count=7) == first
        copy = Location(PinningStore(), source.key)
        bodies = list(stored(source).items())
        random.Random(1).shuffle(bodies)
        for name, body in bodies:
            copy.store.put(copy.child(name).key, body)
        if len(bodies) > 1:
            again = self.read(copy)
            assert (again.entries, again.metadata, again.notes) == (first.entries, first.metadata, first.notes)

    def test_contents_without_comparing_are_the_same(self, source):
        catalog, contents = self.read(source), self.read(source, compare=False)
        assert (contents.entries, contents.objects) == (catalog.entries, catalog.objects)
        assert contents.nbytes == sum(math.prod(array.shape) for _, _, array in self.model.values())
