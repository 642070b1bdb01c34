"""The page in a browser: no network, no error, and every control does what it says."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from voxplain.explanation import Explanation
from voxplain.grid import Grid
from voxplain.lesions import find_lesions
from voxplain.report.lesion_maps import LesionMap
from voxplain.report.lesion_page import lesion_report
from voxplain.report.page import report
from voxplain.scan import Labels, Scan
from voxplain.target import RegionScore

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# Software rendering takes its time.
PATIENCE = 90_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page that was opened, and all that it complained about or asked for."""

    page: Any
    problems: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ready(self) -> None:
        self.page.wait_for_selector("html[data-viewer=ready]", timeout=PATIENCE)

    def settle(self) -> None:
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        self.page.wait_for_timeout(250)

    def picture(self, selector: str = "#stage") -> np.ndarray:
        self.settle()
        return imread(io.BytesIO(self.page.locator(selector).screenshot()))[..., :3]

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text().replace("−", "-")

    def millimetres(self) -> list[float]:
        return [float(value) for value in re.findall(r"-?\d+\.\d", self.text("#at-mm"))]


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def open_it(path: Path, *, without_webgl: bool = False, wait: bool = True) -> Opened:
        context = browser.new_context(viewport={"width": 1100, "height": 760})
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on(
            "console", lambda said: opened.problems.append(said.text) if said.type in ("error", "warning") else None
        )
        opened.page.on("pageerror", lambda error: opened.problems.append(str(error)))
        opened.page.on("request", lambda request: opened.requests.append(request.url))
        if without_webgl:
            opened.page.add_init_script(
                "const real = HTMLCanvasElement.prototype.getContext;"
                "HTMLCanvasElement.prototype.getContext = function (kind, ...more) {"
                "return kind === 'webgl2' ? null : real.call(this, kind, ...more); }"
            )
        opened.page.goto(path.as_uri())
        if wait and not without_webgl:
            opened.ready()
        return opened

    yield open_it
    for context in contexts:
        context.close()


def differ(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape != second.shape or float(np.abs(first - second).mean()) > 1e-4


@pytest.fixture
def head(make_head: Any) -> Scan:
    return make_head((26, 30, 26), 6.0).scan()


def test_the_page_from_disk(
    head: Scan,
    parts_map: Callable[..., Explanation],
    voxel_map: Callable[..., Explanation],
    top_mask: Any,
    open_page: Callable[..., Opened],
    tmp_path: Path,
) -> None:
    whys = [parts_map(head), voxel_map(head, signed=True, channels=2)]
    truth = Labels(np.roll(top_mask(whys[0]).data, 2, axis=1), head.grid)
    path = report(head, whys, masks=[top_mask(why) for why in whys], truth=truth, path=tmp_path / "page.html")
    opened = open_page(path)
    page = opened.page
    assert page.locator("#no-viewer").is_hidden()
    first = opened.picture("#scene")
    assert first.std() > 0.02
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 100

    # The crosshair begins in the part of rank 1, and goes where a rank says.
    row = page.locator(".ranks[data-method='0'] tr[data-label]").nth(0)
    assert opened.millimetres() == [float(v) for v in row.locator(".mm").inner_text().replace("−", "-").split()]
    assert opened.text("#at-part") == "rank 1"
    before = opened.picture()
    row = page.locator(".ranks[data-method='0'] tr[data-label]").nth(4)
    row.click()
    assert opened.millimetres() == [float(v) for v in row.locator(".mm").inner_text().replace("−", "-").split()]
    assert opened.text("#at-part") == "rank 5"
    assert row.get_attribute("aria-current") == "true"
    assert page.locator("tr[aria-current]").count() == 1
    assert differ(before, opened.picture())
    page.locator(".ranks[data-method='0'] tr[data-label]").nth(1).focus()
    page.keyboard.press("Enter")
    assert opened.text("#at-part") == "rank 2"

    # Arrow keys move by one voxel.
    here = opened.millimetres()
    page.locator("#scene").focus()
    page.keyboard.press("PageUp")
    assert np.subtract(opened.millimetres(), here).tolist() == pytest.approx([0, 0, 6])
    page.keyboard.press("ArrowRight")
    assert np.subtract(opened.millimetres(), here).tolist() == pytest.approx([-6, 0, 6])

    # Sliders, toggles, sequence, map, view: each changes the picture.
    last = opened.picture()
    for change in (
        lambda: page.locator("#threshold").fill("900"),
        lambda: page.locator("#threshold").fill("50"),
        lambda: page.locator("#opacity").fill("20"),
        lambda: page.locator("#fill").check(),
        lambda: page.locator("#show-mask").uncheck(),
        lambda: page.locator("#show-truth").uncheck(),
        lambda: page.locator("#sequences span").nth(2).click(),
        lambda: page.locator("#methods span").nth(1).click(),
        lambda: page.locator("#channels span").nth(2).click(),
        lambda: page.locator("#views span").nth(1).click(),
    ):
        change()
        now = opened.picture()
        assert differ(last, now)
        last = now
    assert opened.text("#at-sequence-name") == "t1ce"
    assert opened.text("#bar-low").startswith("-")
    page.locator(".ranks[data-method='1'] .go").click()

    # Light and dark.
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.locator("#theme").click()
    assert page.evaluate(colour) != light

    # Print has the pictures and not the viewer.
    page.emulate_media(media="print")
    assert page.locator("#stage").is_hidden()
    assert page.locator("figure img").count() == 2
    assert page.locator("figure img").nth(0).is_visible()
    assert opened.problems == []
    assert [url for url in opened.requests if not url.startswith(("data:", "blob:"))] == [path.as_uri()]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "anisotropic"])
