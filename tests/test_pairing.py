"""Pairing against brute force, and pairings as files."""

from __future__ import annotations

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xmix_data import Centroids, Pairing, pair_classes
from xmix_data.pairing import cosine_similarity


def centroids(values: Any, prefix: str = "c", counts: Any = None) -> Centroids:
    values = np.asarray(values, np.float32)
    names = [f"{prefix}{i}" for i in range(len(values))]
    return Centroids(values, np.full(len(values), 10) if counts is None else counts, names)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Centroids, Centroids]:
    n = draw(st.integers(1, 5))
    m = draw(st.integers(n, 7))
    coordinate = st.integers(-3, 3)

    def vectors(count: int) -> st.SearchStrategy[list[list[int]]]:
        vector = st.lists(coordinate, min_size=3, max_size=3).filter(any)
        return st.lists(vector, min_size=count, max_size=count)

    return centroids(draw(vectors(n)), "t"), centroids(draw(vectors(m)), "s")


def greedy_by_definition(cosines: np.ndarray) -> list[int]:
    """Take the best remaining pair until every target class has one."""
    pairs = sorted(
        (-cosines[t, s], t, s) for t in range(len(cosines)) for s in range(cosines.shape[1])
    )
    chosen: dict[int, int] = {}
    for _, t, s in pairs:
        if t not in chosen and s not in chosen.values():
            chosen[t] = s
    return [chosen[t] for t in range(len(cosines))]


def ids(pairing: Pairing) -> list[list[int]]:
    return [[int(p.name[1:]) for p in paired] for paired in pairing.pairs.values()]


@given(problems())
@settings(deadline=None, max_examples=200)
def test_greedy_takes_the_globally_best_remaining_pair(case: tuple[Centroids, Centroids]) -> None:
    """Small integer vectors make many ties: those go by (target, source) id."""
    target, source = case
    cosines = cosine_similarity(target.values, source.values)
    chosen = [paired[0] for paired in ids(pair_classes(target, source))]
    assert chosen == greedy_by_definition(cosines)


@given(problems())
@settings(deadline=None, max_examples=50)
def test_optimal_has_the_largest_sum(case: tuple[Centroids, Centroids]) -> None:
    target, source = case
    cosines = cosine_similarity(target.values, source.values)
    n, m = cosines.shape
    best = max(
        sum(cosines[t, s] for t, s in enumerate(order)) for order in permutations(range(m), n)
    )
    chosen = [paired[0] for paired in ids(pair_classes(target, source, method="optimal"))]
    assert len(set(chosen)) == n
    assert sum(cosines[t, s] for t, s in enumerate(chosen)) == pytest.approx(best, abs=1e-5)


@given(problems(), st.sampled_from(["greedy", "optimal", "random"]))
@settings(deadline=None)
def test_rounds_never_share_a_source_class(case: tuple[Centroids, Centroids], method: str) -> None:
    target, source = case
    rounds = len(source.class_names) // len(target.class_names)
    paired = ids(pair_classes(target, source, method=method, rounds=rounds))
    flat = [s for sources in paired for s in sources]
    assert len(flat) == len(set(flat)) == rounds * len(target.class_names)
    assert all(len(sources) == rounds for sources in paired)


def test_cosines_are_those_of_the_definition() -> None:
    random = np.random.default_rng(0)
    target, source = random.normal(size=(7, 33)), random.normal(size=(19, 33)) * 50
    expected = (target @ source.T) / (
        np.linalg.norm(target, axis=1)[:, None] * np.linalg.norm(source, axis=1)
    )
    found = cosine_similarity(target.astype(np.float32), source.astype(np.float32))
    assert np.abs(found - expected).max() < 2e-6
    pairing = pair_classes(centroids(target, "t"), centroids(source, "s"))
    for t, paired in enumerate(pairing.pairs.values()):
        assert paired[0].cosine == pytest.approx(expected[t, int(paired[0].name[1:])], abs=2e-6)


def test_similarity_is_maximised_and_not_distance() -> None:
    """Eq. 2 as the text means it: the class that points the same way, however long it is."""
    pairing = pair_classes(centroids([[1, 0]]), centroids([[0, 1], [100, 1], [-1, 0]], "s"))
    assert pairing.pairs["c0"][0].name == "s1"


