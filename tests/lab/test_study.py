from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import made
from truing.core.errors import InputError
from truing.lab.arms import BASE, Arm
from truing.lab.study import write_results
from truing.lab.study_settings import FigureSettings, StudySettings, load_study, to_experiment

STUDIES = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))
WRITTEN = """
title: A study
question: Does it work?
base: {objective: {use: sft}}
arms:
  - {name: sft, stage: {objective: {use: sft}, adapter: none}, data: demonstrations, start: base}
  - name: "{method} {beta:g}"
    each: {method: [dpo, ipo], beta: [1, 0.5]}
    stage: {objective: {use: "{method}", beta: "{beta}"}, batch: {examples: 32}}
    data: pairs
    world: {flip_rate: "{beta}"}
    tags: {kind: pairs}
figures: [{use: lines, x: beta, y: [reward, kl]}]
"""


def written(folder: Path, text: str = WRITTEN) -> Path:
    file = folder / "small.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_family_of_arms_is_every_combination_with_its_values_put_in(tmp_path: Path) -> None:
    arms = to_experiment(load_study(written(tmp_path))).arms
    assert [arm.name for arm in arms] == ["sft", "dpo 1", "dpo 0.5", "ipo 1", "ipo 0.5"]
    last: Arm = arms[-1]
    assert last.stage == {"objective": {"use": "ipo", "beta": 0.5}, "batch": {"examples": 32}}
    assert last.world == {"flip_rate": 0.5}
    assert last.tags == {"kind": "pairs", "method": "ipo", "beta": 0.5}
    assert isinstance(arms[1].stage["objective"]["beta"], int)  # a number stays what it is


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: file.stem)
def test_every_study_of_the_project_describes_an_experiment(file: Path) -> None:
    settings = load_study(file)
    experiment = to_experiment(settings)
    assert len(experiment.arms) > 5
    for asked in settings.figures:
        if asked.use == "lines":
            assert any(asked.x in arm.tags and asked.by in arm.tags for arm in experiment.arms)


def test_a_misspelt_key_names_file_and_line(tmp_path: Path) -> None:
    file = written(tmp_path, WRITTEN.replace("question:", "questoin:"))
    with pytest.raises(InputError, match=r"small\.yaml:3: .*questoin.*question"):
        load_study(file)


def test_results_are_a_table_figures_and_numbers(tmp_path: Path) -> None:
    settings = StudySettings(
        title="T",
        question="Q?",
        findings=("It depends.",),
        base={},
        arms=(),
        figures=(FigureSettings(use="lines", x="beta", y=("reward",)), FigureSettings(use="overoptimisation")),
    )
    tagged = [made.arm(f"dpo {beta}", tags={"method": "dpo", "beta": beta}) for beta in (0.1, 1.0)]
    scorer = made.arm("reward", stage={"objective": {"use": "reward"}})
    experiment = made.experiment(scorer, *tagged)
    outcomes = [made.base(), made.reference(), made.scorer()]
    outcomes += [made.outcome(arm.name, (0.5, 0.6, 0.7)) for arm in tagged]
    files = write_results(settings, experiment, outcomes, written(tmp_path), tmp_path)
    assert {file.name for file in files} == {"small.md", "small.svg", "small-2.svg", "small.json"}
    text = (tmp_path / "small.md").read_text(encoding="utf-8")
    assert "- It depends." in text
    assert "| dpo | 0.600 | 0.600 |" in text  # one seed gives no interval over seeds
    assert "| dpo 0.1 | 0.600 ± 0.248 | +0.200 ± 0.248 |" in text  # over prompts: 4.303 · 0.1 / √3
    assert "| reward | best of n | " in text
    assert f"| {BASE} | " in text
    again = write_results(settings, experiment, outcomes, written(tmp_path), tmp_path)
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]
