"""`watermark --recipient-mark`: a copy of the encoder that is marked for one recipient."""

from __future__ import annotations

from pathlib import Path

from sslguard.cli.checks import check
from sslguard.cli.chosen import Chosen
from sslguard.cli.options import Machine, Output
from sslguard.cli.output import Result, command

HEAD_ALONE = (
    "the mark is a last step behind the network, for an API: weights without it answer as the clean encoder does"
)


def for_recipient(
    encoder: str,
    name: str,
    key: Path,
    data: str,
    out: Path,
    settings: Chosen,
    machine: Machine,
    output: Output,
) -> Result:
    """Mark a copy of a key's clean encoder for one recipient, and return what is said of it.

    Args:
        encoder: Clean encoder.
        name: Name of the recipient.
        key: Folder of the key.
        data: Items that the key was made with.
        out: Folder of the result.
        settings: What the user chose of the training.
        machine: Devices and precision.
        output: How results are printed.
    """
    check(encoders=[encoder], data=[data], key=key)

    from sslguard import api

    table = settings.table("exact")
    mode = table.pop("mode", "distilled")
    made = api.watermark_for(
        *(name, key, data),
        encoder=encoder,
        out=out,
        mode=mode,
        settings=table,
        progress=output.progress,
        **machine.loop(),
    )
    took = made.taken is None or made.taken.took
    rows = [
        ("encoder", str(out / "encoder")),
        ("recipient", name),
        *([("head", HEAD_ALONE)] if mode == "head" else []),
        *([] if made.taken is None else made.taken.rows()),
    ]
    fields = {"encoder": str(out / "encoder"), "recipient": name, "took": took, **made.encoder.record}
    after = f"{command('trace', key, 'SUSPECT', '--data', 'HELD_OUT')}, once there is a suspect"
    return Result(fields, rows, 0 if took else 1, next=after, timed=True)
