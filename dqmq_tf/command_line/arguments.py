"""The arguments of `python -m dqmq_tf`, and their checks.

The help and the checks do without TensorFlow and Keras, which take seconds to import.
"""

import argparse
import pathlib
from collections.abc import Sequence

from absl.flags import argparse_flags

from dqmq_tf.command_line.argument_types import (
    KINDS,
    array_file,
    existing_file,
    image_source,
    integer_from,
    json_path,
    keras_path,
    names_from,
    number_between,
    numbers,
    positive_number,
    severity_range,
    tflite_path,
    two_numbers,
)
from dqmq_tf.config import BUDGET_KINDS
from dqmq_tf.targets import (
    ACCELERATORS,
    ARTIFACTS,
    COLORS,
    IO_TYPES,
    PROFILE_COUNTS,
    RESIZES,
    ROUTINGS,
    TARGETS,
)

_RUNTIMES = tuple(dict.fromkeys(name for target in TARGETS.values() for name in target.runtimes))
_DEPLOYABLE = tuple(name for name, target in TARGETS.items() if target.deployable)
_DATA_HELP = (
    "typical inputs as the model takes them: an array in a .npy file, or one array per input, in "
    "the model's order, in a .npz file"
)
_MODEL_HELP = "file of a trained DQMQModel, saved by model.save"
_MIXING = ("kinds", "severity", "clean")
# Modules that are imported may define absl flags of the same names, which every parser accepts.
_OURS_FIRST = "resolve"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parses the command line.

    Args:
        argv: The program and its arguments.

    Returns:
        The arguments, with the name of the command in `command`.

    Raises:
        SystemExit: With code 2 if the arguments are wrong, with code 0 after the help.
    """
    parser = argparse_flags.ArgumentParser(
        prog="dqmq_tf",
        description="Mixed-precision networks, from a trained .keras file to a verified .tflite "
        "file. Exit codes: 0 success; 1 the model or the file fails a check; 2 wrong use.",
        conflict_handler=_OURS_FIRST,
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        subparser = commands.add_parser(
            name, help=text, description=text, conflict_handler=_OURS_FIRST
        )
        subparser.add_argument(
            "--json",
            type=json_path,
            metavar="FILE",
            help="also write the report to FILE as JSON; with --json=- it is printed in place of "
            "the tables",
        )
        return subparser

    quantize = command("quantize", "train a float model to mixed precision and write its file")
    _add_quantize(quantize)
    convert = command("convert", "write a trained model as a .tflite file")
    _add_convert(convert)

    verify = command("verify", "compare a .tflite file with the model it was made from")
    verify.add_argument("model", type=existing_file, help=_MODEL_HELP)
    verify.add_argument("file", type=existing_file, help="the .tflite file")
    verify.add_argument("--data", type=array_file, required=True, help=_DATA_HELP)
    verify.add_argument(
        "--samples", type=integer_from(1), default=1000, help="number of inputs to compare"
    )
    verify.add_argument(
        "--runtimes",
        type=names_from(_RUNTIMES),
        help=f"comma-separated: {', '.join(_RUNTIMES)}; those of the target if omitted",
    )

    inspect = command("inspect", "show the contents of any .tflite file")
    inspect.add_argument("file", type=existing_file, help="the .tflite file")
    inspect.add_argument(
        "--accelerator",
        choices=ACCELERATORS,
        help="NPU that Vela estimates the cycles for; that of target ethos_u for its files if omitted",
    )

    summary = command("summary", "show the bits per layer and the cost of a trained model")
    summary.add_argument("model", type=existing_file, help=_MODEL_HELP)

    command("targets", "show the deployment targets and what each supports")

    arguments = parser.parse_args(argv[1:])
    if arguments.command == "convert" and arguments.adaptive and arguments.data is None:
        convert.error("--adaptive needs --data=FILE with typical inputs of every quality")
    if arguments.command == "convert" and arguments.adaptive and arguments.profile is not None:
        convert.error(
            "--profile writes one profile and --adaptive all of them: give one of the two"
        )
    if arguments.command == "quantize":
        try:
            _check_quantize(arguments)
        except argparse.ArgumentTypeError as error:
            quantize.error(str(error))
    _check_json(arguments, parser)
    return arguments


def _check_json(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Ends with an error if the report would overwrite another file of the command."""
    if arguments.json in (None, "-"):
        return
    report = pathlib.Path(arguments.json).resolve()
    for name, path in vars(arguments).items():
        if isinstance(path, pathlib.Path) and path.resolve() == report:
            parser.error(f"argument --json: it would overwrite {path} ({name}): give another FILE")


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=existing_file, help=_MODEL_HELP)
    parser.add_argument("output", type=tflite_path, help="file to write; ends in .tflite")
    parser.add_argument("--data", type=array_file, help=_DATA_HELP)
    parser.add_argument("--profile", type=int, help="precision profile to write; default 0")
    parser.add_argument(
        "--adaptive",
        type=int,
        choices=PROFILE_COUNTS,
        help="write this many profiles and their router into one file; needs --data",
    )
    parser.add_argument(
        "--routing",
        choices=ROUTINGS,
        default=ROUTINGS[0],
        help="how an adaptive file chooses a profile",
    )
    _add_file_options(parser)
    feeding = parser.add_argument_group("what the file says about its images and classes")
    feeding.add_argument(
        "--labels", type=existing_file, metavar="FILE", help="text file with a class on each line"
    )
    for name, text in (("mean", "subtracted from pixels from 0 to 255"), ("std", "divided by")):
        feeding.add_argument(
            f"--{name}",
            type=numbers,
            metavar="N[,N,N]",
            help=f"what is {text}, per channel or for all",
        )
    feeding.add_argument("--color", choices=COLORS, help="order of the channels")
    feeding.add_argument("--resize", choices=RESIZES, help="how images were resized for training")


