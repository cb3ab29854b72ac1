"""All tables of the comparison as one Markdown document."""

from study import result_tables

TESTS = """\
Test (a): the kinds of degradation that training has, at severities 1 to 5. (b): other kinds. (c): clean
images. (d): half clean, half at severity 5. Figures are means over seeds ± their standard error; with one
seed there is no error. "-": not run."""


def markdown(found, pictures):
    """Returns the document with all tables.

    Args:
        found: The `Results`.
        pictures: `{title: address}` of the pictures.
    """
    images = [f"![{title}]({address})\n" for title, address in pictures.items()]
    sections = [table.markdown() for table in result_tables.tables(found)]
    head = f"# Images of mixed quality at equal cost\n\n{TESTS} {steps_note(found)}\n"
    return "\n".join([head, *images, *sections])


def steps_note(found):
    """Returns a sentence that says which runs the tables contain."""
    rest = (
        f"; {found.left_out} runs with other numbers of steps are left out"
        if found.left_out
        else ""
    )
    return f"All runs have {found.steps:,} steps{rest}."
