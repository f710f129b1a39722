"""Tables of what tests leave: the fuzzer's, the soak's and the lifetimes'."""

from __future__ import annotations

import statistics

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
    """Damaged files of each kind, and what came of them; a later run of a kind counts."""
    documents = [result("fuzzing"), result("fuzzing_images")]
    kinds = {name: found for document in documents for name, found in document["kinds"].items()}
    rows = [[kind, *(f"{found[key]:,}" for key in FUZZED)] for kind, found in kinds.items()]
    totals = [sum(found[key] for found in kinds.values()) for key in FUZZED]
    rows.append(["**all**", *(f"{total:,}" for total in totals)])
    first, images = documents
    seeds = (
        f"{first['configuration']['seed']}; {', '.join(images['kinds'])}: seed "
        f"{images['configuration']['seed']} on {images['machine']['cpu']}"
    )
    more: dict[str, int] = {}
    for run in (run for document in documents for run in document["checked"].values()):
        count = sum(found["cases"] for found in run["kinds"].values())
        more[run["what"]] = more.get(run["what"], 0) + count
    checked = "; ".join(f"{what}: {count:,} cases more" for what, count in more.items())
    head = ["what is damaged", *FUZZED.values()]
    return table(head, rows, machine_line(first, f"seed {seeds}; {checked}"))


def damage() -> str:
    """What a conversion finds of the damage in JPEGs, beside Pillow alone."""
    document = result("damage")
    found, setup = document["found"], document["configuration"]
    keys = ("files", "kept", "by Pillow", "other pixels, accepted")

    def cells(name: str, kinds: list[dict[str, int]]) -> list[str]:
        return [name, *(f"{sum(kind.get(key, 0) for kind in kinds):,}" for key in keys)]

    runs = {name: counts for name, counts in found.items() if name != "header"}
    for counts in found.values():  # however a file is converted, the same ones are refused
        assert counts["256 px"] == counts["64 px"] == counts["kept"]
    rows = [
        cells(f"{name} byte{'s' * (name != '1')} of a scan overwritten", [counts])
        for name, counts in runs.items()
    ]
    rows.append(cells("**all of these**", list(runs.values())))
    rows.append(cells("bytes put into the header: no damage", [found["header"]]))
    times = document["milliseconds"]
    ratios = [a / b for a, b in zip(times["conversion"], times["Pillow"], strict=True)]
    measured = (
        f"{setup['sound']} photographs of {setup['file_bytes_per_image'] / 1000:.0f} KB, all taken "
        f"as they are; seed {setup['seed']}; CPU time of a conversion to 256 px over that of the "
        f"same steps by Pillow {statistics.median(ratios):.2f} ({min(ratios):.2f}-"
        f"{max(ratios):.2f}), n = {setup['rounds']} interleaved rounds"
    )
    head = [
        "what was done",
        "files",
        "refused",
        "refused by Pillow alone",
        "accepted, with other pixels",
    ]
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
    """What random scenarios did for long."""
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
