"""Everything that reads files of strangers, each with a way to make such files: sound ones, harmed on purpose."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from tests.data.tiny import byte_level
from tests.hostile.law import Files, Reader
from tests.hostile.mutation import Choose, as_json, mutated_bytes, mutated_value
from tests.models.lora_models import tiny
from tests.report.folders import DATA, SAMPLES, STAGE, dpo_rows
from truing.data.examples import Message
from truing.data.formats import detect, to_examples
from truing.data.records import read
from truing.data.templates import load_template
from truing.models.loading import load_model, load_tokenizer, read_outline
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_config import read_config
from truing.models.lora.peft_format import load_adapter, save_adapter
from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import read_architecture
from truing.recipe.load import dump, load_recipe
from truing.report import details
from truing.report.listing import list_runs, table
from truing.report.runs import read_run
from truing.report.verdict import verdict
from truing.training import checkpoint
from truing.training.health import complaints
from truing.training.manifest import damage
from truing.training.reference import LogprobStore
from truing.training.run_directory import RunDirectory
from truing.training.settings import CheckpointSettings
from truing.world.base_model import write_base_model

CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
SPOKEN = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
ROWS: tuple[dict[str, Any], ...] = (
    {"instruction": "Do", "input": "it", "output": "Done", "system": "S", "history": [["q1", "a1"]]},
    {"conversations": SPOKEN, "system": "S"},
    {"messages": CHAT},
    {"text": "Once upon a time"},
    {"prompt": "2+2=", "completion": "4"},
    {"prompt": CHAT[:1], "completion": CHAT[1:]},
    {"prompt": "q", "chosen": "x", "rejected": "y", "margin": 2.5, "score_chosen": 8, "score_rejected": 3},
    {"chosen": CHAT, "rejected": [CHAT[0], {"role": "assistant", "content": "b"}]},
    {"chosen": "\n\nHuman: q\n\nAssistant: x", "rejected": "\n\nHuman: q\n\nAssistant: y"},
    {"instruction": "q", "chosen": "x", "rejected": "y", "history": [["q1", "a1"]]},
    {"conversations": SPOKEN[:1], "chosen": SPOKEN[1], "rejected": {"from": "gpt", "value": "b"}},
    {"prompt": "q", "completion": "a", "label": True},
    {"messages": CHAT, "kto_tag": False},
    {"prompt": "q", "response": "a", "thumbs": "up"},
    {"prompt": "q", "response_a": "x", "response_b": "y", "winner": "model_a"},
    {"conversation_a": CHAT, "conversation_b": CHAT, "winner": "tie"},
    {"prompt": "q", "answers": ["x", "y"], "ranks": [1, 2]},
    {"instruction": "q", "completions": [{"response": "x", "overall_score": 3.5}, {"response": "y", "score": 1}]},
    {"prompt": "q", "responses": ["x", "y"], "scores": [1, 2.5]},
    {"prompt": "q", "answer_key": "4"},
)
"""A row of each format that is read, and of each notation in it."""


def readers() -> tuple[Reader, ...]:
    """All of them."""
    return (
        Reader("rows as JSON, JSONL, gzip", _json_rows, _read_rows),
        Reader("rows as CSV and text", _csv_rows, _read_rows),
        Reader("rows as Parquet", _parquet_rows, _read_rows),
        Reader("recipes", _recipe, _read_recipe),
        Reader("chat templates", _template, _read_template),
        Reader("adapter configurations", _adapter_config, _read_adapter_config),
        Reader("adapters", _adapter, _read_adapter),
        Reader("config.json, planned", _config, lambda folder: read_architecture(folder).numbers),
        Reader("config.json, loaded", _outline, read_outline, share=0.1),
        Reader("tokenizers", _tokenizer, load_tokenizer, share=0.1),
        Reader("whole models", _model, _read_model, share=0.02),
        Reader("run directories, reported", _run, _read_run),
        Reader("run directories, resumed", _resumed, _read_resumed),
        Reader("reference caches", _cache, _read_cache),
    )


def _one(file: str, content: bytes) -> Files:
    return {file: content}


# Rows of data.


def _mutated_rows(choose: Choose) -> list[Any]:
    row = ROWS[choose(len(ROWS))]
    return [mutated_value(row, choose) for _ in range(1 + choose(3))]


def _json_rows(choose: Choose) -> Files:
    rows = _mutated_rows(choose)
    kind = ("json", "jsonl", "txt", "json.gz", "jsonl.gz")[choose(5)]
    lines = b"\n".join(as_json(row) for row in rows)
    whole = mutated_value({"data": rows}, choose, 1) if choose(3) == 0 else rows
    content = mutated_bytes(as_json(whole) if "jsonl" not in kind else lines, choose)
    packed = mutated_bytes(gzip.compress(content, 1, mtime=0), choose, 1) if kind.endswith("gz") else content
    return _one(f"rows.{kind}", packed)


def _csv_rows(choose: Choose) -> Files:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    rows = [row for row in _mutated_rows(choose) if isinstance(row, dict)] or [{}]
    writer.writerow(list(rows[0]))
    for row in rows:
        writer.writerow([value if isinstance(value, str) else json.dumps(value) for value in row.values()])
    content = text.getvalue().encode("utf-8", "surrogatepass")
    return _one(("rows.csv", "rows.csv.gz", "rows.txt")[choose(3)], mutated_bytes(content, choose))


@cache
def _tables() -> tuple[bytes, ...]:
    made = []
    for row in ROWS:
        for packing in ("snappy", "zstd"):
            content = io.BytesIO()
            pq.write_table(pa.Table.from_pylist([row] * 3), content, compression=packing)
            made.append(content.getvalue())
    return tuple(made)


def _parquet_rows(choose: Choose) -> Files:
    return _one("rows.parquet", mutated_bytes(_tables()[choose(len(_tables()))], choose))


def _read_rows(folder: Path) -> None:
    (file,) = folder.iterdir()
    source = read(str(file))
    found = detect(source).format
    for kind in ("demonstration", "comparison", "judgement", "prompt"):
        if kind == found.kind or kind == "prompt":
            converted = to_examples(source, found, kind)
            converted.faults.stop("stop")


# Recipes and templates.


RECIPE: dict[str, Any] = {
    "model": "models/base",
    "template": "chatml",
    "adapter": {"use": "lora", "rank": 8, "targets": ["q_proj"]},
    "output": "runs/x",
    "stages": [
        {"name": "sft", "objective": {"use": "sft"}, "data": {"path": "rows.json", "max_length": 64}},
        {"objective": {"use": "dpo", "beta": 0.1}, "data": {"path": ["a.json", "b.json"]}},
        {
            "objective": {"use": "grpo"},
            "data": {"path": "p.json", "columns": {"prompt": "q"}},
            "rollout": {"rewards": ["./rewards.py:fn", {"use": "runs/reward", "weight": 0.5}], "group_size": 4},
            "optim": {"lr": "2e-4", "max_steps": 10},
            "trackers": ["tensorboard", {"use": "wandb", "project": "mine"}],
        },
    ],
}
OVERRIDES = (
    "optim.lr=1e-5",
    "stages.dpo.optim.lr=2001-99-99",
    "stages.1.name=x",
    "adapter=none",
    "model=0x_",
    "a=[[",
    "=",
)


def _recipe(choose: Choose) -> Files:
    # JSON is YAML too.
    text = as_json(mutated_value(RECIPE, choose)) if choose(2) else yaml.safe_dump(RECIPE, sort_keys=False).encode()
    return {"recipe.yaml": mutated_bytes(text, choose), "override": OVERRIDES[choose(len(OVERRIDES))].encode()}


def _read_recipe(folder: Path) -> None:
    override = (folder / "override").read_text(encoding="utf-8")
    dump(load_recipe(folder / "recipe.yaml", [override] if override != "=" else []))


TEMPLATES = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "{{ bos_token }}{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.s = m.content %}{% elif loop.index0 % 2 == 0 %}{{ raise_exception('odd') }}{% else %}"
    "{% generation %}{{ m.content | tojson }}{% endgeneration %}{% endif %}{% endfor %}{{ ns.s * 3 }}",
    "{% macro turn(m) %}{{ m['content'].split('</think>')[-1].lstrip('\\n') }}{% endmacro %}"
    "{% for m in messages[::-1] %}{{ turn(m) }}{{ range(3) | list | join(',') }}{% endfor %}{{ strftime_now('%Y') }}",
)
ATTACKS = (
    "{{ ''.__class__.__mro__ }}", "{{ messages|attr('__class__') }}", "{{ 9**9**9 }}", "{{ 'a' * 10000000000 }}",
    "{% for i in range(99999) %}", "{% for i in messages %}{% for j in messages %}", "{{ range(10**9) }}",
    "{% include 'x' %}", "{{ cycler.__init__.__globals__ }}", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ 'x'.ljust(9999999999) }}", "{{ '%9999999999d' % 1 }}", "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "{{ {}|tojson(indent=9999999) }}", "{{ x|map('x')|list }}", "{{ namespace(__class__=1) }}", "{{ lipsum(n=99999) }}",
    "{{ [] | batch(9999999999) | list }}",
)  # fmt: skip


def _template(choose: Choose) -> Files:
    text = TEMPLATES[choose(len(TEMPLATES))]
    for _ in range(choose(3)):
        at = choose(len(text) + 1)
        text = text[:at] + ATTACKS[choose(len(ATTACKS))] + text[at:]
    return _one("chat.jinja", mutated_bytes(text.encode(), choose))


def _read_template(folder: Path) -> None:
    template = load_template(str(folder / "chat.jinja"), byte_level())
    turns = (Message("user", "hello"), Message("assistant", "world"))
    template.render_prompt(turns[:1])
    template.parts(turns, [1])


# Models and adapters.


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder's files, small ones that are JSON understood."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> _Folder:
        found = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        return cls(found)

    def harmed(self, choose: Choose, names: tuple[str, ...]) -> Files:
        """One of these files harmed: its values where it is JSON, or its bytes."""
        name = names[choose(len(names))]
        content = self.files[name]
        if name.endswith(".json") and choose(3):
            content = as_json(mutated_value(json.loads(content), choose))
        elif name.endswith(".safetensors") and choose(2):
            content = _with_header(content, choose)
        else:
            content = mutated_bytes(content, choose)
        return {**self.files, name: content}


def _with_header(content: bytes, choose: Choose) -> bytes:
    """A safetensors file whose header lies: offsets, shapes, formats, sizes, names."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if choose(2):
        name = list(header)[choose(len(header))]
        entry = dict(header[name])
        if "shape" in entry:
            key = ("shape", "data_offsets", "dtype")[choose(3)]
            formats = ("F64", "F16", "BF16", "I64", "BOOL", "U8", "C64", "F8_E4M3", "F4", "X")
            entry[key] = formats[choose(len(formats))] if key == "dtype" else _two(choose)
            header[name] = entry
    else:
        header = mutated_value(header, choose)
    written = as_json(header)
    claimed = len(written) if choose(4) else (0, 1, 2**40, 2**63)[choose(4)]
    return claimed.to_bytes(8, "little") + written + content[8 + size :]


