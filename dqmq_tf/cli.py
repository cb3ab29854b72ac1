"""The commands of `python -m dqmq_tf`.

Tables go to standard output, progress and errors to standard error. Exit codes: 0, all is well; 1,
the model or the file is not what it should be; 2, wrong use: a bad flag or value, a missing file.
"""

import pathlib
import sys

import numpy as np
from absl.flags import argparse_flags

from dqmq_tf import export
from dqmq_tf.export.adaptive import ROUTINGS
from dqmq_tf.report.summary import summary
from dqmq_tf.runtimes import RUNTIMES

FAILED, WRONG_USE = 1, 2
_DATA_HELP = (
    "typical inputs as the model takes them: an array in a .npy file, or one array per input, in "
    "the model's order, in a .npz file"
)


def parse(argv):
    """Parses the command line; `argv[0]` is the program."""
    parser = argparse_flags.ArgumentParser(
        prog="dqmq_tf",
        description="Mixed-precision networks, from a trained .keras file to a checked .tflite "
        "file. Exit codes: 0 all is well; 1 the model or file is not what it should be; 2 wrong use.",
    )
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name, function, text):
        found = commands.add_parser(name, help=text, description=text)
        found.set_defaults(function=function)
        return found

    convert = command("convert", _convert, "write a trained model as a .tflite file")
    convert.add_argument("model", help="file of a trained DQMQModel, saved by model.save")
    convert.add_argument("output", help="file to write; ends in .tflite")
    convert.add_argument("--data", help=_DATA_HELP)
    convert.add_argument("--profile", type=int, default=0, help="precision profile to write")
    convert.add_argument(
        "--adaptive", type=int, help="write 2 to 4 profiles and their router into one file"
    )
    convert.add_argument("--routing", choices=ROUTINGS, default=ROUTINGS[0])
    convert.add_argument(
        "--io_dtype", choices=("float32", "int8"), help="type of inputs and outputs"
    )
    convert.add_argument(
        "--artifacts", default="", help="what to write beside the file: c_array,json"
    )
    convert.add_argument("--noverify", action="store_true", help="do not run the file")

    verify = command("verify", _verify, "compare a .tflite file with the model it was made from")
    verify.add_argument("model", help="file of the DQMQModel")
    verify.add_argument("file", help="the .tflite file")
    verify.add_argument("--data", required=True, help=_DATA_HELP)
    verify.add_argument("--samples", type=int, default=1000, help="compare so many inputs")
    verify.add_argument(
        "--runtimes",
        help=f"comma-separated, of {', '.join(RUNTIMES)}; those of the target if left out",
    )
    verify.add_argument("--json", help="also write the report to this file")

    inspect = command("inspect", _inspect, "show what a .tflite file of dqmq_tf holds")
    inspect.add_argument("file", help="the .tflite file")
    inspect.add_argument("--json", help="also write what was found to this file")

    show = command("summary", _summary, "show the bits per layer and the cost of a trained model")
    show.add_argument("model", help="file of the DQMQModel")
    return parser.parse_args(argv[1:])


def run(arguments):
    """Runs a parsed command.

    Returns:
        The exit code.
    """
    try:
        arguments.function(arguments)
    except export.DQMQError as error:
        return _told(error, arguments, FAILED)
    except (ValueError, OSError, ImportError) as error:
        return _told(error, arguments, WRONG_USE)
    return 0


def _told(error, arguments, code):
    if arguments.debug:
        raise error
    print(f"dqmq_tf {arguments.command}: {error}", file=sys.stderr)
    return code


def _convert(arguments):
    report = export.convert(
        _model(arguments.model),
        arguments.output,
        profile=arguments.profile,
        adaptive=arguments.adaptive,
        routing=arguments.routing,
        data=_data(arguments.data),
        io_dtype=arguments.io_dtype,
        verify=not arguments.noverify,
        artifacts=_listed(arguments.artifacts),
    )
    _show(report)


def _verify(arguments):
    report = export.verify(
        _model(arguments.model),
        arguments.file,
        _data(arguments.data),
        samples=arguments.samples,
        runtimes=_listed(arguments.runtimes) or None,
    )
    _show(report, arguments.json)


def _inspect(arguments):
    _show(export.inspect_file(arguments.file), arguments.json)


def _summary(arguments):
    print(summary(_model(arguments.model)))


def _show(report, path=None):
    import rich

    rich.print(report)
    if path:
        pathlib.Path(path).write_text(report.to_json() + "\n", encoding="utf-8")


def _listed(text):
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def _model(path):
    import keras

    from dqmq_tf.model import DQMQModel

    if not pathlib.Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path!r}.")
    model = keras.models.load_model(path)
    if not isinstance(model, DQMQModel):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, not a DQMQModel: train "
            "dqmq_tf.quantize_model(model), and save that."
        )
    return model


def _data(path):
    if path is None:
        return None
    if pathlib.Path(path).suffix not in (".npy", ".npz"):
        raise ValueError(f"--data={path}: give a .npy or .npz file.")
    found = np.load(path)
    return found if isinstance(found, np.ndarray) else [found[name] for name in found.files]
