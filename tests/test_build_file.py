"""`BUILD` says which room may import which; the package keeps to it.

A room is a folder of `dqmq_tf/`, or a module directly under it that is not part of the ground.
"""

import ast
import collections
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dqmq_tf"
# These see everything: they offer the package to its users.
TOP = {"__init__", "__main__", "cli"}
MAX_ENTRIES, MAX_LINES, MAX_SHARE = 26, 400, 0.25


def declared():
    """`ROOMS` and `GROUND` of `BUILD`, which is Python as far as they go."""
    tree = ast.parse((ROOT / "BUILD").read_text(encoding="utf-8"))
    values = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
    }
    return values["ROOMS"], set(values["GROUND"])


def room_of(path):
    """Name of the room, or of the ground's module, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(tree):
    """Rooms that a module imports, inside its functions too."""
    for node in ast.walk(tree):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide which room they go to"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            package, _, rest = module.partition(".")
            if package == "dqmq_tf":
                yield rest.split(".")[0] or "__init__"


def imports():
    """`{room: rooms that it imports}`, without itself."""
    found = collections.defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        room = room_of(path)
        found[room] |= set(imported(ast.parse(path.read_text(encoding="utf-8")))) - {room}
    return found


ROOMS, GROUND = declared()


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_rooms_that_it_may(room):
    assert imports()[room] <= {*ROOMS[room], *GROUND}


def test_the_ground_imports_only_the_ground():
    for module in GROUND:
        assert imports()[module] <= GROUND, module


def test_rooms_are_listed_from_the_lowest_up_so_that_there_is_no_circle():
    known = set()
    for room, needs in ROOMS.items():
        assert set(needs) <= known, room
        known.add(room)


def test_modules_import_each_other_in_no_circle():
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
        # A package is no more than what it offers of its modules.
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


def test_every_module_stands_in_a_room():
    for path in PACKAGE.rglob("*.py"):
        assert room_of(path) in {*ROOMS, *GROUND, *TOP}, path
        assert len(path.relative_to(PACKAGE).parts) <= 2, f"{path}: rooms have no rooms inside"


def test_rooms_and_files_stay_small_enough_to_be_known():
    entries = [entry for entry in PACKAGE.iterdir() if entry.suffix == ".py" or entry.is_dir()]
    assert len([entry for entry in entries if entry.name != "__pycache__"]) <= MAX_ENTRIES
    lines = {path: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert [path.name for path, count in lines.items() if count > MAX_LINES] == []
    shares = collections.Counter()
    for path, count in lines.items():
        shares[room_of(path)] += count / sum(lines.values())
    assert max(shares.values()) <= MAX_SHARE, shares.most_common(1)