def _two(choose: Choose) -> list[int]:
    wild = (0, 1, 2**31, 2**60, 2**64 - 1, -1, 3)
    return [wild[choose(len(wild))] for _ in range(2)]


@cache
def _adapters() -> Adapters:
    return Adapters(tiny("llama"))


@cache
def _adapter_folder() -> _Folder:
    adapters = Adapters(tiny("llama"))
    adapters.add("made", AdapterSettings(rank=2, targets=("q_proj",)), seed=0)
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(adapters, "made", Path(folder), "base")
        return _Folder.of(Path(folder))


def _adapter_config(choose: Choose) -> Files:
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {".*q": 2.0}, "layers_pattern": ["layers"]}
    own = json.loads(_adapter_folder().files["adapter_config.json"])
    value = mutated_value({**own, **patterns, "layers_to_transform": [0], "exclude_modules": "x"}, choose)
    return _one("adapter_config.json", mutated_bytes(as_json(value), choose, 1))


def _read_adapter_config(folder: Path) -> None:
    config = read_config(folder)
    for path in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        config.targets(path, (path,))
        config.rank_of(path)
        config.alpha_of(path)


def _adapter(choose: Choose) -> Files:
    return _adapter_folder().harmed(
        choose, ("adapter_model.safetensors", "adapter_model.safetensors", "adapter_config.json")
    )


