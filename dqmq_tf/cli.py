"""The commands of `python -m dqmq_tf`.

Tables go to standard output, progress and errors to standard error. Exit codes: 0 for success; 1 if
the model or the file fails a check; 2 for wrong use, such as an unknown option or a missing file.

The help and the checks of the command line do without TensorFlow and Keras, which take seconds to
import. Each command imports what it needs.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from absl.flags import argparse_flags

from dqmq_tf.errors import DQMQError
from dqmq_tf.targets import ARTIFACTS, IO_TYPES, PROFILE_COUNTS, ROUTINGS, TARGETS

if TYPE_CHECKING:
    import numpy as np

    from dqmq_tf.model import DQMQModel

FAILED, WRONG_USE = 1, 2
_RUNTIMES = tuple(dict.fromkeys(name for target in TARGETS.values() for name in target.runtimes))
_DATA_HELP = (
    "typical inputs as the model takes them: an array in a .npy file, or one array per input, in "
    "the model's order, in a .npz file"
)
_MODEL_HELP = "file of a trained DQMQModel, saved by model.save"


class _Report(Protocol):
    """A report that rich prints as tables."""

    def to_json(self) -> str: ...


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line.

    Args:
        argv: The program and its arguments.

    Returns:
        The arguments, with the function of the command in `function`.

    Raises:
        SystemExit: With code 2 if the arguments are wrong, with code 0 after the help.
    """
    parser = argparse_flags.ArgumentParser(
        prog="dqmq_tf",
        description="Mixed-precision networks, from a trained .keras file to a verified .tflite "
        "file. Exit codes: 0 success; 1 the model or the file fails a check; 2 wrong use.",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(
        name: str, function: Callable[[argparse.Namespace], None], text: str
    ) -> argparse.ArgumentParser:
        subparser = commands.add_parser(name, help=text, description=text)
        subparser.set_defaults(function=function)
        return subparser

    convert = command("convert", _convert, "write a trained model as a .tflite file")
    convert.add_argument("model", type=_existing_file, help=_MODEL_HELP)
    convert.add_argument("output", type=_tflite_path, help="file to write; ends in .tflite")
    convert.add_argument("--data", type=_array_file, help=_DATA_HELP)
    convert.add_argument("--profile", type=int, default=0, help="precision profile to write")
    convert.add_argument(
        "--adaptive",
        type=int,
        choices=PROFILE_COUNTS,
        help="write this many profiles and their router into one file; needs --data",
    )
    convert.add_argument(
        "--routing",
        choices=ROUTINGS,
        default=ROUTINGS[0],
        help="how an adaptive file chooses a profile",
    )
    convert.add_argument("--io_dtype", choices=IO_TYPES, help="type of inputs and outputs")
    convert.add_argument(
        "--artifacts",
        type=_names_from(ARTIFACTS),
        default=(),
        help=f"files to write next to the output, comma-separated: {', '.join(ARTIFACTS)}",
    )
    convert.add_argument("--noverify", action="store_true", help="do not run the file")

    verify = command("verify", _verify, "compare a .tflite file with the model it was made from")
    verify.add_argument("model", type=_existing_file, help=_MODEL_HELP)
    verify.add_argument("file", type=_existing_file, help="the .tflite file")
    verify.add_argument("--data", type=_array_file, required=True, help=_DATA_HELP)
    verify.add_argument("--samples", type=int, default=1000, help="number of inputs to compare")
    verify.add_argument(
        "--runtimes",
        type=_names_from(_RUNTIMES),
        help=f"comma-separated: {', '.join(_RUNTIMES)}; those of the target if omitted",
    )
    verify.add_argument("--json", help="file to write the report to")

    inspect = command("inspect", _inspect, "show the contents of a .tflite file of dqmq_tf")
    inspect.add_argument("file", type=_existing_file, help="the .tflite file")
    inspect.add_argument("--json", help="file to write the contents to")

    summary = command(
        "summary", _summary, "show the bits per layer and the cost of a trained model"
    )
    summary.add_argument("model", type=_existing_file, help=_MODEL_HELP)

    targets = command("targets", _targets, "show the deployment targets and what each supports")
    targets.add_argument("--json", help="file to write the table to")

    arguments = parser.parse_args(argv[1:])
    if arguments.command == "convert" and arguments.adaptive and arguments.data is None:
        convert.error("--adaptive needs --data=FILE with typical inputs of every quality")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    """Runs a parsed command and returns the exit code."""
    try:
        arguments.function(arguments)
    except DQMQError as error:
        return _report_error(error, arguments, FAILED)
    except (ValueError, OSError, ImportError) as error:
        return _report_error(error, arguments, WRONG_USE)
    return 0


def _report_error(error: Exception, arguments: argparse.Namespace, code: int) -> int:
    if arguments.debug:
        raise error
    print(f"dqmq_tf {arguments.command}: {error}", file=sys.stderr)
    return code


def _convert(arguments: argparse.Namespace) -> None:
    from dqmq_tf import export

    report = export.convert(
        _load_model(arguments.model),
        arguments.output,
        profile=arguments.profile,
        adaptive=arguments.adaptive,
        routing=arguments.routing,
        data=None if arguments.data is None else _load_arrays(arguments.data),
        io_dtype=arguments.io_dtype,
        verify=not arguments.noverify,
        artifacts=arguments.artifacts,
    )
    _print_report(report)


def _verify(arguments: argparse.Namespace) -> None:
    from dqmq_tf import export

    report = export.verify(
        _load_model(arguments.model),
        arguments.file,
        _load_arrays(arguments.data),
        samples=arguments.samples,
        runtimes=arguments.runtimes,
    )
    _print_report(report, arguments.json)


def _inspect(arguments: argparse.Namespace) -> None:
    from dqmq_tf import export

    _print_report(export.inspect_file(arguments.file), arguments.json)


def _summary(arguments: argparse.Namespace) -> None:
    from dqmq_tf.report.summary import summary

    print(summary(_load_model(arguments.model)))


def _targets(arguments: argparse.Namespace) -> None:
    from dqmq_tf.report.target_table import target_table

    _print_report(target_table(), arguments.json)


def _print_report(report: _Report, path: str | None = None) -> None:
    import rich.console

    # Rich's global console keeps the environment of the moment in which it was made.
    rich.console.Console().print(report)
    if path:
        pathlib.Path(path).write_text(report.to_json() + "\n", encoding="utf-8")


def _load_model(path: pathlib.Path) -> "DQMQModel":
    import keras

    # Keras finds the classes of the model because this imports them.
    from dqmq_tf.model import DQMQModel

    model = keras.models.load_model(path)
    if not isinstance(model, DQMQModel):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, not a DQMQModel. Train "
            "dqmq_tf.quantize_model(model) and save that."
        )
    return model


def _load_arrays(path: pathlib.Path) -> "np.ndarray | list[np.ndarray]":
    import numpy as np

    loaded = np.load(path)
    return loaded if isinstance(loaded, np.ndarray) else [loaded[name] for name in loaded.files]


def _existing_file(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return path


def _array_file(text: str) -> pathlib.Path:
    if pathlib.Path(text).suffix not in (".npy", ".npz"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .npy or .npz")
    return _existing_file(text)


def _tflite_path(text: str) -> pathlib.Path:
    path = pathlib.Path(text)
    if path.suffix != ".tflite":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .tflite")
    return path


def _names_from(choices: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    """Returns a parser of comma-separated names."""

    def names(text: str) -> tuple[str, ...]:
        values = tuple(value.strip() for value in text.split(",") if value.strip())
        unknown = [value for value in values if value not in choices]
        if unknown or not values:
            raise argparse.ArgumentTypeError(
                f"{(unknown or [text])[0]!r} is none of {', '.join(choices)}"
            )
        return values

    return names
