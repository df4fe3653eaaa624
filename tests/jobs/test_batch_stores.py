"""A batch over two stores, of which one refuses the credentials."""

from __future__ import annotations

import pytest
from support.checkpoints import put_full, random_model
from support.s3_servers import S3Server

from reshard.jobs import parse_job_file, run_jobs
from reshard.jobs.dry_run import plan_jobs
from reshard.storage import Location, MemoryStore, open_target

pytestmark = pytest.mark.server
MODEL = random_model({"a": ("F32", (8, 6))})
BATCH = """
defaults: {src: "memory://two-stores/m"}
jobs:
  opened: {dst: "s3://BUCKET/opened"}
  refused: {dst: "obs://BUCKET/refused"}
  after-refused: {src: "obs://BUCKET/refused", dst: "s3://BUCKET/after", form: mindspore}
  after-opened: {src: "s3://BUCKET/opened", dst: "s3://BUCKET/last", form: mindspore}
"""


@pytest.mark.parametrize("secret_key", ["not this one", ""])
def test_credentials_for_one_store_of_two(
    weed_server: S3Server, clean_environ: pytest.MonkeyPatch, secret_key: str
) -> None:
    bucket = weed_server.make_bucket(f"two-stores-{len(secret_key)}")
    put_full(Location(MemoryStore("two-stores"), "m"), {"model.safetensors": MODEL})
    for name, value in (weed_server.environ | weed_server.obs_environ).items():
        clean_environ.setenv(name, value)
    clean_environ.setenv("OBS_SECRET_ACCESS_KEY", secret_key)
    jobs = parse_job_file(BATCH.replace("BUCKET", bucket).encode(), "batch.yaml", {})
    planned = {each.job.name: each.state.value for each in plan_jobs(jobs)}
    assert planned == {
        "opened": "convert", "refused": "refused", "after-refused": "blocked", "after-opened": "later",
    }  # fmt: skip
    done = {status.job.name: status for status in run_jobs(jobs, at_once=2)}
    assert {name: status.state.value for name, status in done.items()} == {
        "opened": "done", "refused": "failed", "after-refused": "blocked", "after-opened": "done",
    }  # fmt: skip
    assert done["after-refused"].reason == "needs refused"
    error = done["refused"].error
    assert error is not None
    assert secret_key == "" or secret_key not in str(error)
    assert {name.partition("/")[0] for name, _ in open_target(f"s3://{bucket}").named_objects()} == {"opened", "last"}
