"""The command `python -m dqmq_tf`."""

import os

from absl import app

from dqmq_tf.command_line import arguments, commands


def main() -> None:
    """Runs the command and exits with its code."""
    # Only errors: TensorFlow's information would hide the command's own messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(commands.run, flags_parser=arguments.parse)


if __name__ == "__main__":
    main()
