"""The table of other people's training code: what XMixup changes in it, and what it costs there."""

from __future__ import annotations

import re
import statistics

from results import machine_line, result

from table_parts.cells import shares, table


def short(version: str) -> str:
    """A version, of a commit the first ten digits."""
    return re.sub(r"commit (\w{10})\w*", r"\1", version)


def clients() -> str:
    """Lines, what is lost, whether the samples go on, seconds per step."""
    document = result("clients")
    setup, rows = document["configuration"], []
    for found in document["clients"].values():
        times = found["seconds_per_step"]
        ratios = [b / a for a, b in zip(times["theirs"], times["ours"], strict=True)]
        timed = ["not measured", "", ""]
        if ratios:
            medians = (statistics.median(times[whose]) for whose in ("theirs", "ours"))
            timed = [*(f"{median:.3f} s" for median in medians)]
            timed.append(f"{shares(ratios)}, n = {found['rounds']}")
        resumed = found["resumed"]
        how = "goes on" if found["resumes"] else "starts anew"
        rows.append(
            [
                f"[{found['title']}]({found['repository']}), {short(found['version'])}",
                f"{found['added'] + found['removed']} ({found['added']} + {found['removed']})",
                "; ".join(found["lost"]) or "nothing",
                f"{how}: {'the same' if resumed['equal'] else '**others**'}",
                *timed,
            ]
        )
    images = " or ".join(
        str(count)
        for count in sorted({found["target_images"] for found in document["clients"].values()})
    )
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
        f"{images} target images, JPEGs of 256 px, {setup['epochs']} epochs and evaluations; "
        "medians, ratios within interleaved rounds with their range"
    )
    cpus = {found["machine"]["cpu"] for found in document["clients"].values()}
    if len(cpus) > 1:
        raise ValueError(f"the line under the table names one machine, and there are {cpus}")
    return table(head, rows, machine_line(document, measured))
