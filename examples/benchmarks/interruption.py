"""Kills a training and a conversion at random moments, and checks what the next run makes of it.

A training with `keras.callbacks.BackupAndRestore` is killed (kill -9) at random moments and started
again. It must end within the budget, with the bits and the weights of a training that was never
killed. A conversion is killed likewise: the earlier file must still be complete, the next run must
write the same bytes, and no other file may be left.

    python examples/benchmarks/interruption.py --moments=10 --output=interruption.json
"""

import dataclasses
import json
import pathlib
import random
import tempfile
from collections.abc import Sequence
from typing import Any

from absl import app, flags
from killed_runs import BUDGETS, FILE, MODEL, REPORT, convert, finish, kill, train

_MOMENTS = flags.DEFINE_integer("moments", 10, "Moments for each of training and conversion.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
_BUDGET = flags.DEFINE_enum("budget", "mean_bit_width", list(BUDGETS), "Kind of the budget.")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")

_COMMAND = (
    "python examples/benchmarks/interruption.py --moments={} --seed={} --budget={} --output={}"
)
_OLD = b"an earlier file"


@dataclasses.dataclass(kw_only=True)
class Result:
    """What became of one killed run.

    Attributes:
        kind: `"fit"` or `"convert"`.
        after: Share of the time of an undisturbed run after which it was killed.
        passed: Whether all checks passed.
        message: What was wrong, or "".
        report: What the resumed training says of itself; {} for a conversion.
    """

    kind: str
    after: float
    passed: bool
    message: str
    report: dict[str, Any]


def check_training(folder: pathlib.Path, whole: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Returns what is wrong with a resumed training, and its report.

    Args:
        folder: The folder of the training.
        whole: The report of a training that was not killed.
    """
    report = json.loads((folder / REPORT).read_text())
    same = ("phase", "bits", "steps_searched")
    limit = BUDGETS[_BUDGET.value]
    if report["cost"] > limit:
        return f"the cost is {report['cost']}, the budget {limit}", report
    for name in same:
        if report[name] != whole[name]:
            return f"{name} is {report[name]} instead of {whole[name]}", report
    if abs(report["weights"] / whole["weights"] - 1) > 1e-5:
        return "the weights are not those of a training that was not killed", report
    return check_files(folder, {MODEL, REPORT}), report


def check_files(folder: pathlib.Path, names: set[str]) -> str:
    """Returns which files are missing or left, or ""."""
    found = {path.name for path in folder.iterdir()}
    return "" if found == names else f"the files are {sorted(found)} instead of {sorted(names)}"


def interrupted_training(root: pathlib.Path, after: float, whole: dict[str, Any]) -> Result:
    """Kills a training, starts it again, and checks the result."""
    folder = root / f"fit{after}"
    folder.mkdir()
    kill(train, folder, after * whole["seconds"], (), _BUDGET.value)
    try:
        finish(train, folder, (), _BUDGET.value)
        message, report = check_training(folder, whole)
    except ChildProcessError as error:
        message, report = str(error), {}
    return Result(kind="fit", after=after, passed=not message, message=message, report=report)


def interrupted_conversion(root: pathlib.Path, after: float, whole: dict[str, Any]) -> Result:
    """Kills a conversion, starts it again, and checks the files."""
    folder = root / f"convert{after}"
    folder.mkdir()
    (folder / MODEL).write_bytes((root / MODEL).read_bytes())
    (folder / FILE).write_bytes(_OLD)
    expected = (root / FILE).read_bytes()
    kill(convert, folder, after * whole["convert_seconds"])
    message = check_files(folder, {MODEL, FILE})
    if (folder / FILE).read_bytes() not in (_OLD, expected):
        message = "the killed conversion left an incomplete file"
    finish(convert, folder)
    if (folder / FILE).read_bytes() != expected:
        message = "the second conversion wrote another file"
    message = message or check_files(folder, {MODEL, FILE})
    return Result(kind="convert", after=after, passed=not message, message=message, report={})


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    generator, results = random.Random(_SEED.value), []
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        seconds = finish(train, root, (), _BUDGET.value)
        whole = json.loads((root / REPORT).read_text()) | {"seconds": seconds}
        whole["convert_seconds"] = finish(convert, root)
        for _ in range(_MOMENTS.value):
            after = round(generator.random(), 3)
            for check in (interrupted_training, interrupted_conversion):
                result = check(root, after, whole)
                print(result, flush=True)
                results.append(result)
            if _OUTPUT.value:
                write(results, whole, pathlib.Path(_OUTPUT.value))
    print(f"{sum(result.passed for result in results)} of {len(results)} passed")


def write(results: Sequence[Result], whole: dict[str, Any], path: pathlib.Path) -> None:
    """Writes the results so far, and the report of the undisturbed run."""
    command = _COMMAND.format(len(results) // 2, _SEED.value, _BUDGET.value, path.name)
    rows = [dataclasses.asdict(result) for result in results]
    contents = {"command": command, "undisturbed": whole, "killed": rows}
    path.write_text(json.dumps(contents, indent=1) + "\n")


if __name__ == "__main__":
    app.run(main)
