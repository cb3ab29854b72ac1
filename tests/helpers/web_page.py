"""The web page in headless Chromium, and its modules as functions for tests."""

import base64
import functools
import http.server
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import numpy as np
import pytest

PAGE = pathlib.Path(__file__).resolve().parents[2] / "tflite" / "web"
VERSION = "2.5.3"
PACKAGES = {"core": "@litertjs/core", "wasm-utils": "@litertjs/wasm-utils"}
BROWSER = "chromium"
# Without a sandbox Chromium also runs as root. The pictures of its fake camera are always the same.
_FLAGS = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

_RUN = """async ({file, pixels, shape}) => {
  const {openFile} = await import("./file.js");
  const {Network} = await import("./model.js");
  const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const network = await Network.load(await openFile(bytes(file)));
  const all = new Float32Array(bytes(pixels).buffer);
  const [count, height, width, channels] = shape;
  const size = height * width * channels;
  const results = [];
  for (let i = 0; i < count; i += 1) {
    const values = all.slice(i * size, (i + 1) * size);
    const result = await network.run({height, width, channels, values});
    results.push({...result, outputs: result.outputs.map((output) => [...output])});
  }
  const blank = new Float32Array(size);
  const milliseconds = await network.milliseconds({height, width, channels, values: blank});
  network.delete();
  return {results, milliseconds};
}"""

_DEGRADE = """async ({values, shape, kind, severity, draws}) => {
  const {degrade} = await import("./quality/degradations.js");
  const [height, width, channels] = shape;
  const replay = () => Float32Array.from(draws.shift());
  const random = {uniform: replay, normal: replay, poisson: replay};
  const image = {height, width, channels, values: Float32Array.from(values)};
  return [...degrade(image, kind, severity, random).values];
}"""

_RESIZE = """async ({values, shape, size, rule}) => {
  const {resize} = await import("./resize.js");
  const [height, width, channels] = shape;
  const image = {height, width, channels, values: Float32Array.from(values)};
  return [...resize(image, ...size, rule).values];
}"""


def missing(what: str) -> NoReturn:
    """Skips a test, but fails it in continuous integration, which must not skip it silently."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} The web page must be tested in continuous integration.")
    pytest.skip(what)


def copy_with_runtime(folder: pathlib.Path) -> None:
    """Copies the page to a folder and adds LiteRT.js, which comes from npm."""
    npm = shutil.which("npm")
    if npm is None:
        missing("npm is not installed, which fetches LiteRT.js.")
    shutil.copytree(PAGE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("vendor"))
    vendor = folder / "vendor"
    vendor.mkdir()
    packages = [f"{package}@{VERSION}" for package in PACKAGES.values()]
    packed = subprocess.run(
        [npm, "pack", "--json", *packages], cwd=vendor, capture_output=True, text=True
    )
    if packed.returncode:
        missing(f"npm cannot fetch LiteRT.js: {packed.stderr[-300:]}")
    names = {entry["name"]: entry["filename"] for entry in json.loads(packed.stdout)}
    # Python before 3.11.4 has no filters.
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    for name, package in PACKAGES.items():
        with tarfile.open(vendor / names[package]) as archive:
            archive.extractall(vendor, **safely)
        (vendor / "package").rename(vendor / name)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""


@contextmanager
def served(folder: pathlib.Path) -> Iterator[str]:
    """Serves a folder on this machine and yields its URL."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def chromium() -> Iterator[Any]:
    """Yields a headless Chromium, as installed on this machine."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install playwright.")
    path = shutil.which(BROWSER)
    if path is None:
        missing(f"{BROWSER} is not installed.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_FLAGS)
        yield browser
        browser.close()


def run(page: Any, contents: bytes, images: np.ndarray) -> tuple[list[dict[str, Any]], float]:
    """Runs a file on images, one at a time, as the page does.

    Args:
        page: A Playwright page.
        contents: The contents of the file.
        images: Pixels from 0 to 255, float32 `[N, height, width, channels]`.

    Returns:
        `(results, milliseconds)`: for each image its `outputs`, `profile` and `exposure`, and the
        time of a run.
    """
    found = page.evaluate(
        _RUN,
        {
            "file": base64.b64encode(contents).decode(),
            "pixels": base64.b64encode(images.tobytes()).decode(),
            "shape": list(images.shape),
        },
    )
    return found["results"], found["milliseconds"]


def degrade(
    page: Any, image: np.ndarray, kind: str, severity: int, draws: Sequence[np.ndarray]
) -> np.ndarray:
    """Degrades an image as the page does, with given random numbers.

    Args:
        page: A Playwright page.
        image: The image, uint8 `[height, width, channels]`.
        kind: The degradation.
        severity: From 1 to 5.
        draws: What the source of random numbers returns, in the order of the calls.
    """
    values = page.evaluate(
        _DEGRADE,
        {
            "values": image.ravel().tolist(),
            "shape": list(image.shape),
            "kind": kind,
            "severity": severity,
            "draws": [np.ravel(numbers).tolist() for numbers in draws],
        },
    )
    return np.reshape(values, image.shape)


def resize(page: Any, image: np.ndarray, size: tuple[int, int], rule: str) -> np.ndarray:
    """Resizes an image `[height, width, channels]` as the page does."""
    values = page.evaluate(
        _RESIZE,
        {
            "values": image.ravel().tolist(),
            "shape": list(image.shape),
            "size": list(size),
            "rule": rule,
        },
    )
    return np.reshape(values, (*size, image.shape[-1]))
