"""Stage `export`, and all before it, as a Ray job: python jobs/export.py CONFIG --form onnx --form int8"""

import sys

from ensemble_kd.cli import main

if __name__ == "__main__":
    main(["export", *sys.argv[1:]])
