"""Takes the pictures of the documentation: the demo's report, as a browser shows it.

Run `make demo` first, then `python docs/make_pictures.py`; it needs Chromium, the system's or Playwright's own.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
SIZE = {"width": 1366, "height": 900}


def main() -> None:
    """Write docs/pictures/report.png from demo/report.html."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--report", type=Path, default=ROOT / "demo" / "report.html")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures" / "report.png")
    given = parser.parse_args()
    if not given.report.is_file():
        parser.error(f"there is no report {given.report}; run make demo first")
    take(given.report, given.out)
    print(given.out)


def take(report: Path, picture: Path) -> None:
    """Photograph the top of a page once its viewer has drawn."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        # Without a graphics card WebGL is drawn in software.
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--ignore-gpu-blocklist"],
        )
        page = browser.new_page(viewport=SIZE, color_scheme="dark")
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-viewer=ready]", timeout=120_000)
        page.wait_for_timeout(1000)
        page.screenshot(path=picture)
        browser.close()


if __name__ == "__main__":
    main()
