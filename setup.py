"""Installation of dqmq_tf."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent

# Floors are the versions that the tests ran with.
_REQUIRED = [
    "absl-py>=1.4.0",
    "ai-edge-litert>=2.3.0",
    "flatbuffers>=25.12.19",
    "keras>=3.15.1",
    "litert-quantizer>=0.11.0",
    "numpy>=2.4.6",
    "rich>=15.0.0",
    "tensorflow>=2.21.0",
]
_EXTRAS = {
    "benchmark": ["zopfli>=0.4.3"],
    "data": ["scikit-learn>=1.9.1", "tensorflow-datasets>=4.9.10"],
    "ethos_u": ["ethos-u-vela>=5.2.0"],
    # Only pre-releases of TFLite Micro's wheel exist.
    "micro": ["tflite-micro>=0.dev20261023182759"],
    # Older releases pin a protobuf that TensorFlow does not run with.
    "qonnx": ["onnx>=1.17.0", "onnxruntime>=1.20.1", "qonnx>=1.0.0"],
    "plot": ["matplotlib>=3.11.2"],
    "tfmot": ["tensorflow-model-optimization>=0.8.1"],
}
_EXTRAS["all"] = sorted(requirement for extra in _EXTRAS.values() for requirement in extra)
_EXTRAS["docs"] = ["mkdocs>=1.6.1", "mkdocs-material>=9.8.2", "mkdocstrings[python]>=1.0.8"]
_EXTRAS["test"] = [
    *_EXTRAS["all"],
    *_EXTRAS["docs"],
    "hypothesis>=6.170.15",
    "ipykernel>=6.23.0",
    "mypy>=2.4.1",
    "nbclient>=0.8.0",
    "nbformat>=5.7.0",
    "playwright>=1.65.2",
    "pytest>=9.2.0",
    "pytest-xdist>=3.8.0",
    "ruff>=0.17.6",
]


def _version():
    """Returns the version that the package itself states, without importing it."""
    source = (_ROOT / "dqmq_tf" / "version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE).group(1)


setuptools.setup(
    name="dqmq_tf",
    version=_version(),
    description="Data-quality-aware mixed-precision quantization for Keras 3, down to TFLite",
    long_description=(_ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=setuptools.find_packages(include=["dqmq_tf", "dqmq_tf.*"]),
    package_data={"dqmq_tf": ["py.typed"]},
    python_requires=">=3.11",
    install_requires=_REQUIRED,
    extras_require=_EXTRAS,
    entry_points={"console_scripts": ["dqmq_tf = dqmq_tf.__main__:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
