"""The command `python -m dqmq_tf`."""

import os

from absl import app

from dqmq_tf import cli


def main() -> None:
    """Runs the command and exits with its code."""
    # Only errors: TensorFlow's information would hide the command's own messages.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(cli.run, flags_parser=cli.parse)


if __name__ == "__main__":
    main()
