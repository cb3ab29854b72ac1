"""`BUILD` names every module and test, with the dependencies that their imports say.

`python tests/test_build_file.py > BUILD` writes it anew.
"""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "dqmq_tf"
RUNNER = "tests/run_pytest.py"
HEADER = f"""\
# Targets of dqmq_tf, one per module and test. Written by `python tests/test_build_file.py > BUILD`.
#
# TensorFlow, Keras and the other requirements of setup.py come from the Python environment that
# Bazel runs with. Imports inside functions, which break cycles or are optional, are no dependencies
# of a module; ":{PACKAGE}" has all modules.

package(default_visibility = ["//visibility:public"])

licenses(["notice"])
"""


def files(folder, pattern="*.py"):
    """Paths of Python files under a folder, relative to the root, sorted."""
    found = (ROOT / folder).rglob(pattern)
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def target_name(path):
    """Name of the target of a file; a package's is that of its folder."""
    return path.removesuffix(".py").removesuffix("/__init__")


def imported_modules(path):
    """Files of the package that a file imports when it is itself imported."""
    found = set()
    for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
        names = []
        if isinstance(node, ast.Import):
            names = [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [(node.module, alias.name) for alias in node.names]
        for module, name in names:
            found.add(file_of(f"{module}.{name}") or file_of(module))
    return found - {None, path}


def file_of(module):
    """File of a module of the package, or None."""
    if module.split(".")[0] != PACKAGE:
        return None
    stem = module.replace(".", "/")
    return next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if (ROOT / p).exists()), None)


def rule(kind, **attributes):
    """Text of a rule as buildifier formats it."""
    lines = [f"{kind}("]
    for key, value in attributes.items():
        if isinstance(value, str):
            lines.append(f'    {key} = "{value}",')
        elif len(value) == 1:
            lines.append(f'    {key} = ["{value[0]}"],')
        elif value:
            lines += [f"    {key} = [", *(f'        "{item}",' for item in value), "    ],"]
    return "\n".join([*lines, ")\n"])


def labels(paths):
    return sorted(f":{target_name(path)}" for path in paths)


def build_text():
    """What `BUILD` holds."""
    modules, tests = files(PACKAGE), files("tests", "test_*.py")
    helpers = [path for path in files("tests") if path not in tests and path != RUNNER]
    examples = files("examples")
    rules = [HEADER]
    for path in modules:
        own = f"{PACKAGE}/__init__.py"
        needed = set(modules) - {own} if path == own else imported_modules(path) - {own}
        rules.append(rule("py_library", name=target_name(path), srcs=[path], deps=labels(needed)))
    for path in examples:
        everything = [f":{PACKAGE}"]
        rules.append(rule("py_binary", name=target_name(path), srcs=[path], deps=everything))
    rules.append(rule("py_library", name="tests/helpers", srcs=helpers))
    for path in tests:
        rules.append(
            rule(
                "py_test",
                name=target_name(path),
                srcs=[RUNNER, path],
                main=RUNNER,
                args=[f"$(location {path})"],
                data=[path, "pyproject.toml", *data_of(path, examples)],
                deps=[f":{PACKAGE}", ":tests/helpers"],
            )
        )
    return "\n".join(rules)


def data_of(path, examples):
    """Other files that a test reads, by the names that stand in it."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path == "tests/test_build_file.py":
        return ["BUILD"]
    return [example for example in examples if f'"{pathlib.Path(example).name}"' in text]


def targets():
    """`{name: attributes}` of `BUILD`, which is Python too as far as it goes."""
    found = {}

    def declare(name, **attributes):
        assert name not in found, f"{name} is declared twice"
        found[name] = attributes

    ignore = {"package": lambda **_: None, "licenses": lambda _: None}
    rules = dict.fromkeys(("py_library", "py_binary", "py_test"), declare)
    exec((ROOT / "BUILD").read_text(encoding="utf-8"), {**ignore, **rules})
    return found


def test_build_file_is_what_the_imports_say():
    advice = "Run: python tests/test_build_file.py > BUILD"
    assert (ROOT / "BUILD").read_text(encoding="utf-8") == build_text(), advice


def test_every_module_and_test_has_one_target():
    sources = [path for attributes in targets().values() for path in attributes["srcs"]]
    for path in files(PACKAGE) + files("tests", "test_*.py") + files("examples"):
        assert sources.count(path) == 1, path


def test_dependencies_exist_and_have_no_cycle():
    found, done = targets(), set()

    def visit(name, above):
        assert name in found, f"{above[-1]} needs {name}, which is no target"
        assert name not in above, f"cycle: {' -> '.join((*above, name))}"
        if name not in done:
            for dependency in found[name].get("deps", []):
                visit(dependency[1:], (*above, name))
            done.add(name)

    for name in found:
        visit(name, ())


if __name__ == "__main__":
    print(build_text(), end="")
