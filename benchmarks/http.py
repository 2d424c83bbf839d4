"""Measures a server over HTTP; `--help` says how, `README.md` what."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # This folder would be first on the path, and this file the library's own `http`.
    sys.path[0] = str(Path(__file__).parents[1])
    from benchmarks.command import main  # only now can it be found

    main()
