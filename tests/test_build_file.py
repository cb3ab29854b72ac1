"""`BUILD` states which room may import which, and the package follows it.

A room is a folder of `dqmq_tf/`, or a module directly under it that is not part of the ground.
"""

import ast
import collections
import pathlib
import shutil
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dqmq_tf"
# These may import every room: they offer the package to its users.
TOP = {"__init__", "__main__", "command_line"}
MAX_ENTRIES, MAX_LINES, MAX_SHARE = 26, 400, 0.25


def read_rule():
    """Returns `ROOMS` and `GROUND` of `BUILD`; these assignments are valid Python."""
    tree = ast.parse((ROOT / "BUILD").read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    return values["ROOMS"], set(values["GROUND"])


def room_of(path):
    """Returns the name of the room, or of the ground's module, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(tree):
    """Yields the rooms that a module imports, inside its functions too."""
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import hides which room it goes to"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "dqmq_tf":
                yield rest.split(".")[0] or "__init__"


def imports_by_room():
    """Returns `{room: other rooms that it imports}`."""
    imports = collections.defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imports[room] |= set(imported_rooms(tree)) - {room}
    return imports


ROOMS, GROUND = read_rule()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_that_build_allows(room):
    assert imports_by_room()[room] <= {*ROOMS[room], *GROUND}


def test_the_ground_imports_only_the_ground():
    for module in GROUND:
        assert imports_by_room()[module] <= GROUND, module


def test_each_room_needs_only_rooms_listed_before_it_so_no_circle_is_allowed():
    listed = set()
    for room, needs in ROOMS.items():
        assert set(needs) <= listed, room
        listed.add(room)


def test_no_modules_import_each_other_in_a_circle():
    names = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for path in PACKAGE.rglob("*.py")
    }
    needs = {}
    for name, path in names.items():
        needs[name] = set()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                needs[name] |= {m if m in names else node.module for m in full} & set(names)
        # `from package import module` inside the package's own modules is not a circle.
        needs[name].discard(name)
    done = set()

    def visit(name, above):
        assert name not in above, f"circle: {' -> '.join((*above, name))}"
        if name not in done:
            for needed in sorted(needs[name]):
                visit(needed, (*above, name))
            done.add(name)

    for name in sorted(names):
        visit(name, ())


def test_every_module_belongs_to_a_room():
    for path in PACKAGE.rglob("*.py"):
        assert room_of(path) in {*ROOMS, *GROUND, *TOP}, path
        assert len(path.relative_to(PACKAGE).parts) <= 2, f"{path}: rooms have no subfolders"


def test_rooms_and_files_stay_small():
    entries = [entry for entry in PACKAGE.iterdir() if entry.suffix == ".py" or entry.is_dir()]
    assert len([entry for entry in entries if entry.name != "__pycache__"]) <= MAX_ENTRIES
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert [path.name for path, count in lines.items() if count > MAX_LINES] == []
    shares = collections.Counter()
    for path, count in lines.items():
        shares[room_of(path)] += count / sum(lines.values())
    assert max(shares.values()) <= MAX_SHARE, shares.most_common(1)


@pytest.mark.skipif(
    shutil.which("bazel") is None,
    reason="Bazel is not installed; on Debian: apt-get install bazel-bootstrap",
)
def test_bazel_lists_a_target_for_each_room_and_each_test(tmp_path):
    # In batch mode no server stays behind.
    command = ["bazel", f"--output_user_root={tmp_path}", "--batch", "query", "//..."]
    entries_before = {entry.name for entry in ROOT.iterdir()}
    query = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert query.returncode == 0, query.stderr
    targets = set(query.stdout.split())
    assert {f"//:{room}" for room in ("ground", *ROOMS, "dqmq_tf")} <= targets
    tests = (path.relative_to(ROOT).with_suffix("") for path in ROOT.glob("tests/**/test_*.py"))
    assert {f"//:{test.as_posix()}" for test in tests} <= targets
    # The query left none of the bazel-* links that a build makes.
    assert not {e.name for e in ROOT.iterdir() if e.name.startswith("bazel-")} - entries_before
