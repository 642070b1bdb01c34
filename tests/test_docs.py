"""The documentation site builds without a warning and without a network, and says all that it should."""

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pytest
import typer.main
from typer.core import TyperGroup

import voxplain as vx
from voxplain.cli import app
from voxplain.studies import gp_results, grading_study, instance_tables, lesions, relevance_results
from voxplain.studies.cohort_page import sentences
from voxplain.studies.paper_tables import PAPER
from voxplain.studies.refinement import TITLES
from voxplain.studies.scoring import markdown

ROOT = Path(__file__).parents[1]
# Attributes whose address a browser fetches by itself; a link waits for a click.
FETCHED = {
    "audio": ("src",),
    "embed": ("src",),
    "iframe": ("src",),
    "image": ("href", "xlink:href"),
    "img": ("src", "srcset"),
    "input": ("src",),
    "link": ("href",),
    "object": ("data",),
    "script": ("src",),
    "source": ("src", "srcset"),
    "use": ("href", "xlink:href"),
    "video": ("src", "poster"),
}


class Page(HTMLParser):
    """What a page fetches, links to, and can be linked at."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        self.fetched += [given[name] for name in FETCHED.get(tag, ()) if name in given]
        self.anchors |= {given[name] for name in ("id", "name") if name in given}
        self.classes |= set(given.get("class", "").split())
        if tag == "a" and "href" in given:
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # A proxy that is not there: whoever asks a network for something gets an error.
    nowhere = "http://127.0.0.1:9"
    environment = os.environ | {
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
        "ALL_PROXY": nowhere,
        "NO_PROXY": "",
        "NO_MKDOCS_2_WARNING": "1",
    }
    found = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "WARNING" not in found.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_there(site):
    sources = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    others = {Path("index.html"), Path("changelog.html"), Path("contributing.html")}
    for page in sources | others | {Path("models/tumour-hemisphere.html")}:
        assert (site / page).is_file(), page
    assert not list(site.rglob("*.py"))


def test_a_browser_fetches_nothing_from_a_network(site, pages):
    assert len(pages) > 10
    for path, page in pages.items():
        outside = [address for address in page.fetched if re.match(r"(https?:)?//", address)]
        assert not outside, f"{path.relative_to(site)} fetches {outside}"
        # The theme would fetch a library for diagrams.
        assert "mermaid" not in page.classes
    for sheet in [*site.rglob("*.css"), *pages]:
        found = re.findall(
            r"(?:url\(|@import)\s*['\"]?\s*((?:https?:)?//[^'\")\s]+)", sheet.read_text(encoding="utf-8")
        )
        assert not found, f"{sheet.relative_to(site)} fetches {found}"


def test_pages_open_and_are_searched_from_disk(site):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install playwright)")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium on this machine (apt-get install chromium)")
    requests: list[str] = []
    problems: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        page = browser.new_page()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
        for name in ("index.html", "reference/voxplain.html", "how-to/train.html"):
            page.goto((site / name).as_uri())
        page.keyboard.press("/")
        page.keyboard.type("supervoxel")
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
        browser.close()
    assert not problems
    assert not [address for address in requests if not address.startswith(("file:", "data:"))]


def test_links_lead_somewhere(site, pages):
    for path, page in pages.items():
        for address in (*page.links, *page.fetched):
            parts = urlsplit(address)
            # The page for addresses that do not exist has links from a server's root.
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path.relative_to(site)} links to {address}"
            if parts.fragment and target in pages and not parts.fragment.startswith("__"):
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.relative_to(site)}: {address}"


def test_the_reference_holds_every_public_name(site, pages):
    anchors = pages[site / "reference" / "voxplain.html"].anchors
    missing = [
        name for name in vx.__all__ if not any(re.fullmatch(rf"voxplain\.([\w.]+\.)?{name}", a) for a in anchors)
    ]
    assert not missing
    for method in ("voxplain.Explanation.ranks", "voxplain.segment.otsu", "voxplain.Grid.with_spacing"):
        assert any(anchor.endswith(method.removeprefix("voxplain")) for anchor in anchors), method


def test_the_command_line_page_holds_every_option(site):
    text = (site / "command-line.html").read_text(encoding="utf-8")

    def check(words: str, command) -> None:
        if isinstance(command, TyperGroup):
            for name, inner in command.commands.items():
                check(f"{words} {name}", inner)
            return
        assert f"<code>{words}</code>" in text
        for parameter in command.params:
            assert parameter.opts[0].upper() in text or f"<code>{parameter.opts[0]}" in text, parameter.opts

    check("voxplain", typer.main.get_command(app))


def test_every_field_of_a_card_is_explained():
    text = (ROOT / "docs" / "how-to" / "own-model.md").read_text(encoding="utf-8")
    explained = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert explained == [field.name for field in dataclasses.fields(vx.Card)]


def test_the_readme_says_what_it_is_not():
    assert "Research software, not a medical device." in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_figures_of_the_readme_are_those_measured():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = pd.read_csv(ROOT / "docs" / "results" / "hemispheres-scores.tsv", sep="\t")
    table = table[(table["table"] == "halves") & (table["metric"] == "dice") & (table["kind"] == "deployable")]
    measured = table.set_index("row")["value"]
    maps = measured[measured.index.str.startswith("grad-cam/")]
    for value in (measured["relevance-map/blank/otsu"], maps.max(), measured["intensity/flair"]):
        assert f"{value:.2f}" in text, f"docs/results was measured again: the README's Dice should be {value:.2f}"
    outlines = pd.read_csv(ROOT / "docs" / "results" / "refinement-scores.tsv", sep="\t")
    outlines = outlines[(outlines["table"] == "halves") & (outlines["row"] == "fused/mixture")].set_index("metric")
    assert f"`voxplain segment` {outlines.loc['dice', 'value']:.2f}" in text
    assert f"{outlines.loc['dice_gain', 'value']:.2f} on\naverage" in text


def test_the_tables_of_the_results_page_are_those_of_the_scores() -> None:
    folder = ROOT / "docs" / "results"
    scores = pd.read_csv(folder / "hemispheres-scores.tsv", sep="\t")
    page = (folder / "hemispheres.md").read_text(encoding="utf-8")
    assert markdown(scores) in page
    for sentence in sentences(scores, "relevance-map/blank/otsu"):
        assert sentence in page


def test_the_tables_of_the_network_that_explains_itself_are_those_of_its_scores() -> None:
    folder = ROOT / "docs" / "results"
    ours, theirs = (pd.read_csv(folder / f"hemispheres{name}-scores.tsv", sep="\t") for name in ("-gp", ""))
    _, section = (folder / "hemispheres.md").read_text(encoding="utf-8").split("## A network that explains itself\n")
    assert markdown(ours) in section
    for sentence in sentences(ours, "heat-map/otsu"):
        assert sentence in section
    # Beside it stand rows of the other network, from the tables above.
    lines = re.findall(
        r"^\| (\S+) \| (this one|ResNet-10|none) \| (\w+) \| ([^|]+) \| ([^|]*) \|$", section, re.MULTILINE
    )
    assert {"heat-map/otsu", "relevance-map/blank/otsu", "grad-cam/act/otsu", "intensity/flair"} <= {
        x[0] for x in lines
    }
    for row, network, kind, *figures in lines:
        scores = ours if network == "this one" else theirs
        scores = scores[(scores["row"] == row) & (scores["metric"] == "dice") & (scores["kind"] == kind)]
        for table, figure in zip(("halves", "scans"), figures, strict=True):
            found = scores[scores["table"] == table]
            measured = [f"{line.value:.2f} [{line.low:.2f}, {line.high:.2f}]" for line in found.itertuples()]
            assert measured == ([figure.strip()] if figure.strip() else []), (row, table)


def test_the_tables_of_the_page_on_finishes_are_those_of_the_scores() -> None:
    folder = ROOT / "docs" / "results"
    scores = pd.read_csv(folder / "refinement-scores.tsv", sep="\t")
    page = (folder / "refinement.md").read_text(encoding="utf-8")
    assert markdown(scores, TITLES) in page
    halves = scores[(scores["table"] == "halves") & (scores["row"] == "fused/mixture")].set_index("metric")
    for metric, digits in (("dice", ".2f"), ("dice_gain", "+.3f")):
        value, low, high = (format(halves.loc[metric, name], digits) for name in ("value", "low", "high"))
        assert f"{value} [{low}, {high}]" in page


def test_the_tables_of_the_page_on_the_relevance_papers_are_those_of_the_scores() -> None:
    folder = ROOT / "docs" / "results"
    scores = pd.read_csv(folder / "relevance-scores.tsv", sep="\t")
    page = (folder / "relevance.md").read_text(encoding="utf-8")
    assert markdown(scores, relevance_results.TITLES, PAPER) in page
    found = scores.set_index(["table", "row", "metric"])
    optimal, blank = "relevance-map/optimal", "relevance-map/blank"
    for key, digits in (
        (("optimal", optimal, "gain_over_blank"), "+.4f"),
        (("optimal", f"{optimal}/otsu", "dice_gain_over_blank"), "+.3f"),
        (("comparison", "lime/otsu", "dice"), ".2f"),
        (("comparison", f"{optimal.replace('optimal', 'chosen')}/best-grouping", "dice"), ".2f"),
    ):
        value, low, high = (format(found.loc[key, name], digits) for name in ("value", "low", "high"))
        assert f"{value} [{low}, {high}]" in page, key
    moved = [found.loc[("optimal", row, "mean_abs_change"), "value"] for row in (optimal, blank)]
    assert f"{moved[0]:.4f} against {moved[1]:.4f}" in page


@pytest.mark.parametrize("dataset", ["cheng", "brats-slices"])
def test_the_tables_of_the_page_on_networks_that_explain_themselves_are_those_of_the_scores(dataset: str) -> None:
    folder = ROOT / "docs" / "results"
    scores = pd.read_csv(folder / f"gp-{dataset}-scores.tsv", sep="\t")
    assert gp_results.markdown(scores, dataset) in (folder / "gp.md").read_text(encoding="utf-8")


def test_the_tables_of_the_page_on_lesions_are_those_of_the_scores() -> None:
    page = (ROOT / "docs" / "results" / "instance.md").read_text()
    scores = pd.read_csv(ROOT / "docs" / "results" / "instance-lesions-scores.tsv", sep="\t")
    for block in lesions.markdown(scores).strip().split("\n\n"):
        assert block in page
    speed = pd.read_csv(ROOT / "docs" / "results" / "instance-jacobian.tsv", sep="\t", dtype=str)
    for line in speed.itertuples():
        assert f"| {line.case} | {line.metric} | {line.value} | {line.n} |" in page


def test_the_tables_of_the_page_on_lesion_maps_are_those_of_the_scores() -> None:
    page = (ROOT / "docs" / "results" / "instance.md").read_text()
    scores = pd.read_csv(ROOT / "docs" / "results" / "instance-maps-scores.tsv", sep="\t")
    blocks = instance_tables.markdown(scores).strip().split("\n\n")
    assert len(blocks) > 10
    for block in blocks:
        assert block in page
    found = scores.set_index(["table", "row", "metric"])
    for table, row, metric, form in (
        ("errors-phantoms", "maps", "AUROC", ".3f"),
        ("errors-phantoms", "maps", "AUROC gain over best plain rival", "+.3f"),
        ("errors-phantoms", "plain+maps", "AUROC gain over plain", "+.3f"),
        ("errors-phantoms", "plain+maps", "lesion F1 gain", "+.3f"),
        ("errors-patients", "plain+maps", "lesion F1 gain", "+.3f"),
    ):
        its = found.loc[(table, f"instance-smoothgrad/{row}", metric)]
        assert f"{its['value']:{form}} [{its['low']:{form}}, {its['high']:{form}}]" in page


def test_the_tables_of_the_page_on_types_of_glioma_are_those_of_the_scores() -> None:
    page = (ROOT / "docs" / "results" / "grading.md").read_text()
    rows = pd.read_csv(ROOT / "docs" / "results" / "grading-scores.tsv", sep="\t")
    assert grading_study.markdown(rows).rstrip() in page
    network = rows[(rows["table"] == "all classes") & (rows["row"] == "network")].set_index("metric")
    for metric in ("balanced accuracy", "kappa"):
        value, low, high = network.loc[metric, ["value", "low", "high"]]
        assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in page
    grades = pd.read_csv(ROOT / "docs" / "results" / "grading-grades-scores.tsv", sep="\t")
    assert grades["kind"].str.contains("too few to mean anything").all()
    for line in grades.to_dict("records"):
        assert f"{line['value']:.3f} [{line['low']:.3f}, {line['high']:.3f}]" in page
    pooled = pd.read_csv(ROOT / "docs" / "results" / "grading-log-sum-exp-scores.tsv", sep="\t")
    for table, row, metric in (
        ("all classes", "network", "kappa"),
        ("maps", "grad-cam, denseblock1", "mass inside"),
        ("maps", "grad-cam, denseblock1", "pointing"),
        ("maps", "hires-cam, denseblock1", "mass inside"),
    ):
        of_it = (pooled["table"] == table) & (pooled["row"] == row) & (pooled["metric"] == metric)
        value, low, high = pooled[of_it].iloc[0][["value", "low", "high"]]
        assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in page
    regions = pd.read_csv(ROOT / "docs" / "results" / "grading-segmentation-scores.tsv", sep="\t")
    for name in ("WT", "TC", "ET"):
        its = regions[(regions["table"] == name) & (regions["row"] == "network") & (regions["metric"] == "Dice")]
        value, low, high = its.iloc[0][["value", "low", "high"]]
        assert f"{value:.3f} [{low:.3f}, {high:.3f}]" in page
