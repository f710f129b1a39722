"""Tables of the methods on pre-trained weights; rows without a training yet are left out."""

from __future__ import annotations

import statistics
from typing import Any

from results import machine_line, result

from table_parts.cells import table
from table_parts.training import difference

NAME = "transfer_accuracy_pretrained"
L2, XMIXUP_END = "L2", "XMixup, unmixed end"
HALF = f"{XMIXUP_END}, 0.5 x the iterations"
"""What the sweeps change one thing of."""


def pretrained() -> str:
    """Every method with as many iterations, and Co-Train also with as much compute."""
    document = result(NAME)
    base, rows = accuracies(document, L2), []
    for row in document["configuration"]["rows"]:
        values = accuracies(document, row["name"])
        if not values or (row["times"] != 1 and row["method"] != "cotrain"):
            continue
        chosen = document["chosen"].get(row["like"] or row["name"], {})
        options = {**chosen, **row["fixed"]}
        text = ", ".join(
            f"{name.removeprefix('mix_')} {shown(value)}" for name, value in options.items()
        )
        apart = "" if row["name"] == L2 else paired(values, base)
        rows.append([row["name"], mean(values), str(len(values)), apart, text])
    head = ["method", "top-1, %", "n", "minus L2, points (95 % interval)", "options"]
    return table(head, rows, line(document))


def pretrained_iterations() -> str:
    """L2 and XMixup by the number of iterations."""
    document, rows = result(NAME), []
    setup = document["configuration"]
    for iterations, (plain, mixed) in by_length(document).items():
        epochs = iterations * setup["batch_size"] // setup["images"]["target-train"]
        rows.append(
            [f"{iterations:,}", str(epochs), mean(plain), mean(mixed), paired(mixed, plain)]
        )
    head = ["iterations", "epochs", f"{L2}, %", f"{XMIXUP_END}, %", "difference, points"]
    return table(head, rows, line(document))


def by_length(document: dict[str, Any]) -> dict[int, list[dict[int, float]]]:
    """Accuracies of L2 and of XMixup, by iterations, where there are both."""
    setup, found = document["configuration"], {}
    for times in sorted({row["times"] for row in setup["rows"]}):
        end = "" if times == 1 else f", {times:.3g} x the iterations"
        both = [accuracies(document, name + end) for name in (L2, XMIXUP_END)]
        if all(both):
            found[round(times * setup["iterations"])] = both
    return found


def by_alpha(document: dict[str, Any]) -> dict[float, dict[int, float]]:
    """Accuracies of XMixup with half the iterations, by α, where there is a training."""
    found = {}
    for row in document["configuration"]["rows"]:
        alpha = row["fixed"].get("mix_alpha")
        if row["name"] == HALF:
            alpha = document["chosen"].get("XMixup", {}).get("mix_alpha")
        if row["name"].startswith(HALF) and alpha and accuracies(document, row["name"]):
            found[alpha] = accuracies(document, row["name"])
    return dict(sorted(found.items()))


def pretrained_changes() -> str:
    """One thing changed at a time in XMixup, with half the iterations."""
    document = result(NAME)
    base, rows = accuracies(document, HALF), []
    for row in document["configuration"]["rows"]:
        values = accuracies(document, row["name"])
        if values and base and row["name"].startswith(HALF):
            label = row["name"].removeprefix(HALF).removeprefix(", ")
            images = document["configuration"]["selected"].get(row["pairing"])
            apart = paired(values, base) if label else ""
            rows.append([label or "as in the first table", f"{images:,}", mean(values), apart])
    head = [XMIXUP_END, "source images", "top-1, %", "difference, points"]
    return table(head, rows, line(document))


def pretrained_networks() -> str:
    """What is left of the source, and the smallest singular values."""
    rows, groups = [], []
    document = result(NAME)
    looked_at = {"as loaded": document.get("as loaded")}
    looked_at |= {
        run["task"]["row"]: run["network"] for run in document["runs"] if "network" in run
    }
    for name, network in looked_at.items():
        if network:
            groups = list(network["probe"])
            smallest = ", ".join(f"{value:.3f}" for value in network["singular_values"][-3:])
            shares = [f"{100 * share:.1f}" for share in network["probe"].values()]
            rows.append([name, *shares, smallest])
    head = ["network", *(f"{group}, %" for group in groups), "smallest singular values"]
    return table(head, rows, line(document))


def accuracies(document: dict[str, Any], name: str) -> dict[int, float]:
    """Of a row's trainings on all of the target, by seed."""
    return {
        run["task"]["seed"]: run["accuracy"]
        for run in document["runs"]
        if run["task"]["row"] == name and run["task"]["test"] == "target-test"
    }


def mean(values: dict[int, float]) -> str:
    """Percent, with the deviation where there are several."""
    text = f"{100 * statistics.mean(values.values()):.2f}"
    return text if len(values) < 2 else f"{text} ± {100 * statistics.stdev(values.values()):.2f}"


def paired(values: dict[int, float], base: dict[int, float]) -> str:
    """Difference over the seeds that both have, with its interval where there are several."""
    both = sorted(values.keys() & base.keys())
    if len(both) >= 2:
        return difference([values[seed] for seed in both], [base[seed] for seed in both])
    return "".join(f"{100 * (values[seed] - base[seed]):+.2f}" for seed in both)


def shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value).lower()


def line(document: dict[str, Any]) -> str:
    """How it was measured."""
    setup, budget = document["configuration"], document["configuration"]["budget"]
    images = setup["images"]
    sources = [count for name, count in images.items() if name.startswith("source-")]
    cpus = sorted({run["cpu"] for run in document["runs"]})
    held = sum(map(len, setup["held_out"].values()))
    measured = (
        f"EfficientNet-Lite0 with ImageNet weights; target {images['target-train']} images of "
        f"{len(setup['held_out'])} kinds of flowers ({images['target-test']} in the test), source "
        f"{' + '.join(map(str, sources))} images of ImageNet; crops of {setup['crop']} px, batch "
        f"{setup['batch_size']}, {setup['iterations']:,} iterations, last iterate; two settings a "
        f"method, chosen on {held} held-out training images after {setup['tuning_iterations']} "
        f"iterations; {len(document['runs'])} trainings so far of a plan of {budget['total']:.0f} "
        f"times {budget['unit']}{_beyond_the_plan(document)}; done on {', '.join(cpus)}"
    )
    return machine_line(document, measured)


def _beyond_the_plan(document: dict[str, Any]) -> str:
    """What was decided on when other trainings had ended."""
    setup = document["configuration"]
    more = [
        f"seeds of {row['name']}"
        for row in setup["rows"]
        if not (row["matters"] or setup["every_row"]) and len(accuracies(document, row["name"])) > 1
    ]
    added = [name for name in document.get("added", []) if accuracies(document, name)]
    return f" and, beyond it, of {', '.join([*more, *added])}" if more or added else ""
