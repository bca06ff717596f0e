"""Where a peer of this machine and its page are, and opening that."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Callable

#: Browsers that would take over the terminal, by the names that the standard library gives them.
TEXT_BROWSERS = {"www-browser", "links", "elinks", "lynx", "w3m"}


def address_here(listen: str, port: int | str) -> str:
    """HOST:PORT at which a peer that listens on the host of `listen` (HOST:PORT) is reached from this machine: who listens on every address
    is reached on loopback."""
    host = listen.rpartition(":")[0].strip("[]")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def page_address(listen: str, port: int) -> str:
    """URL of the page of a peer on this machine that listens on `listen` (HOST:PORT) and serves its page on `port`."""
    return f"http://{address_here(listen, port)}/"


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
