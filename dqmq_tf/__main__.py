"""`python -m dqmq_tf`: convert, verify, inspect and summary from the command line."""

from absl import app

from dqmq_tf import command_line


def main():
    """Runs the command and leaves with its exit code."""
    app.run(command_line.run, flags_parser=command_line.parse)


if __name__ == "__main__":
    main()
