"""The tables of the comparison as one Markdown document."""

from study import result_tables

TESTS = """\
Test (a): degradations of the kinds of training, severities 1 to 5; (b): other kinds; (c): clean
images; (d): half clean, half of severity 5. Figures are means over seeds ± their standard error; one
seed has no error. "-": not run."""


def markdown(found, pictured):
    """Returns the document of all tables.

    Args:
        found: `Results`.
        pictured: `{title: address}` of the pictures.
    """
    images = [f"![{title}]({address})\n" for title, address in pictured.items()]
    sections = [table.markdown() for table in result_tables.tables(found)]
    head = f"# Images of mixed quality at equal cost\n\n{TESTS} {steps_note(found)}\n"
    return "\n".join([head, *images, *sections])


def steps_note(found):
    """Returns a sentence on the runs that count."""
    rest = f"; {found.left_out} runs of other steps are left out" if found.left_out else ""
    return f"All runs have {found.steps:,} steps{rest}."