def _read_adapter(folder: Path) -> None:
    adapters = _adapters()
    load_adapter(adapters, "read", folder)
    adapters.remove("read")


@cache
def _model_folder() -> _Folder:
    with tempfile.TemporaryDirectory() as folder:
        write_base_model(Path(folder))
        return _Folder.of(Path(folder))


def _config(choose: Choose) -> Files:
    content = _model_folder().harmed(choose, ("config.json",))["config.json"]
    return _one("config.json", content)


TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def _outline(choose: Choose) -> Files:
    return _without_weights(_model_folder().harmed(choose, ("config.json", "config.json", "generation_config.json")))


def _without_weights(files: Files) -> Files:
    return {name: content for name, content in files.items() if not name.endswith(".safetensors")}


def _tokenizer(choose: Choose) -> Files:
    return _without_weights(_model_folder().harmed(choose, TOKENIZER))


def _model(choose: Choose) -> Files:
    files = _model_folder().harmed(choose, ("config.json", "model.safetensors", "generation_config.json", *TOKENIZER))
    if choose(3):
        return files
    index = as_json(mutated_value({"metadata": {}, "weight_map": {"a": "weights.safetensors"}}, choose))
    return {
        **_without_weights(files),
        "weights.safetensors": files["model.safetensors"],
        "model.safetensors.index.json": index,
    }


