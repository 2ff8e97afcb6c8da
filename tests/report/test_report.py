from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pages.test_page import outline
from tests.report.folders import STAGE, dpo_rows, make_run
from truing.core.errors import MachineError, RunError
from truing.report.curves import CROWD, MANY_POINTS, thin
from truing.report.details import figure
from truing.report.write import report_page, write_report
from truing.training.health import complaints

HOSTILE = "</title><script>alert(1)</script>\x1b[31m\u202e$x$ _a"


def test_one_run_shows_every_part_that_it_has(tmp_path: Path) -> None:
    words = outline(report_page([make_run(tmp_path / "one", dpo_rows())])).words
    for part in (
        "dpo from base, LoRA rank 8, on pairs.json: finished.",
        "No figure left its healthy range.",
        "Accuracy",
        "Log-probs of answers",
        "Gradient norm",
        "answer 10",
        "38 of 40 rows used: 30 trained on, 8 held out",
        "answers are the same",
        "planned, together",
        "trained parameters",
        f"truing train {tmp_path / 'one'}/recipe.yaml --output {tmp_path / 'one'}-again",
    ):
        assert part in words, part


def test_panels_without_data_do_not_appear(tmp_path: Path) -> None:
    words = outline(report_page([make_run(tmp_path / "one", dpo_rows())])).words
    for absent in ("Score against √KL", "Entropy", "Clip fraction", "Explained variance", "Reference point"):
        assert absent not in words


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", dpo_rows())
    assert report_page([run]) == report_page([run])


def test_figures_of_the_comparison_are_those_of_the_metrics_file(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run-{steps}", dpo_rows(steps)) for steps in (5, 9)]
    html = report_page(runs)
    table = html[html.index("<table>") : html.index("</table>")]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in table.split("<tr>")[2:]]
    for run, row in zip(runs, cells, strict=True):
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        # name, what, steps, loss, accuracy, peak memory, time
        assert row[2:5] == [str(last["step"]), figure(last["loss"]), figure(last["rewards/accuracies"])]
        assert row[5] == f"{last['memory_bytes'] / 1e6:.0f} MB"
        assert row[6] == f"{last['step'] * 0.5:.2g} s"


def test_runs_over_each_other_say_what_their_recipes_do_not_share(tmp_path: Path) -> None:
    fast = {**STAGE, "optim": {"lr": 5e-4}}
    runs = [make_run(tmp_path / "slow", dpo_rows()), make_run(tmp_path / "fast", dpo_rows(), stage=fast)]
    html = report_page(runs)
    differences = html[html.index('id="differences"') : html.index('id="complaints"')]
    assert re.findall(r"<td>(.*?)</td>", differences) == ["optim.lr", "1e-05", "0.0005"]


def test_every_complaint_stands_in_the_verdict_with_its_step(tmp_path: Path) -> None:
    rows = dpo_rows(30)
    rows[24]["grad_norm"] = 50.0
    rows[11]["loss"] = None
    words = outline(report_page([make_run(tmp_path / "one", rows)])).words
    found = complaints(rows)
    assert [each.step for each in found] == [12, 25]
    for each in found:
        assert words.count(each.sentence) == 2, "in the verdict and under its curve"


@pytest.mark.parametrize(
    ("finished", "planned", "said"),
    [(True, 10, ": finished."), (False, 40, "stopped at step 10 of 40."), (True, 40, "finished at step 10 of 40.")],
)
def test_the_verdict_says_how_the_run_ended(tmp_path: Path, finished: bool, planned: int, said: str) -> None:
    run = make_run(tmp_path / "one", dpo_rows(), finished=finished, planned=planned)
    html = outline(report_page([run])).words
    assert said in html
    assert ("truing resume" in html) is not finished


def test_complaints_of_several_runs_are_a_row_each_and_the_others_are_named_as_healthy(tmp_path: Path) -> None:
    rows = dpo_rows()
    rows[4]["loss"] = None
    html = report_page([make_run(tmp_path / "ill", rows), make_run(tmp_path / "well", dpo_rows())])
    found = html[html.index('id="complaints"') : html.index('id="curves"')]
    assert re.findall(r"<td[^>]*>(.*?)</td>", found)[:2] == ["ill", "5"]
    assert "No figure left its healthy range: well." in found


def test_a_chain_has_a_section_a_stage(tmp_path: Path) -> None:
    chain = tmp_path / "chain"
    for name in ("2-dpo", "1-sft", "10-kto"):
        make_run(chain / name, dpo_rows())
    (chain / "recipe.yaml").write_text("stages: []\n")
    (chain / "final").mkdir()
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", report_page([chain]))
    assert titles == ["Verdict", "Stage 1-sft", "Stage 2-dpo", "Stage 10-kto", "Repeat it"]


def test_a_folder_of_runs_is_refused_with_their_names(tmp_path: Path) -> None:
    make_run(tmp_path / "a", dpo_rows())
    make_run(tmp_path / "deep" / "b", dpo_rows())
    with pytest.raises(RunError, match=r"holds 2; name those that you mean:\n.*a\n.*deep/b"):
        report_page([tmp_path])


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
def test_what_is_no_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"give a run directory|not a run directory"):
        report_page([tmp_path / name])


def test_a_page_is_written_into_the_run_and_of_several_beside_them(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, dpo_rows()) for name in ("a", "b")]
    assert write_report(runs[:1]) == tmp_path / "a" / "report.html"
    assert write_report(runs) == tmp_path / "report.html"
    assert write_report(runs, tmp_path / "new" / "page.html").is_file()
    with pytest.raises(RunError, match="is a folder"):
        write_report(runs, tmp_path)
    (tmp_path / "taken").write_text("x")
    with pytest.raises(MachineError):
        write_report(runs, tmp_path / "taken" / "page.html")