def test_millimetres_in_every_orientation(
    make_head: Any, open_page: Callable[..., Opened], orientation: str, tmp_path: Path
) -> None:
    scan = make_head((26, 30, 26), 6.0).scan("LPS" if orientation == "anisotropic" else orientation)
    if orientation == "anisotropic":
        scan = scan.on(scan.grid.with_spacing((5.0, 4.0, 11.0)))
    rng = np.random.default_rng(2)
    data = np.zeros(scan.grid.shape, dtype=int)
    inside = np.argwhere(scan.foreground())
    chosen = inside[rng.choice(len(inside), 4, replace=False)]
    for label, voxel in enumerate(chosen, start=1):
        data[tuple(voxel)] = label
    scores = np.array([4.0, 3.0, 2.0, 1.0])
    values = np.concatenate([[0], scores])[data]
    why = Explanation(values[None], ("all",), scan.grid, False, "u", (), Labels(data, scan.grid), scores)
    opened = open_page(report(scan, [why], path=tmp_path / "page.html"))
    for index, voxel in enumerate(chosen):
        opened.page.locator("tr[data-label]").nth(index).click()
        # The readout has one decimal.
        np.testing.assert_allclose(opened.millimetres(), scan.grid.world(voxel), atol=0.0501)
        assert float(opened.text("#at-map")) == scores[index]
        flair = float(opened.text("#at-scan").replace("≥ ", ""))
        assert flair == pytest.approx(float(scan.channel("flair")[tuple(voxel)]), abs=2)
    assert opened.problems == []


def test_outlines_lie_on_what_they_outline(make_head: Any, open_page: Callable[..., Opened], tmp_path: Path) -> None:
    scan = make_head((26, 30, 26), 6.0).scan("RAS")
    blob = np.zeros(scan.grid.shape)
    x, y, z = np.rint(scan.grid.index([-30, 20, 10])).astype(int)
    blob[x - 2 : x + 3, y - 4 : y + 2, z - 2 : z + 4] = 1
    why = Explanation(blob[None], ("all",), scan.grid, False, "u", ())
    opened = open_page(report(scan, [why], masks=[Labels(blob, scan.grid)], path=tmp_path / "page.html"))
    opened.page.locator("#views span").nth(1).click()
    opened.page.locator("#opacity").fill("100")
    opened.page.locator("#show-mask").uncheck()
    bare = opened.picture()
    coloured = np.argwhere(np.ptp(bare, axis=2) > 0.3)
    opened.page.locator("#show-mask").check()
    lines = np.argwhere(np.abs(opened.picture() - bare).max(axis=2) > 0.2)
    ends = [np.stack([found.min(axis=0), found.max(axis=0)]) for found in (lines, coloured)]
    np.testing.assert_allclose(ends[0].mean(axis=0), ends[1].mean(axis=0), atol=3)
    # Colours are smoothed over half a voxel, of some 20 pixels, at either end.
    np.testing.assert_allclose(ends[0], ends[1], atol=12)
    # Radiological: the patient's left is on the right of the picture, the front on top.
    assert coloured[:, 1].mean() > bare.shape[1] / 2
    assert coloured[:, 0].mean() < bare.shape[0] / 2


