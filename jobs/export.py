"""Stage `export`, and all before it, as a Ray job: python jobs/export.py CONFIG --form onnx --form int8"""

import sys

from ensemble_kd.cli import app

if __name__ == "__main__":
    app(["export", *sys.argv[1:]])
