"""The part of a checkpoint that is cut over ranks: torch's distributed checkpoint, as safetensors and nothing pickled.

Every rank writes its own cuts; whoever reads them, in whatever number, takes what it needs of all files.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

FOLDER = "shards"
"""Of a checkpoint."""


def write_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write tensors, each rank its cuts of them; all ranks together."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_shards(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Fill tensors, whole ones or cuts, with what was written under their names."""
    from torch import distributed
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    alone = not distributed.is_initialized()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a single process is told that it is one
        load(dict(into), storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=alone)
