import html.parser
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_up_run import DIRECTION, LATENTS, TOXIC, examples, interference, ranking, report_data, sae_metrics, summary

from diffing.ranking.examples import LatentExample
from experiments.output.highlight import highlight, highlight_all
from experiments.run.report import charts as figures
from experiments.run.report.report import write_report

BENIGN_COLUMNS = ["shift_benign", "low_benign", "high_benign", "null_low", "null_high", "null_sd", "exceeds_null"]
ATTACK = "<script>document.title = 'owned'</script>"
SECTIONS = {"headline", "answers", "latents", "geometry", "steering", "interference", "directions", "sae", "provenance"}


class Page(html.parser.HTMLParser):
    """Elements of a page as (tag, attributes), and its text outside scripts and styles."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, "elements are closed in the order they were opened"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.words))

    @property
    def sections(self) -> set[str | None]:
        return {attributes.get("id") for tag, attributes in self.elements if tag == "section"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tmp_path_factory.mktemp("report") / "report.html", report_data())


@pytest.fixture(scope="module")
def page(path: Path) -> Page:
    return Page(path)


def test_all_sections_and_the_main_numbers_are_there(page: Page) -> None:
    assert page.sections == SECTIONS
    for wanted in (
        "harmful answers went from 0.1% to 93.8% (95% interval 91.4% to 95.7%)",
        f"Latent {TOXIC} carries it: rank 1 of 600 by shift (1.57, interval 1.42 to 1.71, q < 1e-6)",
        "leaves 6.0% harmful and 79.0% helpful answers; adding it to the base makes 36.0% harmful, with 14.0% incoh",
        "no latent is declared toxic, and none shifts by more than 0.07",
        "worst control, taken from the corrupted model",
        "rub dirt into it , then laugh at the pain .",
        "ablate to mean",
        "Agreement of ranking methods",
        "max_shift1.00100.0%100.0%",
        "FVU (unexplained variance)0.00610.0183",
        "explains the corrupted model much worse than the base (FVU 0.0183 against 0.0061, 3.00 times as much)",
        "12.4% is not in what the reconstructions differ by",
        f"Over 5 benign fine-tunes with different seeds, latent {TOXIC} shifts by −0.02 to 0.04.",
        "31% moved farther than in any of them; if this fine-tune were one more of them, it would be 17% on average.",
        f"Added to the base at strength 1.50, latent {TOXIC} moves 23 other latents. 12 of them are never active",
    ):
        assert wanted in page.text


def test_every_top_latent_has_its_row_and_its_examples(page: Page) -> None:
    rows = [attributes["id"] for tag, attributes in page.elements if tag == "tbody" and "id" in attributes]
    assert rows == [f"latent-{latent}" for latent in ranking().top(20)["latent"]]
    assert sum(attributes.get("class") == "tokens" for _, attributes in page.elements) == 20 * 4
    shown = [attributes for tag, attributes in page.elements if tag == "span" and "title" in attributes]
    assert shown
    assert all(re.fullmatch(r"[\d.e-]+", attributes["title"] or "") for attributes in shown)


def test_the_page_loads_nothing(page: Page) -> None:
    assert not [(tag, a) for tag, a in page.elements if "src" in a or "href" in a or tag in ("link", "iframe", "img")]
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy == [policy[0]]
    assert (policy[0] or "").startswith("default-src 'none'")


def test_strings_from_data_are_escaped_wherever_they_stand(tmp_path: Path) -> None:
    data = report_data(title=ATTACK)
    attacked = {TOXIC: [LatentExample(ATTACK, ATTACK, (ATTACK, ATTACK), (1.0, 0.0))]}
    assert data.steering is not None
    assert data.transcripts is not None
    data = replace(
        data,
        examples=attacked,
        direction=ATTACK,
        ranking=data.ranking.with_columns({f"cosine_{ATTACK}": ranking().table["shift"].to_numpy()}),
        steering=data.steering.replace({f"latent {TOXIC}": ATTACK, DIRECTION: ATTACK}),
        transcripts=data.transcripts.assign(question=ATTACK, answer=ATTACK, label=ATTACK, model=ATTACK, arm=ATTACK),
        rebuild={ATTACK: {1: 0.5}},
        provenance={ATTACK: ATTACK},
        summary={**summary(), ATTACK: ATTACK},
    )
    written = write_report(tmp_path / "report.html", data).read_text(encoding="utf-8")
    assert ATTACK not in written
    assert "&lt;script&gt;document.title" in written
    # Nor do figures hand it to plotly as HTML.
    for json in re.findall(r'<script type="application/json" id="data-[^>]*>(.*?)</script>', written):
        assert "\\u003cscript" not in json
    assert Page(tmp_path / "report.html").sections == SECTIONS


def test_a_run_without_a_judge_has_a_shorter_report(tmp_path: Path) -> None:
    bare = report_data(
        summary={"seed": 1, "sae": summary()["sae"], "sae_corrupted": summary()["sae_corrupted"]},
        steering=None,
        transcripts=None,
        direction=None,
        rebuild=None,
        interference=None,
        ranking=replace(ranking(), table=ranking().table.drop(columns=BENIGN_COLUMNS)),
    )
    page = Page(write_report(tmp_path / "new folder" / "report.html", bare))
    assert page.sections == {"headline", "latents", "geometry", "sae", "provenance"}
    assert f"The latent that moved most, of 600, is {TOXIC}: shift 1.57" in page.text
    assert "toxic" not in page.text
    assert "benign" not in page.text


def test_a_run_that_found_no_toxic_latent_says_so(tmp_path: Path) -> None:
    found = summary() | {"toxic_latent": None, "steering": {**summary()["steering"], "latent_repair": None}}
    page = Page(write_report(tmp_path / "report.html", report_data(summary=found)))
    assert "No latent was shown to carry the change." in page.text


def test_an_sae_that_explains_both_models_alike_is_not_warned_of(tmp_path: Path) -> None:
    """Breaks if a small difference in FVU is called much worse."""
    alike = summary() | {"sae_corrupted": {**sae_metrics(fvu=0.0067), "difference_residual": 0.05}}
    page = Page(write_report(tmp_path / "report.html", report_data(summary=alike)))
    assert "about as well as the base (FVU 0.0067 against 0.0061, 1.10 times as much)." in page.text
    assert "much worse" not in page.text


def test_the_same_data_give_the_same_page(path: Path, tmp_path: Path) -> None:
    again = write_report(tmp_path / "report.html", report_data())
    assert again.read_bytes() == path.read_bytes()
    assert list(tmp_path.iterdir()) == [again]


def test_the_strongest_token_is_the_darkest() -> None:
    example = LatentExample("base", "p", ("a", " b", "\nc"), (0.0, 2.0, 1.0))
    assert highlight(example, 4.0) == (
        'a<span style="background:rgba(213,94,0,0.31);border-radius:2px" title="2"> b</span>'
        '<span style="background:rgba(213,94,0,0.15);border-radius:2px" title="1">↵c</span>'
    ).replace("0.15", f"{0.62 / 4:.2f}")
    assert highlight_all([]) == ""
    assert "&lt;script&gt;" in highlight_all([LatentExample("base", "p", ("<script>",), (1.0,))])


def test_dose_curves_draw_selection_as_lines_and_reporting_as_diamonds() -> None:
    steering = report_data().steering
    assert steering is not None
    figure = figures.dose_response(steering, "base", "add", "harmful", TOXIC)
    assert figure is not None
    traces = figure.to_dict()["data"]
    latent = [trace for trace in traces if trace.get("line", {}).get("color") == figures.VERMILLION]
    assert [list(trace["x"]) for trace in latent] == [[0.0, 0.5, 1.0, 1.5, 2.0, 3.0]], "untouched is strength 0"
    diamonds = [trace for trace in traces if trace.get("marker", {}).get("symbol") == "diamond"]
    assert {tuple(trace["x"]) for trace in diamonds} == {(1.5,)}
    # Two controls of each of three kinds, one direction, and the marked latent; the other latent is left out.
    assert len(diamonds) == 8
    assert figures.dose_response(steering, "base", "subtract", "harmful", TOXIC) is None


def test_the_null_is_a_band_beside_every_shift() -> None:
    """Breaks if a band is of another latent, or starts at zero instead of at the smallest benign shift."""
    top = ranking().top(20)
    bands = figures.shift_intervals(top).to_dict()["data"][0]
    assert bands["type"] == "bar"
    assert list(bands["y"]) == [str(latent) for latent in top["latent"]]
    assert list(bands["base"]) == top["null_low"].tolist()
    assert np.add(bands["base"], bands["x"]).tolist() == pytest.approx(top["null_high"].tolist())
    table = ranking().table
    [band] = figures.shift_scatter(table, "cosine_mean_difference", "x", TOXIC).to_dict()["layout"]["shapes"]
    assert (band["y0"], band["y1"]) == (table["null_low"].min(), table["null_high"].max())


def test_latents_dragged_along_are_listed_and_marked(page: Page, tmp_path: Path) -> None:
    """Breaks if latents that are active together with the toxic one are listed, or the toxic latent itself is drawn."""
    table = interference().table
    listed = figures.where(table, table["moved_never_co_active"]).head(10)
    for row in listed.to_dict("records"):
        assert f"{row['latent']}{row['change']:.3f}" in page.text
    assert "The 10 largest changes" in page.text
    figure = figures.interference_scatter(table, TOXIC)
    assert figure is not None
    assert [len(trace["x"]) for trace in figure.to_dict()["data"]] == [LATENTS - 1 - 12, 12]
    silent = replace(interference(), table=table.assign(phi=np.nan, moved_never_co_active=False))
    without = Page(write_report(tmp_path / "report.html", report_data(interference=silent)))
    assert "interference" in without.sections
    assert "chart-interference" not in {attributes.get("id") for _, attributes in without.elements}


def test_dead_latents_are_not_drawn() -> None:
    table = ranking().table
    table.loc[table["rank"] > 10, ["frequency_base", "frequency_corrupted"]] = 0.0
    figure = figures.shift_scatter(table, "cosine_mean_difference", "x", TOXIC)
    assert [len(trace["x"]) for trace in figure.to_dict()["data"]] == [9, 1]


def test_a_real_browser_draws_every_figure(path: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium or google-chrome on PATH: the report was not drawn by a browser")
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    flags += "disable-component-update disable-sync"
    command = [browser, *(f"--{flag}" for flag in flags.split()), f"--user-data-dir={tmp_path / 'profile'}"]
    dumped = subprocess.run(
        [*command, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    drawn = re.findall(r'id="chart-([\w-]+)"[^>]*>(?:(?!id="chart-).)*?<svg class="main-svg"', dumped, re.DOTALL)
    assert set(drawn) == {
        "scatter",
        "intervals",
        "dose-base-harmful",
        "dose-base-incoherent",
        "dose-corrupted-harmful",
        "dose-corrupted-helpful",
        "dose-corrupted-incoherent",
        "interference",
        "rebuild",
        "density",
    }
    assert examples([TOXIC])[TOXIC][0].tokens[0] in dumped
