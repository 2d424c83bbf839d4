"""Plays pip: `python pip_stub.py WHEEL [--wait] download ... --dest FOLDER NAME`.

With `--wait` it tells with a file `waiting` beside the wheel that it began, and goes on
once there is a file `go`.
"""

import os
import shutil
import sys
import time
from pathlib import Path


def main(arguments: list[str]) -> None:
    wheel = Path(arguments[0])
    required = {"download", "--no-deps", "--only-binary=:all:", "--no-input"}
    if missing := required.difference(arguments):
        sys.exit(f"ERROR: called without {missing}")
    (Path(os.environ["TMPDIR"]) / "unpacked").write_bytes(wheel.read_bytes())
    if "--wait" in arguments:
        (wheel.parent / "waiting").touch()
        while not (wheel.parent / "go").exists():
            time.sleep(0.01)
    shutil.copy(wheel, arguments[arguments.index("--dest") + 1])


if __name__ == "__main__":
    main(sys.argv[1:])
