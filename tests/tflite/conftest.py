"""Chromium with the web page, started once for all tests of this folder."""

import contextlib

import pytest
from helpers import web_page
from helpers.web_files import Files


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The URL of the page, served with LiteRT.js beside it."""
    folder = tmp_path_factory.mktemp("web")
    web_page.copy_with_runtime(folder)
    with web_page.served(folder) as url:
        yield url


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The files that the page runs."""
    return Files(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium, or rather one session of it, which compiles WebAssembly only once."""
    with web_page.chromium() as chromium:
        yield chromium.new_context()


@contextlib.contextmanager
def opened(site, browser):
    """A tab with the page, in which no error may stay uncaught."""
    tab = browser.new_page()
    failures = []
    tab.on("pageerror", lambda error: failures.append(error))
    tab.goto(site)
    tab.bring_to_front()  # Only that tab has the keyboard.
    yield tab
    tab.close()
    assert not failures


@pytest.fixture
def page(site, browser):
    """A new tab with the page."""
    with opened(site, browser) as tab:
        yield tab


@pytest.fixture(scope="session")
def tab(site, browser):
    """A tab with the page that tests share. Loading LiteRT.js takes a second."""
    with opened(site, browser) as tab:
        yield tab
