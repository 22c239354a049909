"""The page: self-contained, well formed, every number there, and partial where the run is."""

import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

import jobs.report
from wfray.config.objectives import Objective
from wfray.config.train import TrainConfig
from wfray.report import write_report
from wfray.report.facts import TERMS
from wfray.report.numbers import perplexity
from wfray.runs import Manifest, Stage

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Checks that tags balance, and keeps elements and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        """All text, white space joined."""
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        """Attributes of all elements of a name."""
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(whole_run: Path) -> Page:
    return page_of(whole_run)


def test_it_needs_no_network_and_no_script_and_is_small(whole: Page, whole_run: Path) -> None:
    html = (whole_run / "report.html").read_text(encoding="utf-8")
    assert len(html.encode()) < 500_000
    assert not {"script", "link", "iframe", "img", "object", "base"} & {tag for tag, _ in whole.elements}
    assert "@import" not in html and "url(" not in html
    assert all((attributes["href"] or "").startswith("#") for attributes in whole.all("a"))
    assert all(not name.startswith("on") for _, attributes in whole.elements for name in attributes)
    assert not any("src" in attributes for _, attributes in whole.elements)


def test_every_link_has_its_target_and_every_table_and_chart_a_description(whole: Page) -> None:
    targets = {attributes["id"] for _, attributes in whole.elements if "id" in attributes}
    assert {(attributes["href"] or "")[1:] for attributes in whole.all("a")} <= targets
    assert len(whole.all("caption")) == len(whole.all("table")) >= 6
    charts = [svg for svg in whole.all("svg") if svg["class"] == "chart"]
    assert len(charts) >= 2 * 2 + 3 * 4 and all(svg["role"] == "img" and svg["aria-label"] for svg in charts)
    assert all(svg.get("aria-hidden") == "true" for svg in whole.all("svg") if svg not in charts)
    assert whole.all("html") == [{"lang": "en"}]


def test_the_numbers_that_matter_are_there(whole: Page) -> None:
    headline = ["116.9 MB", "2.3× smaller than 270.9 MB", "4.50 bits a weight", "220 tokens/s", "1.7× the original's 131", "99.6 %"]
    cost = ["11 min 42 s", "peak memory 5.4 GiB", "134.6 million parameters"]
    parity = ["99.61%", "2.13e-4", "0.0341", "80.14", "80.17", "7,731 positions", "64 held-out texts", "0.00287"]
    speeds = ["I2_S, x86", "81.2 MB", "713", "403", "1.8×", "106,168,320"]
    data = ["CC-BY-SA-4.0", "MIT", "PSF-2.0", "1,203,712", "803,840", "917,504", "2,925,056", "99.3%", "3,127", "24,576"]
    time = ["21.4 s", "2 min 11 s", "3 min 07 s", "10 min 42 s", "1 min 01 s more"]
    training = ["81,920", "cross-entropy, KL of the logits, attention relations", "quantization λ", "gradient norm", "learning rate"]
    for number in headline + cost + parity + speeds + data + time + training:
        assert number in whole.text, number


def test_perplexities_of_every_subject_and_source_and_the_best_student(whole: Page, whole_run: Path) -> None:
    scores = json.loads((whole_run / "evaluate" / "scores.json").read_text())
    html = (whole_run / "report.html").read_text(encoding="utf-8")
    for subject in scores["subjects"]:
        assert subject["name"] in whole.text
        for score in subject["sources"].values():
            value = perplexity(math.exp(score["sum_nats"] / score["num_tokens"]))
            assert f">{value}</td>" in html
            is_best = f'best">{value}</td>' in html
            assert is_best == (subject["name"] == "distilled"), (subject["name"], value)


def test_answers_are_text_not_markup(whole: Page, whole_run: Path) -> None:
    html = (whole_run / "report.html").read_text(encoding="utf-8")
    assert "The capital of France is <b>Paris</b> & nothing else." in whole.text
    assert "<b>" not in html and "&lt;b&gt;Paris&lt;/b&gt; &amp; nothing" in html
    assert "48 tokens at 187 tokens/s, first after 61.2 ms" in whole.text
    assert "the people of the people" in whole.text and "3 weeks ago, I joined you" in whole.text


