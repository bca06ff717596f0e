"""Where a page is, and what happens where there is no browser to show it."""

from __future__ import annotations

import webbrowser

import pytest

from peer.cluster.browser import open_in_browser, page_address


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("127.0.0.1:0", "http://127.0.0.1:9100/"),
        ("0.0.0.0:7000", "http://127.0.0.1:9100/"),
        ("[::]:7000", "http://[::1]:9100/"),
        ("[::1]:7000", "http://[::1]:9100/"),
        ("peer-3:7000", "http://peer-3:9100/"),
    ],
)
def test_the_address_of_a_page(listen: str, address: str) -> None:
    assert page_address(listen, 9100) == address


@pytest.mark.parametrize("command", ["w3m", "/no/such/browser"])
def test_a_browser_that_would_take_the_terminal_or_is_not_there_is_not_used(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webbrowser, "get", lambda: webbrowser.GenericBrowser(command))
    failures: list[bool] = []
    open_in_browser("http://127.0.0.1:1/", lambda: failures.append(True)).join(10)
    assert failures == [True]


def test_no_browser_at_all_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "_tryorder", [])
    failures: list[bool] = []
    open_in_browser("http://127.0.0.1:1/", lambda: failures.append(True)).join(10)
    assert failures == [True]
