"""Writes ``docs/reference/job.schema.json``: the JSON schema of job files, for editors.

Run it after a change of the options::

    python docs/make_job_schema.py
"""

from __future__ import annotations

import json
from pathlib import Path

from reshard.jobs import job_schema

PAGE = Path(__file__).with_name("reference") / "job.schema.json"


def schema() -> str:
    """Make the document."""
    return json.dumps(job_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(schema())
