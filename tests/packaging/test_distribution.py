"""The source distribution and the wheel: what they hold, and what they say about themselves."""

import email
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

import dqmq_tf

ROOT = pathlib.Path(__file__).resolve().parents[2]
FILES = ("LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """`(source distribution, wheel)`; the wheel is built from the source distribution."""
    source = tmp_path_factory.mktemp("source")
    for name in FILES:
        shutil.copy(ROOT / name, source)
    for name in ("dqmq_tf", "tests"):
        shutil.copytree(
            ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "data")
        )
    command = [sys.executable, "-m", "build", "--outdir", str(source / "dist"), str(source)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    (sdist,) = (source / "dist").glob("*.tar.gz")
    (wheel,) = (source / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def metadata(distributions):
    """The metadata of the wheel."""
    with zipfile.ZipFile(distributions[1]) as wheel:
        (name,) = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
        return email.message_from_string(wheel.read(name).decode("utf-8"))


def test_the_wheel_holds_the_package_alone(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = {n for n in wheel.namelist() if ".dist-info/" not in n}
    package = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "dqmq_tf").rglob("*")
        if path.suffix in (".py", ".typed")
    }
    assert names == package and "dqmq_tf/py.typed" in names


def test_the_source_distribution_holds_no_tests_which_could_not_run_there(distributions):
    with tarfile.open(distributions[0]) as sdist:
        names = {name.split("/", 1)[1] for name in sdist.getnames() if "/" in name}
    assert names >= {*FILES, "dqmq_tf/quantize.py", "dqmq_tf/py.typed"}
    assert not [name for name in names if name.startswith("tests")]


def test_twine_accepts_both(distributions):
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout


def test_the_metadata_name_version_license_and_pythons(metadata):
    assert metadata["Name"] == "dqmq_tf" and metadata["Version"] == dqmq_tf.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    classifiers = metadata.get_all("Classifier")
    pythons = [f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)]
    assert {*pythons, "Typing :: Typed"} <= set(classifiers)
    assert "quantization" in metadata["Keywords"].split(",")


def test_the_description_is_the_readme_without_links_to_files(metadata):
    description = metadata.get_payload()
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [link for link in re.findall(r"\]\(([^)\s]+)", description) if "://" not in link]
    assert "picture" not in description and ".png" not in description
    assert "behind `Exposure`, a layer that corrects each image" in description
    code = re.compile(r"^```.*?^```", re.M | re.S)
    assert code.findall(description) == code.findall(readme)
    assert "](https://arxiv.org/abs/2302.04453)" in description
