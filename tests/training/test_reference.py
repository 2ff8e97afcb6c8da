"""The cache of reference log-probs: what is read from it is what was put in, or nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from truing.training.reference import LogprobStore

VALUES = {f"{n:02x}" * 32: np.arange(n + 1, dtype=np.float32) / 3 for n in range(4)}


def written(folder: Path) -> LogprobStore:
    store = LogprobStore(folder, "model float32 highest")
    for digest, values in VALUES.items():
        store.put(digest, values)
    store.save()
    return store


def read(folder: Path) -> LogprobStore:
    return LogprobStore(folder, "model float32 highest")


def test_what_was_put_in_is_read(tmp_path: Path) -> None:
    written(tmp_path)
    again = read(tmp_path)
    assert again.damage is None
    assert len(again) == len(VALUES)
    for digest, values in VALUES.items():
        assert np.array_equal(again.get([digest]), values)


def test_an_absent_cache_is_no_damage(tmp_path: Path) -> None:
    store = read(tmp_path)
    assert (store.damage, len(store)) == (None, 0)


def test_a_flipped_bit_anywhere_is_noticed_and_nothing_is_believed(tmp_path: Path) -> None:
    """In the size of the header, the header, the digests, the lengths, the numbers, and the hash itself."""
    file = written(tmp_path).file
    sound = file.read_bytes()
    for place in range(len(sound)):
        file.write_bytes(sound[:place] + bytes([sound[place] ^ (1 << place % 8)]) + sound[place + 1 :])
        store = read(tmp_path)
        if store.damage is None:  # white space of the header, which means nothing
            assert {digest: store.get([digest]).tolist() for digest in VALUES} == {
                k: v.tolist() for k, v in VALUES.items()
            }
            assert chr(sound[place]).isspace()
        else:
            assert len(store) == 0
            assert store.damage.startswith(f"{file} is damaged (")
            assert store.damage.endswith("and is computed again")


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 100, -1])
def test_a_cut_cache_is_noticed_and_written_anew(tmp_path: Path, cut: int) -> None:
    file = written(tmp_path).file
    file.write_bytes(file.read_bytes()[:cut])
    assert read(tmp_path).damage is not None
    written(tmp_path)
    assert (read(tmp_path).damage, len(read(tmp_path))) == (None, len(VALUES))