def test_hostile_names_do_nothing(
    head: Scan, parts_map: Callable[..., Explanation], open_page: Any, tmp_path: Path
) -> None:
    nasty = "</script><img src=x onerror=\"document.title='bad'\">"
    path = report(
        head, [parts_map(head)] * 2, names=[nasty, nasty], title=nasty, note=nasty, path=tmp_path / "page.html"
    )
    opened = open_page(path)
    opened.settle()
    assert opened.page.title() == nasty
    assert opened.page.locator("img[src=x]").count() == 0
    assert opened.text("h1") == nasty
    assert opened.problems == []


def test_without_webgl_there_are_pictures_and_a_message(
    head: Scan, parts_map: Callable[..., Explanation], open_page: Any, tmp_path: Path
) -> None:
    opened = open_page(report(head, [parts_map(head)], path=tmp_path / "page.html"), without_webgl=True)
    opened.settle()
    assert opened.page.locator("#no-viewer").is_visible()
    assert "WebGL2" in opened.text("#no-viewer")
    assert opened.page.locator("#viewer").is_hidden()
    assert opened.page.locator("figure img").is_visible()
    assert opened.problems == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_flat_image_and_a_map_of_zeros(open_page: Callable[..., Opened], axis: int, tmp_path: Path) -> None:
    shape = [40, 50, 30]
    shape[axis] = 1
    grid = Grid((shape[0], shape[1], shape[2]), np.diag([-1.0, -1.0, 2.0, 1.0]))
    data = np.random.default_rng(0).random((1, *shape)) - 0.5
    scan = Scan(data, grid, ("t1",))
    mask = Labels(np.zeros(shape), grid)
    path = report(
        scan, [Explanation(data * 0, ("all",), grid, True, "u", ())], masks=[mask], path=tmp_path / "page.html"
    )
    opened = open_page(path)
    assert opened.picture("#scene").std() > 0.02
    assert opened.text("#at-map") == "0"
    assert opened.problems == []


def test_a_reload_begins_afresh_and_haste_leaves_no_outline_behind(
    head: Scan,
    parts_map: Callable[..., Explanation],
    voxel_map: Callable[..., Explanation],
    open_page: Any,
    tmp_path: Path,
) -> None:
    whys = [parts_map(head), voxel_map(head)]
    masks = [Labels(head.foreground() & (np.indices(head.grid.shape)[axis] > 14), head.grid) for axis in (0, 1)]
    opened = open_page(report(head, whys, masks=masks, path=tmp_path / "page.html"))
    page = opened.page
    lines = "document.getElementById('lines').toDataURL()"
    # The second map is not unpacked yet when the crosshair moves.
    choose = "document.querySelectorAll('input[name=method]')[1].click();"
    move = "document.getElementById('scene').dispatchEvent(new KeyboardEvent('keydown', {key: 'PageUp'}));"
    page.evaluate(choose + move)
    opened.settle()
    page.wait_for_function("document.querySelector('#at-part').textContent === '–'")
    opened.settle()
    hasty = page.evaluate(lines)
    page.reload()
    opened.ready()
    assert page.locator("input[name=method]").nth(0).is_checked()
    assert page.locator(".ranks[data-method='0']").is_visible()
    page.evaluate(choose)
    page.wait_for_function("document.querySelector('#at-part').textContent === '–'")
    opened.settle()
    page.evaluate(move)
    opened.settle()
    assert page.evaluate(lines) == hasty
    assert opened.problems == []


