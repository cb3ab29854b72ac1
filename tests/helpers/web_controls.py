"""What a person does with the web page, as functions for tests."""

from typing import Any

import numpy as np
import tensorflow as tf


def upload(name: str, contents: bytes) -> dict[str, Any]:
    """Returns a file to choose, as Playwright takes it."""
    return {"name": name, "mimeType": "application/octet-stream", "buffer": contents}


def png(pixels: np.ndarray) -> dict[str, Any]:
    """Returns a picture to choose, from uint8 pixels `[height, width, 3]`."""
    return {
        "name": "photo.png",
        "mimeType": "image/png",
        "buffer": tf.io.encode_png(pixels).numpy(),
    }


def choose(page: Any, panel: str, name: str, contents: bytes) -> None:
    """Chooses a `.tflite` file for one of the panels, `"yours"` or `"other"`."""
    page.locator(f"#{panel} input").set_input_files(upload(name, contents))


def set_severity(page: Any, severity: int) -> None:
    """Moves the slider by keys, and waits until the result is that of the new position."""
    slider = page.get_by_role("slider", name="Severity")
    slider.focus()
    page.keyboard.press("Home")
    for _ in range(severity):
        page.keyboard.press("ArrowRight")


def expect(locator: Any) -> Any:
    """Returns Playwright's assertions on a locator, which wait until they hold."""
    from playwright.sync_api import expect

    return expect(locator)
