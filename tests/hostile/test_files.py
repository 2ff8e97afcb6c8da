"""Files that would run code, fill the memory, lead out of their folder, or lie about what they hold."""

from __future__ import annotations

import gzip
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.models.lora_models import tiny
from truing.build.load_result import open_result
from truing.core.errors import AdapterError, DataError, ModelError, RecipeError, RunError, TruingError
from truing.data import readers
from truing.data.records import read
from truing.models.loading import load_model, load_tokenizer
from truing.models.lora.adapters import Adapters
from truing.models.lora.peft_config import read_config
from truing.models.lora.peft_format import load_adapter, save_adapter
from truing.models.lora.settings import AdapterSettings
from truing.planner.architecture import read_architecture
from truing.recipe.load import load_recipe
from truing.training.lock import FILE as LOCK
from truing.training.manifest import damage
from truing.training.run_directory import RunDirectory, replace_file, rows_of
from truing.world.base_model import write_base_model


class Bomb:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return (Path.touch, (self.trace,))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_base_model(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    adapters = Adapters(tiny("llama"))
    adapters.add("made", AdapterSettings(rank=2, targets=("q_proj",)), seed=0)
    save_adapter(adapters, "made", tmp_path / "adapter", "base")
    return tmp_path / "adapter"


def load(model: Path) -> None:
    load_model(model, dtype=None, device=torch.device("cpu"))


def edit(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def attach(folder: Path) -> None:
    load_adapter(Adapters(tiny("llama")), "read", folder)


# Code.


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt", "rng_state.pth"])
def test_a_pickle_beside_a_model_is_not_read(model: Path, tmp_path: Path, name: str) -> None:
    (model / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    load(model)
    assert not (tmp_path / "ran").exists()


def test_a_model_of_pickles_alone_is_refused_with_a_remedy(model: Path, tmp_path: Path) -> None:
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"):
        load(model)
    assert not (tmp_path / "ran").exists()


def test_an_adapter_of_pickles_alone_is_refused_with_a_remedy(adapter: Path, tmp_path: Path) -> None:
    (adapter / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    attach(adapter)
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match=r"only adapter_model\.bin found, a pickle.* safe_serialization=True"):
        attach(adapter)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_that_comes_with_a_model_is_not_run(model: Path, tmp_path: Path, file: str) -> None:
    (model / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n", encoding="utf-8")
    kinds = {"config.json": ("AutoConfig", "AutoModelForCausalLM"), "tokenizer_config.json": ("AutoTokenizer",)}[file]
    value: Any = ["evil.Evil", "evil.Evil"] if file == "tokenizer_config.json" else "evil.Evil"
    edit(model / file, auto_map=dict.fromkeys(kinds, value))
    load(model)  # transformers knows the model itself
    own = {"model_type": "evil"} if file == "config.json" else {"tokenizer_class": "Evil"}
    edit(model / file, **own)
    if file == "tokenizer_config.json":
        (model / "tokenizer.json").rename(model / "vocab.json")
    with pytest.raises(ModelError, match="needs code of its own \\('auto_map'\\), which truing never runs"):
        load(model)
    assert not (tmp_path / "ran").exists()


# Sizes.


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wb", compresslevel=9) as packed:
        packed.write(b'{"text": "')
        for _ in range(80):
            packed.write(b" " * 2**20)
    with pytest.raises(DataError, match=r"rows\.jsonl\.gz: unpacks to over 200 times its size, .* unpack it first"):
        read(str(file))


def test_a_parquet_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One text of 100 kB, a thousand times: 100 MB in a file of 10 kB."""
    table = pa.table({"text": pa.array(["a" * 100_000] * 1000).dictionary_encode()})
    pq.write_table(table, tmp_path / "rows.parquet", compression="zstd")
    assert (tmp_path / "rows.parquet").stat().st_size < 100_000
    monkeypatch.setattr(readers, "MAX_UNPACKED", 10**7)
    with pytest.raises(DataError, match=r"rows\.parquet: unpacks to more than"):
        read(str(tmp_path / "rows.parquet"))


def test_a_parquet_table_is_the_same_in_portions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"p{n}", "completion": "c" * n} for n in range(50)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=7)
    whole = [record.values for record in read(str(tmp_path / "rows.parquet")).records]
    monkeypatch.setattr(readers, "PORTION", 1)
    assert [record.values for record in read(str(tmp_path / "rows.parquet")).records] == whole == rows


def test_a_recipe_of_aliases_of_aliases_is_refused(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    (tmp_path / "r.yaml").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(RecipeError, match="over 20,000 keys and items, aliases counted in full"):
        load_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 2001-99-99", "month must be in 1..12"),
        ("a: 0x_", "invalid literal"),
        ("a: !!timestamp no", "not valid YAML"),
        ("a: " + "9" * 5000, "a number of 5,000 digits"),
        ("[" * 10_000, "nested too deeply"),
        ("- " * 10_000, "nested too deeply"),
        ("? [a]\n: b", "a key has to be a word"),
        ("a: &a [*a]", "nested too deeply"),
        ("stages:\n  - Model: x\n", "'Model' is not a known key"),
        ("model: " + "a" * 5000, "'objective' is missing"),
        ("model: \"a\\0b\"", "'objective' is missing"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_none_is_refused_in_words_and_at_once(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "r.yaml").write_text(text, encoding="utf-8")
    began = time.process_time()
    with pytest.raises(RecipeError) as refused:
        load_recipe(tmp_path / "r.yaml")
    assert said in str(refused.value)
    assert time.process_time() - began < 5


def test_a_header_of_many_columns_is_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(",".join(f"c{n}" for n in range(60_000)) + "\n", encoding="utf-8")
    began = time.process_time()
    with pytest.raises(DataError, match="holds no rows"):
        read(str(tmp_path / "rows.csv"))
    assert time.process_time() - began < 5  # it was quadratic: half a minute


def test_a_pattern_without_an_end_is_refused(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", target_modules=r"((\w|\w\w|\w\w\w|\.)*.)*(?<=\d)")
    config = read_config(adapter)
    with pytest.raises(AdapterError, match=r"takes over 0\.5 s for the name of one module"):
        config.targets("model.layers.0.self_attn.q_proj.a_long_name_of_a_layer", ())
    edit(adapter / "adapter_config.json", target_modules="(")
    with pytest.raises(AdapterError, match="is no regular expression"):
        attach(adapter)


@pytest.mark.parametrize("key", ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size"])
def test_a_configuration_far_larger_than_its_weights_is_refused_before_memory_is_taken(model: Path, key: str) -> None:
    edit(model / "config.json", **{key: 10**9, "head_dim": 16, "layer_types": None})
    with pytest.raises(ModelError):
        load(model)


def test_a_model_of_a_billion_layers_is_not_planned(model: Path) -> None:
    edit(model / "config.json", num_hidden_layers=10**9)
    with pytest.raises(ModelError, match="'num_hidden_layers' is over 10,000"):
        read_architecture(model)


# Ways out of a folder.


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/tmp/secret.safetensors", "a/b.safetensors", 5, "", "..", None, "a" * 5000]
)
def test_an_index_of_weights_stays_in_its_folder(model: Path, name: object) -> None:
    (model / "model.safetensors").rename(model.parent / "secret.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"expected names of files in the same folder|weight files are missing"):
        load(model)


def test_a_tokenizer_stays_in_its_folder(model: Path) -> None:
    edit(model / "tokenizer_config.json", vocab_file="/etc/passwd")
    with pytest.raises(ModelError, match="'vocab_file' names /etc/passwd, outside of the tokenizer's folder"):
        load_tokenizer(model)


def test_a_manifest_stays_in_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "final"
    folder.mkdir()
    for name in ("../secret", "/etc/hostname"):
        (folder / "manifest.json").write_text(json.dumps({name: "0"}), encoding="utf-8")
        assert damage(folder) == f"its manifest names {name}, which is not a file of it"


def test_nothing_is_written_or_deleted_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept", encoding="utf-8")
    targets: dict[str, Callable[[Path], None]] = {
        LOCK: lambda link: link.symlink_to(outside / "precious"),
        "metrics.jsonl": lambda link: link.symlink_to(outside / "precious"),
        "checkpoints": lambda link: link.symlink_to(outside, target_is_directory=True),
        "1-sft/checkpoints/step-000001": lambda link: link.symlink_to(outside, target_is_directory=True),
    }
    for name, make in targets.items():
        run = tmp_path / f"run-{name.replace('/', '-')}"
        (run / name).parent.mkdir(parents=True)
        make(run / name)
        (run / "recipe.yaml").write_text("model: x", encoding="utf-8")
        for begin in (lambda run=run: RunDirectory.open(run).lock(), lambda run=run: RunDirectory.create(run)):
            with pytest.raises(RunError):
                begin()
    assert (outside / "precious").read_text(encoding="utf-8") == "kept"
    assert [entry.name for entry in outside.iterdir()] == ["precious"]


def test_a_file_written_whole_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept", encoding="utf-8")
    for link in (".report.html.part", "report.html"):
        (tmp_path / link).symlink_to(tmp_path / "precious")
    replace_file(tmp_path / "report.html", "new")
    assert (tmp_path / "precious").read_text(encoding="utf-8") == "kept"
    assert not (tmp_path / "report.html").is_symlink()
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "new"


def test_trackers_may_link_what_they_keep(tmp_path: Path) -> None:
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "latest-run").symlink_to(tmp_path)
    run = RunDirectory(tmp_path)
    run.lock()
    run.close()


# Lies.


@pytest.mark.parametrize(
    "lie",
    [
        {"tokens": 10**6},
        {"eos": 10**6},
        {"eos": -1},
        {"eos": ["x"]},
    ],
)
def test_a_tokenizer_that_lies_about_its_size_is_refused(model: Path, lie: dict[str, Any]) -> None:
    if "tokens" in lie:
        file = model / "tokenizer.json"
        raw = json.loads(file.read_text(encoding="utf-8"))
        raw["model"]["vocab"]["far"] = lie["tokens"]
        file.write_text(json.dumps(raw), encoding="utf-8")
    else:
        edit(model / "generation_config.json", eos_token_id=lie["eos"])
    with pytest.raises(ModelError):
        load(model)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (
            lambda tensors: {**tensors, "base_model.model.model.embed_tokens.weight": torch.ones(48, 24)},
            "match nothing",
        ),
        (lambda tensors: {f"x.{key}": value for key, value in tensors.items()}, "match nothing"),
        (lambda tensors: {key: value[:, :1] for key, value in tensors.items()}, "has shape"),
        (lambda tensors: {key: value.int() for key, value in tensors.items()}, "no finite real numbers"),
        (lambda tensors: {key: value * float("nan") for key, value in tensors.items()}, "no finite real numbers"),
        (lambda tensors: dict(list(tensors.items())[:1]), "keys are missing"),
    ],
)
def test_an_adapter_of_something_else_is_refused(adapter: Path, harm: Callable[[Any], Any], said: str) -> None:
    file = adapter / "adapter_model.safetensors"
    save_file({key: value.contiguous() for key, value in harm(load_file(file)).items()}, file)
    with pytest.raises(AdapterError, match=said):
        attach(adapter)


@pytest.mark.parametrize("offsets", [[0, 2**60], [8, 4], [-1, 4], [0, 1], [2**63, 2**64 - 1]])
def test_a_safetensors_header_that_lies_is_refused(adapter: Path, offsets: list[int]) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2**60], "data_offsets": offsets}}).encode()
    (adapter / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(AdapterError, match="not a complete safetensors file"):
        attach(adapter)


@pytest.mark.parametrize(
    "text",
    [
        '{"text": ' + "[" * 10_000 + "]" * 10_000 + "}",
        '{"text": 1e400}',
        '{"text": NaN}',
        '{"text": -Infinity}',
        '{"text": ' + "9" * 5000 + "}",
        '{"text": "\\ud800"}',
        '{"\\udfff": "x"}',
    ],
    ids=["deep", "1e400", "NaN", "Infinity", "5,000 digits", "half a character", "in a name"],
)
@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_json_that_python_alone_understands_is_refused_by_row(tmp_path: Path, text: str, ending: str) -> None:
    (tmp_path / f"rows.{ending}").write_text(f"[{text}]" if ending == "json" else text, encoding="utf-8")
    with pytest.raises(DataError, match=r"rows\.jsonl?"):
        read(str(tmp_path / f"rows.{ending}"))


def test_a_line_end_in_a_completion_ends_no_row(tmp_path: Path) -> None:
    """U+2028 ends a line for str.splitlines, and stands in JSON as it is: the samples behind it were lost."""
    rows = [{"step": n, "completion": "a\u2028b\u0085c"} for n in range(3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "samples.jsonl").write_text(text, encoding="utf-8")
    assert rows_of(tmp_path / "samples.jsonl") == rows
    RunDirectory(tmp_path).truncate_lines("samples.jsonl", 1)
    assert rows_of(tmp_path / "samples.jsonl") == rows[:2]


@pytest.mark.parametrize("value", [[], {}, {"base_model_name_or_path": 5}, "x"])
def test_an_adapter_that_names_no_base_is_refused(adapter: Path, value: object) -> None:
    (adapter / "adapter_config.json").write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(TruingError):
        open_result(adapter)
