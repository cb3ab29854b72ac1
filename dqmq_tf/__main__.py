"""`python -m dqmq_tf`: convert, verify, inspect and summary from the command line."""

from absl import app

from dqmq_tf import cli


def main():
    """Runs the command and leaves with its exit code."""
    app.run(cli.run, flags_parser=cli.parse)


if __name__ == "__main__":
    main()