def _read_model(folder: Path) -> None:
    load_model(folder, dtype=None, device=torch.device("cpu"))


# Runs.


def _lines(rows: list[Any], choose: Choose) -> bytes:
    found = mutated_value(rows, choose)
    return b"".join(as_json(row) + b"\n" for row in (found if isinstance(found, list) else [found]))


def _run(choose: Choose) -> Files:
    recipe = mutated_value({"output": "x", "stages": [STAGE]}, choose)
    files = {
        "recipe.yaml": as_json(recipe) if choose(2) else yaml.safe_dump({"stages": [STAGE]}).encode(),
        "metrics.jsonl": _lines(dpo_rows(4), choose),
        "samples.jsonl": _lines(list(SAMPLES), choose),
        "events.jsonl": _lines([{"step": 2, "monitor": "kl", "action": "lower", "sentence": "It grows."}], choose),
        "plan.json": as_json(mutated_value({"steps": 4, "bytes": {"weights": 10}, "seconds": 3.0}, choose)),
        "data.json": as_json(mutated_value(DATA, choose)),
        "environment.json": as_json(mutated_value({"versions": {"truing": "0.1.0"}, "calibration": {}}, choose)),
        "forgetting.json": as_json(mutated_value({"loss_before": 1.0, "loss_after": 2.0, "kl": 0.1}, choose)),
        "parity.json": as_json(mutated_value({"differences": [{"form": "saved", "largest": 0.1}]}, choose)),
        ".lock": mutated_bytes(b'{"process": 1, "boot": "x", "machine": "y"}', choose),
    }
    name = list(files)[choose(len(files))]
    return {**files, name: mutated_bytes(files[name], choose)}


def _read_run(folder: Path) -> None:
    run = read_run(folder)
    verdict(run, complaints(run.rows, run.facts))
    parts: tuple[Callable[[Any], Any], ...] = (
        details.samples, details.data, details.memory_and_time, details.forgetting, details.parity, details.environment,
        details.recipe,
    )  # fmt: skip
    for part in parts:
        part(run)
    table(list_runs([folder]), 200)


@cache
def _checkpoint_files() -> Files:
    with tempfile.TemporaryDirectory() as folder:
        tensors, values = checkpoint.random_states()
        state = checkpoint.Checkpoint(2, {"weight.w": torch.ones(2), **tensors}, {"random": values, "rows": 3})
        checkpoint.save(Path(folder), state, CheckpointSettings())
        return _Folder.of(Path(folder)).files


def _resumed(choose: Choose) -> Files:
    files = {f"checkpoints/{name}": content for name, content in _checkpoint_files().items()}
    harmed = _Folder(files).harmed(choose, tuple(sorted(files)))
    if choose(2):  # a manifest that calls it whole
        harmed = {**harmed, **_manifest(harmed)}
    return {
        **harmed,
        "metrics.jsonl": _lines(dpo_rows(3), choose),
        "environment.json": as_json(mutated_value({"a": 1}, choose)),
    }


def _manifest(files: Files) -> Files:
    named = {Path(name).name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    named.pop("manifest.json", None)
    folder = next(str(Path(name).parent) for name in files if name.startswith("checkpoints/"))
    return {f"{folder}/manifest.json": json.dumps(named).encode()}


def _read_resumed(folder: Path) -> None:
    run = RunDirectory(folder)
    run.rows("metrics.jsonl")
    for each in checkpoint.complete(folder / "checkpoints"):
        damage(each)
    found, _ = checkpoint.load_latest(folder / "checkpoints")
    if found is not None and isinstance(found.values.get("random"), dict):
        checkpoint.restore_random_states(found.tensors, found.values["random"])
    run.read_object("environment.json")


@cache
def _cache_file() -> tuple[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        store = LogprobStore(Path(folder), "key")
        for n in range(3):
            store.put(f"{n:02x}" * 32, np.arange(n + 1, dtype=np.float32))
        store.save()
        return store.file.name, store.file.read_bytes()


def _cache(choose: Choose) -> Files:
    name, content = _cache_file()
    return _one(name, _with_header(content, choose) if choose(2) else mutated_bytes(content, choose))


def _read_cache(folder: Path) -> None:
    LogprobStore(folder, "key")
