"""What the process does from which lives are forked: all that each would do anew, and nothing that starts a thread."""

from __future__ import annotations

import torch
import transformers.models.llama.modeling_llama
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import tests.faults.points
import truing.build.chain
import truing.report.write
from truing.models.calibration import Widths, calibrate
from truing.objectives.registry import discover
from truing.recipe.schema import Recipe

__all__ = ["AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer", "Recipe", "tests", "truing"]

torch.set_num_threads(1)
transformers.logging.set_verbosity_error()
discover()
calibrate(torch.device("cpu"), Widths(48, 128, 2))  # those of the tiny model
