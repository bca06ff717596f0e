"""The page of a real cluster in a real browser: drawn, live, told of the end, and asking nobody else for anything."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.cluster.test_up import DONE_WITHIN, assert_no_orphans, wait_for, warm

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine; on Debian: apt-get install chromium")
    root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=[*root, "--disable-dev-shm-usage"])
        yield started
        started.close()


def background(page: Page) -> str:
    return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(150)
def test_the_page_of_a_real_cluster(browser: Browser, tmp_path: Path) -> None:
    """`--open` hands its address to the browser that BROWSER names, here a script that writes it down."""
    opener, opened = tmp_path / "opener", tmp_path / "opened"
    opener.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    opener.chmod(0o755)
    options = ["--peers", "4", "--topology", "ring", "--chunk-seconds", "0.004", "--straggler", "0=6x"]
    with warm("up", "--open", *options, BROWSER=f"{opener} %s") as process:
        address = re.search(r"http://127\.0\.0\.1:\d+/", wait_for(process, "page of peer 0"))
        assert address
        page = browser.new_page(color_scheme="light")
        asked: list[str] = []
        faults: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        page.goto(address[0])
        expect(page.locator("#live")).to_have_text("live", timeout=PATIENCE_MS)
        expect(page.locator("#peers tr")).to_have_count(4, timeout=PATIENCE_MS)
        expect(page.locator("#topology .edge")).to_have_count(4)
        for peer in range(4):  # from peer 0 all are seen, its opposite in the ring too
            expect(page.locator(f"#peer-{peer} td").nth(1)).to_have_text(re.compile(r"[1-9]\d*"), timeout=PATIENCE_MS)
        expect(page.locator("#events")).to_contain_text("peer 0 is a straggler", timeout=PATIENCE_MS)
        expect(page.locator("#loss path.mean")).to_have_count(1, timeout=PATIENCE_MS)
        expect(page.locator("#reasons")).to_contain_text("another's word")
        before = page.locator("#peer-2 td").nth(1).inner_text()
        expect(page.locator("#peer-2 td").nth(1)).not_to_have_text(before, timeout=PATIENCE_MS)

        light = background(page)
        page.emulate_media(color_scheme="dark")
        assert background(page) != light
        page.set_viewport_size({"width": 390, "height": 844})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out of a narrow screen"

        assert opened.read_text() == f"{address[0]}\n"

        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        expect(page.locator("#live")).to_have_class(re.compile(r"\boff\b"), timeout=PATIENCE_MS)
        expect(page.locator("#peer-0 th")).to_contain_text("draining")
        assert_no_orphans(process.pid)
        assert {re.match(r"\w+://[^/]*/", url)[0] for url in asked if not url.startswith("data:")} == {address[0]}  # type: ignore[index]
        assert [fault for fault in faults if "ERR_CONNECTION_REFUSED" not in fault] == []
        page.close()


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.timeout(150)
def test_the_page_says_whom_an_open_round_waits_for(browser: Browser) -> None:
    """Peer 3 stops computing in the middle of a round under a barrier; no round closes any more."""
    options = ["--peers", "4", "--closing", "barrier", "--chunk-seconds", "0.004", "--straggler", "3=pause:10m@4s"]
    with warm("up", *options) as process:
        address = re.search(r"http://127\.0\.0\.1:\d+/", wait_for(process, "page of peer 0"))
        assert address
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.goto(address[0])
        arrows = page.locator("#waits .now")
        expect(arrows).to_have_count(3, timeout=PATIENCE_MS)
        for peer in range(3):
            told = page.locator(f"#peer-{peer} td .now")
            expect(told).to_have_text(re.compile(r"^has waited for peer 3 for [\d.]+ s$"), timeout=PATIENCE_MS)
            expect(page.get_by_text(re.compile(rf"^peer {peer} has waited for peer 3 for [\d.]+ s$"))).to_have_count(1)
            before = told.inner_text()
            expect(told).not_to_have_text(before, timeout=PATIENCE_MS)
        expect(page.locator("#peer-3 td .now")).to_have_text("")
        expect(page.locator("#waits .now text").first).to_have_text(re.compile(r"^[\d.]+ s$"))
        expect(page.locator("#topology")).to_have_attribute("aria-label", re.compile("3 wait in their open round$"))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing sticks out of a narrow screen"
        page.close()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DONE_WITHIN)
        assert process.returncode == 0, out + err
        assert_no_orphans(process.pid)