def test_a_slider_colours_the_map_once_per_frame(
    head: Scan, parts_map: Callable[..., Explanation], open_page: Any, tmp_path: Path
) -> None:
    opened = open_page(report(head, [parts_map(head)], path=tmp_path / "page.html"))
    first = opened.picture()
    opened.page.evaluate(
        "() => { window.uploads = 0; const real = WebGL2RenderingContext.prototype.texSubImage3D;"
        "WebGL2RenderingContext.prototype.texSubImage3D = function (...given) {"
        "window.uploads += 1; return real.apply(this, given); };"
        "const slider = document.getElementById('threshold');"
        "for (let value = 0; value <= 900; value += 10) {"
        "slider.value = value; slider.dispatchEvent(new Event('input', { bubbles: true })); } }"
    )
    assert differ(first, opened.picture())
    assert opened.page.evaluate("window.uploads") < 10


def test_an_image_that_no_texture_holds_gives_pictures_and_a_message(
    open_page: Callable[..., Opened], tmp_path: Path
) -> None:
    grid = Grid((30_000, 3, 1), np.eye(4))
    scan = Scan(np.ones((1, *grid.shape)), grid, ("t1",))
    path = report(scan, [Explanation(scan.data, ("all",), grid, False, "u", ())], path=tmp_path / "page.html")
    opened = open_page(path, wait=False)
    opened.settle()
    assert "for an image of this size" in opened.text("#no-viewer")
    assert opened.page.locator("#viewer").is_hidden()
    assert opened.problems == []


def test_lesions_are_chosen_from_their_list(head: Scan, open_page: Callable[..., Opened], tmp_path: Path) -> None:
    labels = np.zeros(head.grid.shape, int)
    labels[8:11, 10:13, 10:13] = labels[16:18, 18:20, 14:16] = labels[5, 14:16, 10] = 1
    lesions = find_lesions(Labels(labels, head.grid))
    maps = []
    for method, number, signed in (("one", 1, True), ("one", 2, True), ("two", 1, False), ("two", 2, False)):
        inside = lesions.labels.data == number
        values = np.stack([inside * number, np.roll(inside, 2, axis=1) * (-1.0 if signed else 1.0)])
        target = RegionScore("lesion", lesions.labels, number).record()
        made = Explanation(
            values, ("flair", "t1"), head.grid, signed, "a.u.", (), provenance={"target": target, "warnings": []}
        )
        maps.append(LesionMap.of(method, made, lesions))
    opened = open_page(lesion_report(head, lesions, maps, path=tmp_path / "page.html"))
    page = opened.page
    rows = page.locator(".ranks[data-method='0'] tr[data-lesion]")

    def chosen() -> list[str]:
        return [str(row.get_attribute("data-lesion")) for row in page.locator(".ranks tr[aria-current]").all()]

    assert rows.count() == 3
    assert chosen() == ["1", "1"]  # in the lists of both methods
    assert opened.text("#at-inside") == "lesion 1"
    assert opened.text("#at-map") == "1"
    first = opened.picture()
    rows.nth(1).click()
    page.wait_for_selector("#at-map:text-is('2')", timeout=PATIENCE)
    assert opened.text("#at-inside") == "lesion 2"
    assert opened.text("#bar-high") == "2"
    assert chosen() == ["2", "2"]
    assert differ(first, opened.picture())
    # The other sequence of the same lesion, then the other method.
    page.locator("#channels label").nth(1).click()
    page.wait_for_selector("#at-map:not(:text-is('2'))", timeout=PATIENCE)
    page.locator("#methods label").nth(1).click()
    page.wait_for_selector("#at-map:text-is('2')", timeout=PATIENCE)
    assert chosen() == ["2", "2"]
    assert page.locator(".ranks[data-method='1']").is_visible()
    # Of a lesion whose map lies elsewhere the place is shown, and a map of zeros.
    page.locator(".ranks[data-method='1'] tr[data-lesion='3']").press("Enter")
    page.wait_for_selector("#at-inside:text-is('lesion 3')", timeout=PATIENCE)
    assert opened.text("#at-map") == "0"
    # Outlines of all lesions go together.
    outlined = opened.picture()
    page.locator("#mask-toggle").click()
    assert differ(outlined, opened.picture())
    assert not opened.problems
    assert not [address for address in opened.requests if not address.startswith(("file:", "data:", "blob:"))]
