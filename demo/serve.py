"""Starts an S3 server on this machine for trials, and prints the variables that make ``reshard`` use it.

Run it as ``make serve``. The server listens on loopback alone; Ctrl-C stops it, and what it holds is gone then.
"""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from support.s3_servers import NoRoom, NotInstalled, weed_server

_BUCKET = "trial"
_SERVER_BYTES = 2_000_000_000


def main() -> None:
    """Serve until a signal comes."""
    signals = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    with weed_server(needed_bytes=_SERVER_BYTES) as server:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # from here on they are waited for
        server.make_bucket(_BUCKET)
        sys.stdout.write("# In the shell where you use reshard, or any other S3 client:\n")
        for name, value in server.environ.items():
            sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
        sys.stdout.write(f"# s3://{_BUCKET} is an empty bucket. Ctrl-C stops the server, and all in it is gone.\n")
        sys.stdout.flush()
        signal.sigwait(signals)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except NoRoom as error:
        raise SystemExit(f"serve: {error}") from None
    except NotInstalled as error:
        raise SystemExit(f"serve: {error}; there is a wheel of it for Linux only") from None
