"""`docs/troubleshooting.md` has every error message and warning that the package shows to users.

The messages are read from the source: the constant text of `raise Error("...")`, of
`warnings.warn("...")` and of the functions of `tf.debugging`, which raise errors inside a dataset, with
an ellipsis in place of each value. The page quotes parts of them.
"""

import ast
import pathlib
import re
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "troubleshooting.md"
CORRUPT = "reading a file turns it into 'The TFLite file is truncated or corrupt'"
CORRUPT_CODES = "reading a file turns it into 'coded weights are corrupt'"
# Parts of messages that users do not see, and why.
INTERNAL = {
    "no subgraph": CORRUPT,
    "has an unknown type": CORRUPT,
    "bytes, but its shape needs": CORRUPT,
    "… is missing": CORRUPT,
    "the code of an operator is unknown": CORRUPT,
    "contents end at byte": CORRUPT,
    "unknown header": CORRUPT_CODES,
    "the words end after": CORRUPT_CODES,
    "a word is longer than": CORRUPT_CODES,
    "a table is cut short": CORRUPT_CODES,
    "the code has no word for": "encoding turns it into 'cannot be Huffman-coded'",
    "The router has no convolution": "an assertion: every quality encoder has convolutions",
}
# `FloatOnly` never leaves the lowering: the report has its reason beside the layer.
INTERNAL_ERRORS = {"FloatOnly"}
# A quote that is shorter, or that more messages have, does not lead to its cure.
SHORTEST_QUOTE, MOST_MESSAGES = 10, 4


class Message(NamedTuple):
    """A message: where it is raised, as what, and its text."""

    place: str
    error: str
    text: str


def text_of(*nodes):
    """Returns the constant text of expressions, with an ellipsis in place of each value."""
    texts = []
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            texts.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            texts.append("".join(map(text_of, node.values)))
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            texts.append(text_of(node.left) + text_of(node.right))
        elif isinstance(node, ast.List):
            texts.append(text_of(*node.elts))
        else:
            texts.append("…")
    return " ".join(texts)


def has_words(text):
    return re.search("[a-z]{2}", text) is not None


def last_name(function):
    """Returns `f` for `f`, `a.f` and `a.b.f`."""
    return ast.unparse(function).rsplit(".", 1)[-1]


def returned_texts(call, tree):
    """Returns the texts that functions in the arguments of a call return, such as `self._advice()`."""
    inner = [n for a in call.args for n in ast.walk(a) if isinstance(n, ast.Call)]
    names = {last_name(node.func) for node in inner}
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name in names]
    returns = [n for f in functions for n in ast.walk(f) if isinstance(n, ast.Return) and n.value]
    return [text for node in returns if has_words(text := text_of(node.value))]


def messages():
    """Returns a `Message` for each error and warning of the package."""
    found = []
    for path in sorted((ROOT / "dqmq_tf").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        handlers = [n for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler)]
        handled = {id(n) for handler in handlers for n in ast.walk(handler)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                call, error = node.exc, last_name(node.exc.func)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "warnings.warn":
                call, error = node, "warning"
            elif isinstance(node, ast.Call) and "tf.debugging." in ast.unparse(node.func):
                call, error = node, "InvalidArgumentError"
            else:
                continue
            text = text_of(*call.args)
            if error in INTERNAL_ERRORS or (id(node) in handled and not has_words(text)):
                continue  # The latter passes the message of another error on.
            texts = [text] if has_words(text) else returned_texts(call, tree) or [text]
            place = f"{path.relative_to(ROOT)}:{node.lineno}"
            found += [Message(place, error, one) for one in texts]
    return found


def quotes():
    """Returns the quotes of the page: the code in the first column of its tables of messages."""
    page = PAGE.read_text(encoding="utf-8")
    tables = re.findall(r"^\| the message says \|.*\n((?:\|.*\n)+)", page, re.M)
    rows = [row for table in tables for row in table.splitlines()[1:]]
    return [quote for row in rows for quote in re.findall(r"`(.+?)`", row.split("|")[1])]


def has_quote(message, quote):
    """Returns whether a message has the parts of a quote, in order."""
    parts = [re.escape(part.strip()) for part in quote.split("…")]
    return re.search(".*".join(parts), message.text) is not None


MESSAGES = messages()
QUOTES = quotes()


def test_the_messages_are_found():
    assert len(MESSAGES) > 200
    errors = {message.error for message in MESSAGES}
    assert errors >= {"warning", "ValueError", "ConversionError", "UnsupportedLayerError"}
    assert "InvalidArgumentError" in errors
    assert not [message for message in MESSAGES if not has_words(message.text)]


def test_the_page_has_every_message():
    known = [*QUOTES, *INTERNAL]
    assert not [m for m in MESSAGES if not any(has_quote(m, quote) for quote in known)]


@pytest.mark.parametrize("quote", [*QUOTES, *INTERNAL])
def test_a_quote_leads_to_a_message(quote):
    assert len(quote) >= SHORTEST_QUOTE
    assert 1 <= sum(has_quote(message, quote) for message in MESSAGES) <= MOST_MESSAGES


def test_the_page_has_a_quote_once():
    assert not [quote for quote in QUOTES if QUOTES.count(quote) > 1]
