"""`truing verify`."""

from __future__ import annotations

from pathlib import Path

import click


class _Steps(click.ParamType[int]):
    """A number of steps, or all of them."""

    name = "N|all"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == "all":
            return 1 << 62
        if text.isdecimal() and int(text) > 0:
            return int(text)
        return self.fail(f"'{text}' is not a number of steps; give one from 1 on, or all", param, ctx)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--replay", type=_Steps(), help="Train the first N steps of each stage again, and compare every figure.")
def verify(run: Path, replay: int | None) -> None:
    """Check that RUN still holds what it wrote: files, data, start, metrics, and that its result answers as it did.

    With --replay all, that a run which was stopped and resumed is identical to an uninterrupted one. Nothing in RUN is
    changed.
    """
    from truing.build.verify import verify_run
    from truing.training.progress import reporter

    verify_run(run, replay, reporter())
