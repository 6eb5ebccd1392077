import pathlib
import sys

for folder in ("cli", "backends"):
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / folder))
