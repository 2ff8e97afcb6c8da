"""Whether data are sound: all checks over one reading of the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from truing.audit.amounts import Histogram, amount_finding, histograms_of, lengths_finding
from truing.audit.facts import DataFacts, facts_of
from truing.audit.finding import Finding
from truing.audit.material import Material
from truing.audit.noise import noise_finding
from truing.audit.preferences import balance_finding, contradictions_finding, length_bias_finding, margin_finding
from truing.audit.purposes import kind_for
from truing.audit.reading import Asked, Reading, read_all
from truing.audit.repeats import find_repeats, leakage_finding, repeats_findings
from truing.audit.shortcut import score_pairs, shortcut_finding
from truing.audit.writing import text_finding
from truing.core.errors import InputError
from truing.data.decoded import DecodedRow
from truing.data.format_names import FormatName
from truing.data.report import by_file

if TYPE_CHECKING:
    from truing.audit.encoded import Encoding, Measured

Verdict = Literal["ok", "warn", "stop"]
Progress = Callable[[str, int, int], None]
"""Told what is being done, how many of it are done, and how many there are."""

CHECKS = (
    *("readable", "format", "rows", "roles", "mixed", "identical_pair", "text", "duplicates", "near_duplicates"),
    *("contradictions", "leakage", "margin", "balance", "amount", "length_bias", "shortcut", "noise"),
    *("template", "bos", "end_token", "no_target", "cut", "identical_after_cut", "lengths"),
)
"""The names of all checks, in the order of findings."""

SCHEMA = 1
"""Of the JSON form; it changes when a key changes its meaning or goes."""


@dataclass(frozen=True, slots=True)
class Audit:
    """All findings about some files, and the facts that they rest on."""

    files: tuple[str, ...]
    purpose: str
    """What the rows are to train: a kind of example, or the name of a method."""
    findings: tuple[Finding, ...]
    """In the order of `CHECKS`; a check that does not apply has none."""
    facts: DataFacts
    verdict: Verdict
    """`stop` where any finding is one, `warn` where any warns."""
    shown: tuple[DecodedRow, ...] = ()
    """Rows as they are trained, where a model was given."""
    histograms: tuple[Histogram, ...] = ()
    """Of lengths, in the facts' unit."""

    def as_json(self) -> dict[str, object]:
        """The audit as JSON values; rows are grouped by file."""
        return {
            "schema": SCHEMA,
            "files": list(self.files),
            "purpose": self.purpose,
            "verdict": self.verdict,
            "findings": [
                {
                    "check": finding.check,
                    "level": finding.level,
                    "sentence": finding.sentence,
                    "remedy": finding.remedy,
                    "rows": by_file(finding.rows),
                    "examples": list(finding.examples),
                    "figures": dict(finding.figures),
                }
                for finding in self.findings
            ],
            "facts": asdict(self.facts),
        }


def audit(
    paths: Sequence[str],
    *,
    purpose: str | None = None,
    model: str | None = None,
    template: str | None = None,
    max_length: int = 1024,
    test: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    format: FormatName | None = None,
    limit: int | None = None,
    show: int = 0,
    on_progress: Progress = lambda what, done, total: None,
) -> Audit:
    """Check files of data; whatever is wrong with them is a finding, not an error.

    Rows are read as `purpose` would train on them, or as what they are where it is None. With a `model`, a folder or a
    hub id, they are encoded too, and `show` of them kept as text. Raises InputError where the arguments themselves are
    wrong: an unknown purpose, no such model or template.
    """
    if template is not None and model is None:
        raise InputError("--template needs --model: a template is rendered with a model's own tokens")
    kind = None if purpose is None else kind_for(purpose)
    encoding = None if model is None else _encoding(model, template, max_length)
    reading = read_all(paths, Asked(kind, purpose or "", columns or {}, format, limit))
    tests = read_all(test, Asked(None, "", columns or {}, format, None)) if test else None
    if tests is not None:
        reading.unreadable += tests.unreadable
        reading.unusable += tests.unusable
    findings = reading.findings()
    material = Material.of(reading.examples, partial(on_progress, "words"))
    measured = None
    if material.examples:
        found, measured = _checks(material, tests, purpose or "", encoding, show, on_progress)
        findings += found
    lengths = material.lengths if measured is None else measured.lengths
    facts = facts_of(material, reading, findings, lengths, "words" if measured is None else "tokens")
    if material.examples:
        findings.append(lengths_finding(facts))
    findings.sort(key=lambda finding: CHECKS.index(finding.check))
    told = purpose or (reading.kinds.most_common(1)[0][0] if reading.kinds else "unknown")
    shown = () if measured is None else tuple(measured.shown)
    histograms = histograms_of(lengths)
    return Audit(tuple(paths), told, tuple(findings), facts, _verdict(findings), shown, histograms)


def _encoding(model: str, template: str | None, max_length: int) -> Encoding:
    from truing.audit.encoded import Encoding
    from truing.data.templates import load_template
    from truing.data.tokens import Pieces
    from truing.models.loading import read_outline  # transformers imports torch for a tokenizer

    outline = read_outline(model)
    limit = min(max_length, outline.max_positions or max_length)
    pieces = Pieces(outline.tokenizer, outline.end_tokens)
    return Encoding(outline, load_template(template, outline.tokenizer), pieces, limit)


def _checks(
    material: Material,
    tests: Reading | None,
    purpose: str,
    encoding: Encoding | None,
    show: int,
    on_progress: Progress,
) -> tuple[list[Finding], Measured | None]:
    """All findings about examples, and what was measured in tokens."""
    found: list[Finding | None] = [text_finding(material)]
    repeats = find_repeats(material, partial(on_progress, "repeats"))
    found += repeats_findings(material, repeats)
    if tests is not None and tests.examples:
        found.append(leakage_finding(material, tests.examples))
    found += [contradictions_finding(material), margin_finding(material), balance_finding(material)]
    found.append(amount_finding(len({example.origin for example in material.examples}), purpose))
    scores = score_pairs(material, partial(on_progress, "word classifier"))
    found += [shortcut_finding(material, scores), noise_finding(material, scores)]
    measured = None
    if encoding is not None:
        from truing.audit.encoded import encoded_findings, measure

        outcome = measure(material, encoding, show, partial(on_progress, "tokens"))
        if isinstance(outcome, Finding):
            found.append(outcome)
        else:
            measured = outcome
            found += encoded_findings(material, measured, encoding)
    unit: Literal["words", "tokens"] = "words" if measured is None else "tokens"
    found.append(length_bias_finding(material, material.lengths if measured is None else measured.lengths, unit))
    return [finding for finding in found if finding is not None], measured


def _verdict(findings: Sequence[Finding]) -> Verdict:
    levels = {finding.level for finding in findings}
    return "stop" if "stop" in levels else "warn" if levels & {"warn", "strong"} else "ok"
