"""Installation of dqmq_tf."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent

# `tests/packaging/check_wheels.py` runs the package with the lowest versions together, and with the
# newest.
_REQUIRED = [
    "absl-py>=1.4.0",
    "ai-edge-litert>=2.3.0",
    "flatbuffers>=24.3.25",
    "keras>=3.12.0",
    "litert-quantizer>=0.11.0",
    "numpy>=2.1.0",
    "rich>=13.0.0",
    "tensorflow>=2.19.0",
    # The first release for this Python.
    "tensorflow>=2.20.0; python_version >= '3.13'",
]
_EXTRAS = {
    "benchmark": ["opencv-python-headless>=4.10.0.84", "zopfli>=0.4.3"],
    # tensorflow-datasets imports importlib_resources to prepare a dataset, and does not require it.
    "data": ["scikit-learn>=1.6.0", "tensorflow-datasets>=4.9.8", "importlib_resources>=6.0.0"],
    "ethos_u": ["ethos-u-vela>=5.2.0"],
    # Only pre-releases of TFLite Micro's wheel exist.
    "micro": ["tflite-micro>=0.dev20261023182759"],
    # Older releases pin a protobuf that TensorFlow does not run with.
    "qonnx": ["onnx>=1.17.0", "onnxruntime>=1.20.1", "qonnx>=1.0.0"],
    "plot": ["matplotlib>=3.10.0"],
    "tfmot": ["tensorflow-model-optimization>=0.8.1"],
}
_EXTRAS["all"] = sorted(requirement for extra in _EXTRAS.values() for requirement in extra)
_EXTRAS["docs"] = ["mkdocs>=1.6.1", "mkdocs-material>=9.8.2", "mkdocstrings[python]>=1.0.8"]
_EXTRAS["test"] = [
    *_EXTRAS["all"],
    *_EXTRAS["docs"],
    "build>=1.6.1",
    "hypothesis>=6.170.15",
    "ipykernel>=6.23.0",
    "keras-tuner>=1.4.8",
    "mypy>=2.4.1",
    "nbclient>=0.8.0",
    "nbformat>=5.7.0",
    "playwright>=1.65.2",
    "pytest>=9.2.0",
    "pytest-xdist>=3.8.0",
    "ruff>=0.17.6",
    "tensorboard>=2.19.0",
    "twine>=7.0.0",
]


def _version():
    """Returns the version that the package itself states, without importing it."""
    source = (_ROOT / "dqmq_tf" / "version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE).group(1)


def _long_description():
    """Returns `README.md` for a page that is not in the repository.

    Its links to files lead nowhere there. No address of the repository is known that they could lead
    to, so their text stays and the links go. The picture goes too, with the sentence about it.
    """
    readme = (_ROOT / "README.md").read_text(encoding="utf-8")
    readme = readme.replace("The bit-widths in the picture are an illustration. ", "")
    without_pictures = re.sub(r"!\[[^\]]*\]\((?!https?://)[^)]*\)\n*", "", readme)
    return re.sub(r"\[([^\]]*)\]\((?!https?://|#)[^)]*\)", r"\1", without_pictures)


setuptools.setup(
    name="dqmq_tf",
    version=_version(),
    description="Data-quality-aware mixed-precision quantization for Keras 3, down to TFLite",
    long_description=_long_description(),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    packages=setuptools.find_packages(include=["dqmq_tf", "dqmq_tf.*"]),
    package_data={"dqmq_tf": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=_REQUIRED,
    extras_require=_EXTRAS,
    entry_points={"console_scripts": ["dqmq_tf = dqmq_tf.__main__:main"]},
    keywords=[
        "quantization",
        "mixed precision",
        "quantization-aware training",
        "Keras",
        "TensorFlow Lite",
        "LiteRT",
        "TFLite Micro",
        "image quality",
    ],
    # The license is the SPDX expression above, beside which no classifier of it may stand.
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
