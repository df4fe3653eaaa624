from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from storage.contract import ODD_NAMES, StoreContract, body, content
from storage.copy_contract import CopyContract

from reshard.errors import Denied, NotFound, SourceChanged, StorageError, UsageError
from reshard.storage import LocalStore, StoreLimits
from reshard.tensor import ByteRange


class TestLocalStore(StoreContract, CopyContract):
    odd_names = tuple(name for name in ODD_NAMES if not name.startswith("."))

    @pytest.fixture
    def store(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path / "root", limits=StoreLimits(min_part_bytes=1000))

    @pytest.fixture
    def neighbour(self, tmp_path: Path) -> LocalStore:
        return LocalStore(tmp_path / "neighbour")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "root")


@pytest.mark.parametrize("key", ["../out", "a/../../out", "/etc/passwd", "a//b", "", ".", "a/.", "a/", "a\0b"])
def test_keys_cannot_leave_the_root(store: LocalStore, key: str) -> None:
    with pytest.raises(UsageError, match="cannot be a key"):
        store.put(key, b"x")
    with pytest.raises(UsageError, match="cannot be a key"):
        store.head(key)


def test_writes_do_not_follow_links_out(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    store.put("a", b"x")
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    with pytest.raises(Denied, match="symbolic link"):
        store.put("link/b", b"x")
    with pytest.raises(Denied, match="symbolic link"):
        store.create_upload("link/deeper/b")
    assert list((tmp_path / "outside").iterdir()) == []


def test_writes_do_not_follow_links_to_a_neighbour(store: LocalStore, tmp_path: Path) -> None:
    store.put("precious/a", b"x")
    (tmp_path / "root/out").mkdir()
    (tmp_path / "root/out/rank_0").symlink_to(tmp_path / "root/precious")
    for action in (lambda: store.put("out/rank_0/a", b"new"), lambda: store.delete("out/rank_0/a")):
        with pytest.raises(Denied, match="symbolic link"):
            action()
    assert content(store, store.head("precious/a")) == b"x"


@pytest.mark.parametrize("key", ["out/.ssh/authorized_keys", "out/.bashrc", "out/rank_0/.x"])
def test_names_below_a_target_do_not_begin_with_a_dot(store: LocalStore, key: str) -> None:
    for action in (lambda: store.put(key, b"x"), lambda: store.create_upload(key), lambda: store.delete(key)):
        with pytest.raises(Denied, match="begin with a dot"):
            action()
    assert list(store.list("")) == []


def test_target_of_the_user_may_begin_with_a_dot(store: LocalStore) -> None:
    store.put(".cache/rank_0/a", b"x")
    assert [info.key for info in store.list("")] == [".cache/rank_0/a"]


def test_linked_object_is_replaced_not_followed(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    store.put("b", b"x")
    (tmp_path / "root/a").symlink_to(tmp_path / "precious")
    store.put("a", b"new")
    assert (tmp_path / "precious").read_bytes() == b"precious"
    assert (tmp_path / "root/a").read_bytes() == b"new"


def test_reads_follow_links_as_model_caches_use_them(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs/123").write_bytes(b"weights")
    (tmp_path / "root/snapshot").mkdir(parents=True)
    (tmp_path / "root/snapshot/model.safetensors").symlink_to("../../blobs/123")
    (tmp_path / "root/loop").symlink_to(tmp_path / "root")
    (tmp_path / "root/dangling").symlink_to("nowhere")
    assert [info.key for info in store.list("")] == ["snapshot/model.safetensors"]
    assert store.read("snapshot/model.safetensors", ByteRange(0, 7)) == b"weights"


def test_abort_removes_the_folders_it_made(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "root/mine").mkdir(parents=True)
    first, second = store.create_upload("mine/x/y/a"), store.create_upload("mine/x/y/b")
    other = LocalStore(tmp_path / "root")  # as after a crash
    other.abort_upload(second)
    other.abort_upload(first)
    assert list((tmp_path / "root").rglob("*")) == [tmp_path / "root/mine"]


def test_delete_removes_the_folders_it_made(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "root/mine").mkdir(parents=True)
    (tmp_path / "root/mine/b").write_bytes(b"x")
    for key in ("mine/x/y/a", "mine/x/b", "mine/a", "rank_0/a"):
        store.put(key, b"x")
    store.delete("mine/x/y/a")
    assert not (tmp_path / "root/mine/x/y").exists()
    for key in ("mine/x/b", "mine/a", "mine/b", "rank_0/a"):
        store.delete(key)
    assert list((tmp_path / "root").rglob("*")) == [tmp_path / "root/mine"]


def test_delete_removes_a_root_only_if_it_made_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for root in ("there", "new/deep"):
        store = LocalStore(tmp_path / root)
        store.put("a", b"x")
        store.delete("a")
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]


def test_delete_leaves_folders_that_another_made(store: LocalStore, tmp_path: Path) -> None:
    store.put("kept", b"x")
    store.put("x/a", b"x")
    LocalStore(tmp_path / "root").delete("x/a")
    assert (tmp_path / "root/x").is_dir()
    store.delete("x/a")
    assert not (tmp_path / "root/x").exists()
    (tmp_path / "root/x").mkdir()
    store.put("x/a", b"x")
    store.delete("x/a")
    assert (tmp_path / "root/x").is_dir()


def test_undone_commit_leaves_nothing(store: LocalStore, tmp_path: Path) -> None:
    first, second = store.create_upload("rank_0/a"), store.create_upload("rank_0/b")
    store.complete_upload(first, [(1, store.upload_part(first, 1, 0, b"x").etag)])
    store.delete("rank_0/a")
    store.abort_upload(second)
    assert list(tmp_path.iterdir()) == []


def test_name_too_long_leaves_nothing(store: LocalStore, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Cannot write"):
        store.create_upload("new/" + "a" * 250)
    assert list(tmp_path.iterdir()) == []


def test_failed_put_leaves_nothing(store: LocalStore, tmp_path: Path) -> None:
    answers = iter([False, False, True])
    store.should_stop = lambda: next(answers, True)
    with pytest.raises(BaseException, match="Stopped"):
        store.put("new/a", bytes(40 << 20))
    assert list(tmp_path.iterdir()) == []


def test_unfinished_objects_of_a_dead_process_are_found(store: LocalStore, tmp_path: Path) -> None:
    upload = store.create_upload("rank_0/a.ckpt")
    etag = store.upload_part(upload, 1, 0, b"hello").etag
    again = LocalStore(tmp_path / "root")
    assert list(again.open_uploads("rank_0/a")) == [upload]
    assert list(again.list("")) == []
    assert again.complete_upload(upload, [(1, etag)]) == again.head("rank_0/a.ckpt")


def test_parts_must_lie_end_to_end(store: LocalStore) -> None:
    upload = store.create_upload("a")
    sent = [(1, store.upload_part(upload, 1, 0, b"hello").etag), (2, store.upload_part(upload, 2, 6, b"world").etag)]
    with pytest.raises(StorageError, match="begins at 6, the one before it ends at 5"):
        store.complete_upload(upload, sent)


def test_upload_ids_are_checked(store: LocalStore) -> None:
    upload = store.create_upload("a")
    for upload_id in ("../../etc", f"{upload.upload_id}-../../etc", ""):
        with pytest.raises(StorageError, match="is not an upload"):
            store.abort_upload(type(upload)("a", upload_id))


def test_change_during_a_read_is_seen(store: LocalStore, tmp_path: Path) -> None:
    store.put("a", bytes(20 << 20))

    def grow() -> bool:
        with (tmp_path / "root/a").open("ab") as file:
            file.write(b"x")
        return False

    store.should_stop = grow
    with pytest.raises(SourceChanged):
        store.read_into("a", ByteRange(0, 20 << 20), memoryview(bytearray(20 << 20)))


def test_folders_and_pipes_are_no_objects(store: LocalStore, tmp_path: Path) -> None:
    store.put("folder/a", b"x")
    os.mkfifo(tmp_path / "root/pipe")
    for key in ("folder", "pipe"):
        with pytest.raises(NotFound, match="not a file"):
            store.head(key)
    with pytest.raises(NotFound, match="not a file"):
        store.read("pipe", ByteRange(0, 1))
    assert [info.key for info in store.list("")] == ["folder/a"]
    with pytest.raises(StorageError, match="is a folder"):
        store.put("folder", b"x")


def test_permission_is_explained(store: LocalStore, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may do everything")
    store.put("a", b"x")
    (tmp_path / "root/a").chmod(0)
    with pytest.raises(Denied, match="permission denied"):
        store.read("a", ByteRange(0, 1))


def test_a_file_in_the_way_is_explained(store: LocalStore) -> None:
    store.put("a", b"x")
    with pytest.raises(StorageError, match="Cannot write"):
        store.put("a/b", b"x")
    with pytest.raises(StorageError):
        store.head("a/b")


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, None])
def test_copies_by_hand_where_the_kernel_does_not(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, number: int | None
) -> None:
    data, asked = body(20 << 20), []
    source = store.put("a", data)

    def refuse(*_: int) -> int:
        asked.append(number)
        if number is None:
            return 0  # as some kernels do for files whose length they do not know
        raise OSError(number, "made up")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    upload = store.create_upload("b")
    parts = [
        (1, store.upload_part(upload, 1, 0, b"first").etag),
        (2, store.copy_part(upload, 2, 5, store, "a", ByteRange(3, source.nbytes), source.etag).etag),
    ]
    assert content(store, store.complete_upload(upload, parts)) == b"first" + data[3:]
    assert len(asked) == (3 if number is None else 1)


def test_copies_by_hand_where_there_is_no_such_call(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "copy_file_range")
    store.put("a", b"hello")
    upload = store.create_upload("b")
    parts = [(1, store.copy_part(upload, 1, 0, store, "a", ByteRange(1, 4)).etag)]
    assert content(store, store.complete_upload(upload, parts)) == b"ell"


def test_full_disk_is_told_of_a_copy(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    store.put("a", b"hello")
    upload = store.create_upload("b")
    monkeypatch.setattr(os, "copy_file_range", full)
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(StorageError, match=r"Cannot write .*-b: No space left") as caught:
        store.copy_part(upload, 1, 0, store, "a", ByteRange(0, 5))
    assert "Free some space" in caught.value.hint


def test_change_during_a_copy_is_seen(store: LocalStore, tmp_path: Path) -> None:
    store.put("a", bytes(20 << 20))
    upload = store.create_upload("b")
    for change in (lambda file: file.truncate(100), lambda file: file.truncate(30 << 20)):

        def meddle(change=change) -> bool:
            with (tmp_path / "root/a").open("r+b") as file:
                change(file)
            return False

        store.should_stop = meddle
        with pytest.raises(SourceChanged):
            store.copy_part(upload, 1, 0, store, "a", ByteRange(0, 20 << 20))
        store.should_stop = lambda: False
        store.put("a", bytes(20 << 20))


def test_copies_cannot_leave_the_root(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    upload = store.create_upload("b")
    with pytest.raises(UsageError, match="cannot be a key"):
        store.copy_part(upload, 1, 0, store, "../secret", ByteRange(0, 1))


def hidden_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob(".reshard-*"))


def test_hidden_files_are_no_objects_and_do_not_stay(store: LocalStore, tmp_path: Path) -> None:
    upload, aborted = store.create_upload("x/a"), store.create_upload("x/b")
    sent = [(1, store.upload_part(upload, 1, 0, b"hello").etag)]
    assert len(hidden_files(tmp_path)) == 4
    for path in hidden_files(tmp_path):
        with pytest.raises(UsageError, match="cannot be a key"):
            store.head(f"x/{path.name}")
    assert list(store.list("")) == []
    assert {each.key for each in store.open_uploads("")} == {"x/a", "x/b"}
    store.complete_upload(upload, sent)
    store.abort_upload(aborted)
    assert hidden_files(tmp_path) == []


def test_parts_whose_record_was_cut_short_do_not_count(store: LocalStore, tmp_path: Path) -> None:
    upload = store.create_upload("a")
    etag = store.upload_part(upload, 1, 0, b"hello").etag
    (record,) = (path for path in hidden_files(tmp_path) if path.name.endswith("+a"))
    with record.open("a") as file:
        file.write("2 5+6")
    assert [(each.number, each.etag, each.nbytes) for each in store.list_parts(upload)] == [(1, etag, 5)]


def test_late_part_leaves_nothing_behind(store: LocalStore, tmp_path: Path) -> None:
    upload = store.create_upload("new/a")

    def abort() -> bool:
        LocalStore(tmp_path / "root").abort_upload(upload)
        return False

    store.should_stop = abort
    with pytest.raises(NotFound):
        store.upload_part(upload, 1, 0, b"hello")
    assert hidden_files(tmp_path) == []


def test_record_that_cannot_be_made_leaves_nothing(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, make = [], os.open

    def fail_at_the_second(*arguments: object) -> int:
        made.append(arguments)
        if len(made) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return make(*arguments)

    monkeypatch.setattr(os, "open", fail_at_the_second)
    with pytest.raises(StorageError, match="No space left"):
        store.create_upload("new/a")
    assert list(tmp_path.iterdir()) == []
