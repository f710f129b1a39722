"""Tables of what tests leave: the fuzzer's, the soak's and the lifetimes'."""

from __future__ import annotations

from results import machine_line, result

from table_parts.cells import table

FUZZED = {
    "cases": "cases",
    "error": "a clear error",
    "right": "right data",
    "replaced": "right, the image replaced",
    "outside": "right, damage outside the crop",
    "finding": "**neither**",
}


def fuzzing() -> str:
    """Damaged files of each kind, and what came of them."""
    document = result("fuzzing")
    kinds = document["kinds"]
    rows = [[kind, *(f"{found[key]:,}" for key in FUZZED)] for kind, found in kinds.items()]
    totals = [sum(found[key] for found in kinds.values()) for key in FUZZED]
    rows.append(["**all**", *(f"{total:,}" for total in totals)])
    checked = "; ".join(
        f"{run['what']}: {sum(found['cases'] for found in run['kinds'].values()):,} cases more"
        for run in document["checked"].values()
    )
    measured = f"seed {document['configuration']['seed']}; {checked}"
    head = ["what is damaged", *FUZZED.values()]
    return table(head, rows, machine_line(document, measured))


def lifetimes() -> str:
    """What loaders leave behind."""
    document = result("lifetimes")
    setup, rows = document["configuration"], []
    for name, way in document["ways"].items():
        first, last = way["readings"][0], way["readings"][-1]
        kept = [f"{first[what]:,.0f}, {last[what]:,.0f}" for what in ("python_threads", "files")]
        middle = way["readings"][len(way["readings"]) // 2]
        memory = ", ".join(f"{taken['memory_mb']:.1f}" for taken in (first, middle, last))
        rows.append([name, *kept, memory, f"{way['kb_a_cycle']:+.2f}"])
    head = [
        "a pass ends by",
        "threads before, after",
        "open files",
        "MB before, half-way, after",
        "KB a cycle",
    ]
    measured = f"{setup['cycles']:,} cycles each, memory over the last half of them"
    return table(head, rows, machine_line(document, measured))


def soak() -> str:
    """What an hour of random scenarios did."""
    document = result("soak")
    setup, memory = document["configuration"], document["memory_mb"]
    rows = [[what, f"{count:,}"] for what, count in document["counts"].items()]
    rows += [
        [
            "memory at the beginning, at the end, at most",
            ", ".join(f"{memory[key]:,.0f} MB" for key in ("first", "last", "most")),
        ],
        ["**differences, threads or files left**", f"{len(document['problems'])}"],
    ]
    measured = f"{setup['rounds']:,} scenarios in {setup['minutes']:.0f} minutes"
    return table(["what", "how many"], rows, machine_line(document, measured))
