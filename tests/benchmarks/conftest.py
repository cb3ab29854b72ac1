"""Makes the parts of the benchmarks importable: `from study import hawq`."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples" / "benchmarks"))
