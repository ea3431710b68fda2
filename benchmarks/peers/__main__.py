"""python -m benchmarks.peers [--quick] [--data FOLDER] [--json]: as `python -m benchmarks peers`."""

import sys

from benchmarks.__main__ import app

if __name__ == "__main__":
    app(["peers", *sys.argv[1:]])