def _add_file_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that `convert` and `quantize` share."""
    parser.add_argument("--io_dtype", choices=IO_TYPES, help="type of inputs and outputs")
    parser.add_argument(
        "--artifacts",
        type=names_from(ARTIFACTS),
        default=(),
        help=f"files to write next to the output, comma-separated: {', '.join(ARTIFACTS)}",
    )
    parser.add_argument("--noverify", action="store_true", help="do not run the file")


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", type=existing_file, help="file of a float Keras model, a classifier"
    )
    parser.add_argument("output", type=tflite_path, help="file to write; ends in .tflite")
    parser.add_argument(
        "--save",
        type=keras_path,
        metavar="FILE",
        help="file of the trained DQMQModel; the output with the ending .keras if omitted",
    )

    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        type=image_source,
        required=True,
        metavar="FOLDER|NAME",
        help="a folder with one subfolder of images per class, in the alphabetical order of the "
        "model's classes, or the name of a dataset of tensorflow-datasets",
    )
    data.add_argument("--data_dir", type=pathlib.Path, help="folder of prepared datasets, for NAME")
    data.add_argument("--split", default="train", help="split to train on, for NAME")
    data.add_argument(
        "--validation_split",
        type=number_between(0.0, 0.9),
        default=0.1,
        help="share of the images that are held back to measure the result; default 0.1",
    )
    data.add_argument(
        "--value_range",
        type=two_numbers,
        default=(0.0, 255.0),
        metavar="LOW,HIGH",
        help="values of black and white in the model's inputs; default 0,255",
    )
    data.add_argument(
        "--image_size",
        type=two_numbers,
        metavar="HEIGHT,WIDTH",
        help="size of the images, for a model without a fixed one",
    )
    data.add_argument(
        "--crop", action="store_true", help="crop images to the model's proportions, not stretch"
    )

    mixing = parser.add_argument_group("degradations of the training images")
    mixing.add_argument(
        "--mix", action="store_true", help="degrade images at random, as quality.mixed_quality does"
    )
    mixing.add_argument(
        "--kinds",
        type=names_from(KINDS),
        help=f"kinds of degradation, comma-separated; all if omitted: {', '.join(KINDS)}",
    )
    mixing.add_argument(
        "--severity", type=severity_range, metavar="LOW,HIGH", help="from 1 to 5; default 1,5"
    )
    mixing.add_argument(
        "--clean", type=number_between(0.0, 1.0), help="share of unchanged images; default 0.2"
    )

    budget = parser.add_argument_group("target and budget (at most one)")
    budget.add_argument("--target", choices=_DEPLOYABLE, default="android", help="default android")
    for kind in BUDGET_KINDS:
        budget.add_argument(f"--{kind}", type=positive_number, metavar="N")

    training = parser.add_argument_group("training")
    training.add_argument("--epochs", type=integer_from(1), default=8, help="default 8")
    training.add_argument("--batch_size", type=integer_from(1), default=64, help="default 64")
    training.add_argument(
        "--learning_rate", type=positive_number, default=1e-3, help="of Adam; default 0.001"
    )
    training.add_argument("--seed", type=int, default=0, help="default 0")
    training.add_argument(
        "--exposure",
        choices=("auto",),
        help="train with and without a correction of each image's exposure, and keep it if it pays",
    )
    _add_file_options(parser)


def _check_quantize(arguments: argparse.Namespace) -> None:
    """Raises `ArgumentTypeError` if arguments of `quantize` contradict each other."""
    if arguments.save is None:
        arguments.save = keras_path(str(arguments.output.with_suffix(".keras")))
    if arguments.save.resolve() == arguments.model.resolve():
        raise argparse.ArgumentTypeError(
            f"the trained model would overwrite {arguments.model}: give --save=FILE"
        )
    given = [kind for kind in BUDGET_KINDS if getattr(arguments, kind) is not None]
    if len(given) > 1:
        raise argparse.ArgumentTypeError(f"give one budget: found --{' and --'.join(given)}")
    for name in _MIXING:
        if getattr(arguments, name) is not None and not arguments.mix:
            raise argparse.ArgumentTypeError(f"--{name} needs --mix")
    if arguments.image_size is not None:
        if not all(size >= 1 and size == int(size) for size in arguments.image_size):
            raise argparse.ArgumentTypeError(
                "--image_size: give two numbers of pixels, such as 96,96"
            )
        arguments.image_size = tuple(map(int, arguments.image_size))
    if arguments.value_range[0] >= arguments.value_range[1]:
        raise argparse.ArgumentTypeError("--value_range: give the lower number first, such as 0,1")
    if arguments.data.is_folder and arguments.data_dir is not None:
        raise argparse.ArgumentTypeError(
            "--data_dir is for datasets of tensorflow-datasets, and --data is a folder"
        )
