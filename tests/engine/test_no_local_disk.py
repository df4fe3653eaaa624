"""A conversion writes no file: a fresh process is watched from its first import on."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]

# The hook sees every open() of Python code, os.open and the calls that change the file system without opening.
CHILD = """
import os, sys

seen = []
CHANGES = {"os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.remove", "os.rmdir", "shutil.copyfile",
           "tempfile.mkstemp", "tempfile.mkdtemp", "os.mkfifo", "sqlite3.connect"}
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def watch(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flags, int) and flags & WRITING):
            seen.append([event, str(path), str(mode)])
    elif event in CHANGES:
        seen.append([event, *map(str, arguments)])

sys.dont_write_bytecode = True
sys.addaudithook(watch)
import json
import reshard
from reshard.storage import MemoryStore
from support.checkpoints import encode, random_model
if sys.argv[1] == "write":
    open(os.path.join(sys.argv[2], "file"), "wb").close()
model = random_model({"embed": ("F32", (8000, 1000)), "head": ("BF16", (1000, 2000)), "norm": ("F32", (1000,))})
store = MemoryStore("lab")
store.put("in/model.safetensors", encode(model))
store.put("mp4.yaml", b'''
axes: {mp: 4}
rules:
  - {match: embed, split: [null, mp]}
  - {match: head, split: [mp]}
  - {match: "*", split: []}
''')
split = reshard.plan("memory://lab/in", "memory://lab/ranks", dst_layout="memory://lab/mp4.yaml", memory="64MiB")
reshard.convert(plan=split)
merged = reshard.plan("memory://lab/ranks", "memory://lab/full", src_layout="memory://lab/mp4.yaml")
reshard.convert(plan=merged)
report = reshard.verify("memory://lab/full")
uploads = split.cost.upload_count + merged.cost.upload_count
print(json.dumps({"seen": seen, "is_ok": report.is_ok, "uploads": uploads}))
"""


def run(tmp_path, mode):
    """What a process wrote that converts from memory to memory; its folders for temporary files are empty before."""
    folders = {name: tmp_path / name for name in ("home", "tmp", "cwd")}
    for folder in folders.values():
        folder.mkdir()
    environ = {
        "HOME": str(folders["home"]),
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(TESTS),
        "PYTHONHASHSEED": "0",
    } | dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(folders["tmp"]))
    command = [sys.executable, "-c", CHILD, mode, str(folders["cwd"])]
    done = subprocess.run(command, env=environ, cwd=folders["cwd"], capture_output=True, text=True, check=True)
    left = sorted(str(path.relative_to(tmp_path)) for folder in folders.values() for path in folder.rglob("*"))
    return json.loads(done.stdout), left


def test_nothing_is_written(tmp_path):
    told, left = run(tmp_path, "convert")
    assert told == {"seen": [], "is_ok": True, "uploads": 5}  # of four ranks, and of the whole again
    assert left == []


def test_the_watch_sees_what_is_written(tmp_path):
    """Without this, a watch that is blind would pass the test above."""
    told, left = run(tmp_path, "write")
    assert [event[:2] for event in told["seen"]] == [["open", str(tmp_path / "cwd" / "file")]]
    assert left == ["cwd/file"]
