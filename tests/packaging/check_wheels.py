"""Builds the distributions, checks them, and runs the wheel with the lowest and the newest versions.

For each Python that is given, and for both choices of versions, it makes an environment, installs the
wheel, and runs `small_training.py` in it. Every environment takes about 2 GB; they are removed.

    python tests/packaging/check_wheels.py --python=python3.11 --python=python3.12

It needs `build`, `twine` and `uv`, which resolves the lowest versions.
"""

import argparse
import email
import pathlib
import resource
import subprocess
import sys
import tempfile
import zipfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(__file__).with_name("small_training.py")
RESOLUTIONS = ("lowest-direct", "highest")
_HELP_RUNS = 3


def main() -> None:
    """Parses the arguments and runs all checks; the first that fails ends the program."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", action="append", help="a Python to check; may be given more than once"
    )
    parser.add_argument("--resolution", choices=RESOLUTIONS, help="both if omitted")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(pathlib.Path(folder) / "dist")
        for python in arguments.python or [sys.executable]:
            for resolution in [arguments.resolution] if arguments.resolution else RESOLUTIONS:
                check(wheel, python, resolution)


def build(folder: pathlib.Path) -> pathlib.Path:
    """Builds both distributions of the repository, checks them, and returns the wheel."""
    call(sys.executable, "-m", "build", "--outdir", folder, ROOT)
    files = sorted(folder.iterdir())
    print(call(sys.executable, "-m", "twine", "check", "--strict", *files), flush=True)
    return next(path for path in files if path.suffix == ".whl")


def check(wheel: pathlib.Path, python: str, resolution: str) -> None:
    """Installs the wheel into a new environment and runs the program and the help there."""
    with tempfile.TemporaryDirectory() as folder:
        # Not in the repository, whose package would be imported.
        environment = pathlib.Path(folder) / "environment"
        call(python, "-m", "venv", environment)
        program = environment / "bin" / "python"
        # The choice of versions is for what stands here, so the requirements of the wheel do.
        install = ("uv", "pip", "install", "--python", program, "--resolution", resolution)
        call(*install, wheel, *requirements(wheel))
        print(f"{resolution}:", call(program, PROGRAM, cwd=folder).strip(), flush=True)
        print(f"dqmq_tf --help: {help_seconds(environment, folder):.2f} s", flush=True)


def requirements(wheel: pathlib.Path) -> list[str]:
    """Returns what a wheel requires, without its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    return [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]


def help_seconds(environment: pathlib.Path, folder: str) -> float:
    """Returns the processor time of the help, the least of some runs."""
    seconds = []
    for _ in range(_HELP_RUNS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        call(environment / "bin" / "dqmq_tf", "--help", cwd=folder)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(seconds)


def call(*command: object, cwd: str | None = None) -> str:
    """Runs a command and returns what it prints; shows all of it if the command fails."""
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=cwd)
    if result.returncode:
        raise SystemExit(
            f"{' '.join(map(str, command))}\n{result.stdout[-3000:]}{result.stderr[-3000:]}"
        )
    return result.stdout


if __name__ == "__main__":
    main()
