"""Calls the command line in this process."""

from dqmq_tf.command_line import arguments, commands


def call(*words):
    """Runs a command in this process and returns its exit code."""
    try:
        return commands.run(arguments.parse(["dqmq_tf", *map(str, words)]))
    except SystemExit as exit:
        return exit.code
