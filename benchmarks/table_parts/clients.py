"""The table of other people's training code: what XMixup changes in it, and what it costs there."""

from __future__ import annotations

import statistics

from results import machine_line, result

from table_parts.cells import shares, table


def clients() -> str:
    """Lines, what is lost, whether the samples go on, seconds per step."""
    document = result("clients")
    setup, rows = document["configuration"], []
    for name, found in document["clients"].items():
        times = found["seconds_per_step"]
        ratios = [b / a for a, b in zip(times["theirs"], times["ours"], strict=True)]
        resumed = found["resumed"]
        how = "goes on" if found["resumes"] else "starts anew"
        rows.append(
            [
                f"[{found['title']}]({found['repository']})",
                f"{found['added'] + found['removed']} ({found['added']} + {found['removed']})",
                "; ".join(found["lost"]) or "nothing",
                f"{how}: {'the same' if resumed['equal'] else '**others**'}",
                f"{statistics.median(times['theirs']):.3f} s",
                f"{statistics.median(times['ours']):.3f} s",
                f"{shares(ratios)}, n = {found['rounds']}",
            ]
        )
        assert name and found["machine"]["cpu"]
    images = " or ".join(
        str(count)
        for count in sorted({found["target_images"] for found in document["clients"].values()})
    )
    cpus = {found["machine"]["cpu"] for found in document["clients"].values()}
    head = [
        "training code",
        "lines changed (added + removed)",
        "lost",
        "samples after an interrupt",
        "a step, theirs",
        "a step, ours",
        "ours / theirs",
    ]
    measured = (
        f"{images} target images, JPEGs of 256 px, {setup['epochs']} epochs and evaluations; medians, "
        "ratios within interleaved rounds with their range"
    )
    assert len(cpus) == 1, "the line under the table names one machine"
    return table(head, rows, machine_line(document, measured))