def test_lineage_names_parents_outputs_and_hashes(whole: Page, whole_run: Path) -> None:
    manifests = {path.parent.name: Manifest.read(path.parent) for path in whole_run.glob("*/manifest.json")}
    for name, manifest in manifests.items():
        assert manifest is not None
        assert manifest.identity[:10] in whole.text and manifest.config_sha256[:10] in whole.text, name
        assert all(output.path in whole.text for output in manifest.outputs)
    assert f"student: pretrain {manifests['pretrain'].identity[:10]}" in whole.text  # type: ignore[union-attr]
    assert "original: export/original.gguf" in whole.text, "a parent that is a file is named by the stage that made it"


def test_configurations_are_whole_yaml(whole: Page) -> None:
    assert "warmup_fraction: 0.3" in whole.text and "placement: output" in whole.text
    assert len(whole.all("details")) == 9


def test_how_to_go_on_names_real_files(whole: Page, whole_run: Path) -> None:
    assert f'Llama("{whole_run}/export/model.gguf"' in whole.text
    assert "curl http://127.0.0.1:8000/wrinklefree/v1/chat/completions" in whole.text
    modules = re.findall(r"python -m (jobs\.\w+)", whole.text)
    root = Path(__file__).parents[3]
    assert modules and all((root / f"{module.replace('.', '/')}.py").exists() for module in modules)
    assert all((root / path).exists() for path in re.findall(r"--config (\S+)", whole.text))


def test_the_same_run_gives_the_same_page_and_no_partial_file_is_left(whole_run: Path) -> None:
    first = write_report(whole_run).read_bytes()
    assert write_report(whole_run).read_bytes() == first
    assert not list(whole_run.glob(".*partial*"))


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 4])
def test_a_run_that_stops_anywhere_gives_a_page_that_says_what_is_missing(writer: Any, num_steps: int) -> None:
    writer.pack()
    steps = [
        writer.convert,
        lambda: writer.train("align", 11.2, 5.7, {"alignment": 4.1}),
        lambda: [writer.train(stage, 5.6, 4.9, {}) for stage in ("pretrain", "distill")],
        writer.export,
    ]
    for step in steps[:num_steps]:
        step()
    page = page_of(writer.run)
    assert "This report is partial." in page.text
    assert "run jobs.evaluate" in page.text and "was not served" in page.text
    assert ("run jobs.export" in page.text) == (num_steps < 4)
    assert ("No training stage" in page.text) == (num_steps < 2)
    assert "the pipeline's own cost was not recorded" in page.text


def test_an_evaluation_without_training_and_export_is_shown(writer: Any) -> None:
    writer.everything()
    for stage in ("align", "export", "serve"):
        shutil.rmtree(writer.run / stage)
    page = page_of(writer.run)
    assert "78.78" in page.text and "run jobs.export" in page.text


@pytest.mark.parametrize("refused", [[0], [-1], range(40)], ids=["first", "last", "all"])
def test_steps_that_were_refused_have_no_loss_and_are_counted(writer: Any, refused: Any) -> None:
    writer.everything()
    path = writer.run / "align" / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for place in refused:
        for name in ("loss", "cross_entropy", "alignment", "gradient_norm"):
            del rows[place][name]
        rows[place]["refused"] = "loss nan"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert f"({len(list(refused))} refused)" in page_of(writer.run).text


def test_a_failed_and_an_interrupted_stage_are_said_first(writer: Any) -> None:
    writer.pack()
    writer.convert()
    configs = Path(__file__).parents[3] / "configs"
    config = TrainConfig.load(configs / "align/quickstart.yaml", [f"run={writer.run}"])
    with pytest.raises(ValueError, match="must be finite"), Stage.of(config):
        raise ValueError("step 3: loss nan must be finite <lower the learning rate>")
    path = writer.run / "convert" / "manifest.json"
    path.write_text(path.read_text().replace('"status": "complete"', '"status": "running"'))
    page = page_of(writer.run)
    assert "align is failed. ValueError: step 3: loss nan must be finite <lower the learning rate>" in page.text
    assert "convert is running, not complete." in page.text and "run the pipeline again" in page.text


def test_a_directory_without_a_run_is_one_clear_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="holds no stage with a manifest"):
        write_report(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_the_job_prints_the_path(whole_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs.report.main([str(whole_run)])
    assert capsys.readouterr().out.strip() == str(whole_run / "report.html")


def test_every_objective_has_a_name_on_the_page() -> None:
    kinds = {get_args(objective.model_fields["kind"].annotation)[0] for objective in get_args(get_args(Objective)[0])}
    assert len(kinds) >= 5 and kinds <= set(TERMS)