def test_min_images_finishes_its_round() -> None:
    random = np.random.default_rng(1)
    target = centroids(random.normal(size=(3, 8)), "t")
    source = centroids(random.normal(size=(12, 8)), "s", np.full(12, 10))
    for wanted, rounds in ((1, 1), (30, 1), (31, 2), (120, 4)):
        pairing = pair_classes(target, source, min_images=wanted)
        assert pairing.options["rounds"] == rounds
        assert pairing.num_images == rounds * 30 >= wanted
        assert pairing == pair_classes(target, source, min_images=wanted)
    one = pair_classes(target, source, rounds=1)
    assert [p[0] for p in pair_classes(target, source, rounds=3).pairs.values()] == [
        p[0] for p in one.pairs.values()
    ]


def test_random_depends_on_the_seed_alone() -> None:
    random = np.random.default_rng(2)
    target, source = centroids(random.normal(size=(5, 4))), centroids(random.normal(size=(40, 4)))
    first, again, other = (
        ids(pair_classes(target, source, method="random", seed=s)) for s in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": centroids(np.eye(2), "s")}, "take 3 source classes, and there are 2"),
        ({"rounds": 2}, "take 6 source classes, and there are 5"),
        ({"rounds": 0}, "at least 1"),
        ({"rounds": 1, "min_images": 5}, "exclude each other"),
        ({"min_images": 51}, "exhausted: 1 rounds select 30 images, 51 are wanted"),
        ({"method": "best"}, "method is 'best'"),
        ({"source": centroids(np.ones((5, 7)), "s")}, "2 dimensions, source centroids 7"),
        ({"target": centroids([[1, 0], [0, 0], [1, 1]], "t")}, "'t1' has a centroid of zeros"),
        ({"target": centroids([[1, 0], [np.nan, 1], [1, 1]], "t")}, "'t1' has a centroid that is"),
        ({"target": centroids(np.ones((3, 2)), "t", [4, 4, 0])}, "class 't2' has no images"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_unusable_input_is_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "target": centroids([[1, 0], [0, 1], [1, 1]], "t"),
        "source": centroids([[1, 0], [0, 1], [1, 1], [2, 1], [1, 3]], "s"),
        **change,
    }
    with pytest.raises(ValueError, match=message):
        pair_classes(arguments.pop("target"), arguments.pop("source"), **arguments)


def test_a_pairing_survives_its_file(tmp_path: Path) -> None:
    target = Centroids(np.eye(2), [3, 4], ["Katze", "犬"], {"model": "m", "betons": ["sha256:1"]})
    pairing = pair_classes(target, centroids(np.eye(2), "s"), method="optimal")
    path = tmp_path / "pairing.json"
    pairing.save(path)
    loaded = Pairing.load(path)
    assert loaded == pairing
    assert loaded.source_classes == ["s0", "s1"]
    assert loaded.target["betons"] == ["sha256:1"]
    assert [p.name for p in tmp_path.iterdir()] == ["pairing.json"]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: "{", "damaged pairing"),
        (lambda d: "[]", "no document of format"),
        (lambda d: json.dumps({**d, "version": 9}), "its version is 9"),
        (lambda d: json.dumps({k: v for k, v in d.items() if k != "pairs"}), "no 'pairs'"),
        (lambda d: json.dumps({**d, "pairs": []}), "it pairs no classes"),
        (lambda d: json.dumps({**d, "pairs": d["pairs"] * 2}), "'c0' stands there twice"),
        (lambda d: json.dumps({**d, "pairs": [{"target": "x", "sources": []}]}), "'x' has no"),
        (lambda d: json.dumps(d).replace('"s1"', '"s0"'), "'s0' is paired with 'c0' and again"),
        (lambda d: json.dumps(d).replace("1.0", "7.0"), "impossible numbers"),
    ],
)
def test_a_damaged_pairing_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    path = tmp_path / "pairing.json"
    pair_classes(centroids(np.eye(2)), centroids(np.eye(2), "s")).save(path)
    path.write_text(edit(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message) as caught:
        Pairing.load(path)
    assert str(path) in str(caught.value)


def test_centroids_survive_their_file(tmp_path: Path) -> None:
    made = Centroids([[1, 2], [3, 4]], [5, 6], ["a", "ß"], {"model": "resnet18"})
    path = tmp_path / "centroids.npz"
    made.save(path)
    loaded = Centroids.load(path)
    assert np.array_equal(loaded.values, made.values) and loaded.values.dtype == np.float32
    assert loaded.counts.tolist() == [5, 6]
    assert (loaded.class_names, dict(loaded.provenance)) == (["a", "ß"], {"model": "resnet18"})
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="damaged, or no centroids"):
        Centroids.load(path)


def test_centroids_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="expected"):
        Centroids([[1, 2]], [1, 2], ["a"])
    with pytest.raises(ValueError, match="two classes are named 'a'"):
        Centroids([[1, 2], [1, 3]], [1, 2], ["a", "a"])
