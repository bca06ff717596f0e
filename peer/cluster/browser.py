"""Where a peer's page is, and opening it."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable

#: Browsers that would take over the terminal, by the names that the standard library gives them.
TEXT_BROWSERS = {"www-browser", "links", "elinks", "lynx", "w3m"}


def page_address(listen: str, port: int) -> str:
    """URL of the page of a peer on this machine that listens on `listen` (HOST:PORT) and serves its page on `port`."""
    host = listen.rpartition(":")[0].strip("[]")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def open_in_browser(url: str, failed: Callable[[], object]) -> threading.Thread:
    """Open it without waiting: some browsers return only when they are closed. failed: called on the thread if there is none, or only
    one for terminals."""

    def work() -> None:
        try:
            browser = webbrowser.get()
            opened = getattr(browser, "name", "") not in TEXT_BROWSERS and browser.open(url)
        except (webbrowser.Error, OSError):
            opened = False
        if not opened:
            failed()

    thread = threading.Thread(target=work, name="grapevine-browser", daemon=True)
    thread.start()
    return thread
