"""Takes random models from float to a file that runs, and looks for silent wrong results.

Each model of `random_networks` is quantized, trained for a few steps, saved, loaded and converted.
The file is verified, and runs by index in LiteRT (`random_examples` has the stages). Even seeds are
for `android`, odd ones for `microcontroller`. Half of the models get 8 bits, and must then predict
as the float models do. All models run in one process, which continues after a failure.

    python examples/benchmarks/random_models.py --seeds=0-299 --output=random_models.json
    python examples/benchmarks/random_models.py --seeds=17
"""

import collections
import dataclasses
import json
import pathlib
import time
from collections.abc import Sequence

from absl import app, flags
from random_examples import Result, measure

_SEEDS = flags.DEFINE_string("seeds", "0-299", "Seeds of the models, such as 17 or 0-99,200.")
_MINUTES = flags.DEFINE_float("minutes", None, "Start no further model after this many minutes.")
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "JSON file for the results, updated after each model. Models that it already contains are not "
    "measured again, so a stopped run continues.",
)

_COMMAND = "python examples/benchmarks/random_models.py --seeds={seeds} --output={output}"


def seeds_of(text: str) -> list[int]:
    """Returns the numbers of a text such as "17" or "0-99,200".

    Raises:
        ValueError: If the text is not of this form.
    """
    seeds = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    return seeds


def earlier_results(path: str | None) -> list[Result]:
    """Returns the results in a file, or an empty list if the file does not exist."""
    if path is None or not pathlib.Path(path).exists():
        return []
    return [Result(**row) for row in json.loads(pathlib.Path(path).read_text())["models"]]


def write(results: Sequence[Result], seeds: str, path: str) -> None:
    """Writes results, sorted by seed, with the command that repeats them."""
    rows = [dataclasses.asdict(result) for result in sorted(results, key=lambda r: r.seed)]
    contents = {
        "command": _COMMAND.format(seeds=seeds, output=pathlib.Path(path).name),
        "counts": counts_of(results),
        "models": rows,
    }
    temporary = pathlib.Path(path + ".part")
    temporary.write_text(json.dumps(contents, indent=1) + "\n")
    temporary.replace(path)


def counts_of(results: Sequence[Result]) -> dict[str, int]:
    """Returns how many models passed, and how many failed in which way."""
    counts = collections.Counter(result.outcome for result in results)
    counts["silent wrong results"] = sum(result.is_silent for result in results)
    counts["errors after training"] = sum(result.is_late for result in results)
    return dict(counts)


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unknown arguments: {argv[1:]}.")
    started, results = time.perf_counter(), earlier_results(_OUTPUT.value)
    known = {result.seed for result in results}
    for seed in seeds_of(_SEEDS.value):
        if seed in known:
            continue
        if _MINUTES.value and time.perf_counter() - started > 60 * _MINUTES.value:
            break
        result = measure(seed)
        results.append(result)
        where = f" in {result.stage}: {result.message}" if result.stage else ""
        print(f"{seed} {result.outcome}{where} {sum(result.seconds.values()):.1f} s", flush=True)
        if _OUTPUT.value:
            write(results, _SEEDS.value, _OUTPUT.value)
    print(counts_of(results))


if __name__ == "__main__":
    app.run(main)
