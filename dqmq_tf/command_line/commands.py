"""The commands of `python -m dqmq_tf`.

Tables go to standard output, progress and errors to standard error. Exit codes: 0 for success; 1 if
the model or the file fails a check; 2 for wrong use, such as an unknown option or a missing file.

Each command imports what it needs: TensorFlow and Keras take seconds.
"""

import argparse
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from dqmq_tf.command_line.loading import loaded
from dqmq_tf.errors import DQMQError
from dqmq_tf.terminal import output_console

if TYPE_CHECKING:
    import numpy as np

    from dqmq_tf.model import DQMQModel

FAILED, WRONG_USE = 1, 2


class _Report(Protocol):
    """A report that rich prints as tables."""

    def to_json(self) -> str: ...


def run(arguments: argparse.Namespace) -> int:
    """Runs a parsed command, shows its report, and returns the exit code."""
    try:
        _show(_COMMANDS[arguments.command](arguments), arguments.json)
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


def _show(report: _Report, json_path: str | None) -> None:
    """Prints a report as tables, or as JSON for `--json=-`, and writes it for `--json=FILE`."""
    if json_path == "-":
        print(report.to_json())
        return
    output_console().print(report)
    if json_path is not None:
        pathlib.Path(json_path).write_text(report.to_json() + "\n", encoding="utf-8")


def _quantize(arguments: argparse.Namespace) -> _Report:
    from dqmq_tf.command_line import quantize_command

    return quantize_command.quantize(arguments)


def _convert(arguments: argparse.Namespace) -> _Report:
    from dqmq_tf import export

    stated = {name: getattr(arguments, name) for name in ("mean", "std", "color", "resize")}
    stated = {name: value for name, value in stated.items() if value is not None}
    labels = arguments.labels and loaded(arguments.labels, _lines)
    return export.convert(
        _load_model(arguments.model),
        arguments.output,
        profile=arguments.profile or 0,
        adaptive=arguments.adaptive,
        routing=arguments.routing,
        data=None if arguments.data is None else loaded(arguments.data, _arrays),
        io_dtype=arguments.io_dtype,
        verify=not arguments.noverify,
        artifacts=arguments.artifacts,
        labels=labels,
        preprocessing=export.Preprocessing(**stated) if stated else None,
    )


def _verify(arguments: argparse.Namespace) -> _Report:
    from dqmq_tf import export

    return export.verify(
        _load_model(arguments.model),
        arguments.file,
        loaded(arguments.data, _arrays),
        samples=arguments.samples,
        runtimes=arguments.runtimes,
    )


def _inspect(arguments: argparse.Namespace) -> _Report:
    from dqmq_tf import export

    return export.inspect_file(arguments.file, arguments.accelerator)


def _summary(arguments: argparse.Namespace) -> _Report:
    from dqmq_tf.report.summary import summary

    return summary(_load_model(arguments.model))


def _targets(arguments: argparse.Namespace) -> _Report:
    from dqmq_tf.report.target_table import target_table

    return target_table()


def _load_model(path: pathlib.Path) -> "DQMQModel":
    import keras

    # Keras finds the classes of the model because this imports them.
    from dqmq_tf.model import DQMQModel

    model = loaded(path, keras.models.load_model)
    if not isinstance(model, DQMQModel):
        raise ValueError(
            f"{path} holds a {type(model).__name__}, not a DQMQModel. Train "
            "dqmq_tf.quantize_model(model) and save that."
        )
    return model


def _arrays(path: pathlib.Path) -> "np.ndarray | list[np.ndarray]":
    import numpy as np

    data = np.load(path)
    return data if isinstance(data, np.ndarray) else [data[name] for name in data.files]


def _lines(path: pathlib.Path) -> list[str]:
    return path.read_text(encoding="utf-8-sig").splitlines()


_COMMANDS: Mapping[str, Callable[[argparse.Namespace], _Report]] = {
    "quantize": _quantize,
    "convert": _convert,
    "verify": _verify,
    "inspect": _inspect,
    "summary": _summary,
    "targets": _targets,
}
