"""The lines of Python that load a result with transformers, or with peft."""

from __future__ import annotations

from truing.build.card_facts import CardFacts
from truing.models.nf4 import ARGUMENTS

FOLDER = "path/to/this/folder"
"""What a reader puts their own path or hub id for."""


def loading_code(facts: CardFacts) -> str:
    """Imports, model, tokenizer, and one use of both."""
    auto = "AutoModelForSequenceClassification" if facts.scores else "AutoModelForCausalLM"
    lines = [f"from transformers import {auto}, AutoTokenizer", "", f'folder = "{FOLDER}"']
    if facts.adapter:
        lines.insert(0, "from peft import PeftConfig, PeftModel")
        more = ", num_labels=1" if facts.scores else ""
        lines.append("base = PeftConfig.from_pretrained(folder).base_model_name_or_path  # or where you have the base")
        if facts.packed:
            lines[1] = lines[1].replace("AutoTokenizer", "AutoTokenizer, BitsAndBytesConfig")
            arguments = ", ".join(f"{name}={value!r}" for name, value in ARGUMENTS.items())
            lines.append(f"nf4 = BitsAndBytesConfig({arguments})  # as trained")
            more += ", quantization_config=nf4"
        lines.append(f"model = PeftModel.from_pretrained({auto}.from_pretrained(base{more}), folder)")
    else:
        lines.append(f"model = {auto}.from_pretrained(folder)")
    lines += ["tokenizer = AutoTokenizer.from_pretrained(folder)", ""]
    return "\n".join([*lines, *(_score(facts) if facts.scores else _answer(facts))])


def _answer(facts: CardFacts) -> list[str]:
    if facts.template.source is None:
        ids = ['ids = tokenizer("Hello", return_tensors="pt").input_ids']
    else:
        ids = [
            'messages = [{"role": "user", "content": "Hello"}]',
            "ids = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=False',
            ")",
        ]
    return [
        *ids,
        "answer = model.generate(input_ids=ids, max_new_tokens=32)",
        "print(tokenizer.decode(answer[0, ids.shape[1] :], skip_special_tokens=True))",
    ]


def _score(facts: CardFacts) -> list[str]:
    if facts.template.source is None:
        ids = ['ids = tokenizer("A prompt. Its answer.", return_tensors="pt").input_ids']
    else:
        ids = [
            'messages = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello to you"}]',
            'ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=False)',
        ]
    return [*ids, "print(float(model(input_ids=ids).logits[0, 0]))"]