def test_hostile_runs_change_nothing_but_words(tmp_path: Path) -> None:
    def run(where: Path, word: str) -> Path:
        stage = {**STAGE, "model": word, "data": {"path": word}, "objective": {"use": word, word: word}}
        samples = [{"step": 0, "prompt": word, "completion": word, "tokens": 1, "ended": False}]
        folder = make_run(where, [{**row, word: 1.0} for row in dpo_rows()], stage=stage, samples=samples)
        for name in ("data", "environment"):
            (folder / f"{name}.json").write_text(
                json.dumps({word: word, "notes": [word], "dropped": {word: {word: [1]}}})
            )
        return folder

    hostile, plain = (report_page([run(tmp_path / name, w)]) for name, w in (("h", HOSTILE), ("p", "plain")))
    assert outline(hostile).tags == outline(plain).tags
    assert not set("\x1b\u202e") & set(hostile)
    assert "<script" not in hostile


def test_a_page_refers_to_nothing_outside_of_itself(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / name, dpo_rows()) for name in ("a", "b")]
    for html in (report_page(runs[:1]), report_page(runs)):
        assert not re.search(r"https?:|@import|<script|\bsrc=|url\((?!#)|<iframe|<object", html)
        ids = re.findall(r'\sid="([^"]+)"', html)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)


DAMAGES = {
    "a last line cut": lambda run: (run / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-40]),
    "no metrics": lambda run: (run / "metrics.jsonl").unlink(),
    "empty metrics": lambda run: (run / "metrics.jsonl").write_text(""),
    "bytes that are no text": lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe\x00{}\n" * 5),
    "other keys": lambda run: (run / "metrics.jsonl").write_text('{"a": 1}\n{"step": 1, "b": null}\n[1]\n7\n'),
    "deep nesting": lambda run: (run / "data.json").write_text("[" * 100_000),
    "no recipe": lambda run: (run / "recipe.yaml").unlink(),
    "a recipe that is no YAML": lambda run: (run / "recipe.yaml").write_text("a: [b\n\x00"),
    "a recipe of another shape": lambda run: (run / "recipe.yaml").write_text("stages: {adapter: 5}\nobjective: [1]\n"),
    "a deeply nested recipe": lambda run: (run / "recipe.yaml").write_text("a: " + "[" * 100_000),
    "a recipe nested by dashes": lambda run: (run / "recipe.yaml").write_text("- " * 50_000),
    "a recipe nested by columns": lambda run: (run / "recipe.yaml").write_text(
        "".join(" " * depth + "a:\n" for depth in range(900))
    ),
    "no plan": lambda run: (run / "plan.json").unlink(),
    "a plan of another shape": lambda run: (run / "plan.json").write_text('{"steps": "x", "bytes": [1]}'),
    "data of another shape": lambda run: (run / "data.json").write_text('{"files": 3, "rows": [], "dropped": 1}'),
    "samples of another shape": lambda run: (run / "samples.jsonl").write_text('{"step": {}, "prompt": 7}\n{"x"\n'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_still_has_a_page(tmp_path: Path, damage: str) -> None:
    run = make_run(tmp_path / "one", dpo_rows())
    DAMAGES[damage](run)
    whole = make_run(tmp_path / "two", dpo_rows())
    for paths in ([run], [run, whole]):
        assert outline(report_page(paths)).tags


def test_a_page_says_what_was_damaged_or_missing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", dpo_rows())
    DAMAGES["a last line cut"](run)
    (run / "plan.json").unlink()
    words = outline(report_page([run])).words
    assert "metrics.jsonl: 1 damaged line was left out." in words
    assert "plan.json is missing." in words


def test_a_run_without_a_step_says_so(tmp_path: Path) -> None:
    assert "No step was made" in report_page([make_run(tmp_path / "one", [], planned=5, finished=False)])


values = st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=3), st.lists(st.integers(), max_size=2))
keys = st.sampled_from([*dpo_rows(1)[0], "objective/kl", "objective/scores", "kl", "eval_loss", "mine", "val/ratio"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.dictionaries(keys, values), max_size=8))
def test_no_rows_break_a_page(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    run = make_run(tmp_path_factory.mktemp("any") / "run", rows)
    assert outline(report_page([run])).tags


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(4, 100))
def test_thinning_keeps_the_ends_and_the_extremes(values: list[float], limit: int) -> None:
    x, y = np.arange(len(values), dtype=float), np.array(values)
    thin_x, thin_y = thin(x, y, limit)
    assert len(thin_x) <= max(limit, 4)
    assert thin_x[0] == x[0]
    assert thin_x[-1] == x[-1]
    assert thin_y.min() == y.min()
    assert thin_y.max() == y.max()
    assert np.all(np.diff(thin_x) > 0)
    assert np.array_equal(thin_y, y[thin_x.astype(int)]), "points are those of the run, none is made up"


def test_a_crowd_is_drawn_small(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run-{index:02}", dpo_rows(200)) for index in range(CROWD + 3)]
    html = report_page(runs)
    assert f"{CROWD + 3} curves share each figure" in html
    longest = max(re.findall(r' d="([^"]*)"', html), key=len)
    assert longest.count("L") <= MANY_POINTS


def test_reports_are_made_without_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "one", dpo_rows())
    unwanted = {"torch", "transformers", "matplotlib.pyplot"}
    code = (
        "import sys; from truing.cli.main import cli\n"
        f"for words in (['report', {str(run)!r}], ['runs', {str(tmp_path)!r}], ['--help'], ['report', '--help']):\n"
        "    try: cli.main(words, standalone_mode=False)\n"
        "    except SystemExit: pass\n"
        f"print(sorted({unwanted} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
