"""Pairing against brute force, and pairings as files."""

from __future__ import annotations

import json
import logging
from itertools import permutations
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xmix_data import Centroids, PairedClass, Pairing, pair_classes
from xmix_data.pairing import pairs_table, shown_classes
from xmix_data.pairing.matching import cosine_similarity


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


def test_a_gpu_that_faiss_cannot_use_is_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its error is injected: without a GPU FAISS ends the process where it is asked for one."""
    random = np.random.default_rng(0)
    target, source = (random.random((n, 16), dtype=np.float32) for n in (5, 9))
    expected = cosine_similarity(target, source)

    def full(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("Error in allocMemory at StandardGpuResources.cpp:1:\nout of memory\n")

    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1, raising=False)
    monkeypatch.setattr(faiss, "pairwise_distance_gpu", full, raising=False)
    # A FAISS for CPUs has none.
    monkeypatch.setattr("xmix_data.pairing.matching._gpu_resources", lambda faiss: None)
    with caplog.at_level(logging.WARNING, "xmix_data"):
        assert np.array_equal(cosine_similarity(target, source), expected)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == "FAISS cannot use the GPU, and computes on the CPU: out of memory"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_full_gpu_leaves_the_cosines_to_the_cpu(caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("faiss")
    if not getattr(faiss, "get_num_gpus", int)():
        pytest.skip("needs a FAISS built for GPUs")
    random = np.random.default_rng(0)
    target, source = (random.random((n, 512), dtype=np.float32) for n in (2000, 50_000))
    with caplog.at_level(logging.WARNING, "xmix_data"):
        on_gpu = cosine_similarity(target, source)
        assert not caplog.records
        torch.cuda.empty_cache()
        taken = torch.empty(torch.cuda.mem_get_info()[0] - (64 << 20), dtype=torch.uint8, device=0)
        on_cpu = cosine_similarity(target, source)
    del taken
    torch.cuda.empty_cache()
    assert "FAISS cannot use the GPU" in caplog.records[0].getMessage()
    assert np.abs(on_gpu - on_cpu).max() < 1e-5


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
def test_in_order_takes_the_best_that_is_left_target_after_target(
    case: tuple[Centroids, Centroids],
) -> None:
    target, source = case
    cosines = cosine_similarity(target.values, source.values)
    expected: list[int] = []
    for row in cosines:
        left = [s for s in range(len(row)) if s not in expected]
        expected.append(max(left, key=lambda s: (row[s], -s)))
    assert [p[0] for p in ids(pair_classes(target, source, method="in-order"))] == expected


def test_greedy_looks_further_than_its_candidates() -> None:
    """All target classes want the same source classes, more than are put in order at a time."""
    random = np.random.default_rng(3)
    n, m = 150, 400
    common = random.normal(size=(1, 16))
    target = centroids(common + 0.01 * random.normal(size=(n, 16)), "t")
    source = centroids(random.normal(size=(m, 16)), "s")
    cosines = cosine_similarity(target.values, source.values)
    chosen = [paired[0] for paired in ids(pair_classes(target, source))]
    assert chosen == greedy_by_definition(cosines)
    same = centroids(np.ones((200, 2)), "s")
    assert [p[0] for p in ids(pair_classes(centroids(np.ones((90, 2)), "t"), same))] == [*range(90)]


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


@given(problems(), st.sampled_from(["greedy", "in-order", "optimal", "random"]))
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


def test_a_strict_stop_shares_the_most_similar_class_that_was_selected() -> None:
    target = centroids([[1, 0, 0], [0, 1, 0], [0.9, 0.1, 0]], "t")
    source = centroids([[1, 0.01, 0], [0, 1, 0.02], [1, 0.5, 0.4], [0, 0.1, 1]], "s")
    pairing = pair_classes(target, source, min_images=11, strict=True)
    assert ids(pairing) == [[0], [1], [0]]  # two classes have 20 images; t2 shares
    assert pairing.num_images == 20
    more = pair_classes(target, source, min_images=31, strict=True)
    assert ids(more) == [[0], [1, 3], [2]]
    assert more.num_images == 40
    with pytest.raises(ValueError, match="exhausted: 2 rounds select 40 images, 41 are wanted"):
        pair_classes(target, source, min_images=41, strict=True)


def test_shrinking_samples_the_selected_images() -> None:
    random = np.random.default_rng(4)
    target = centroids(random.normal(size=(3, 8)), "t")
    source = centroids(random.normal(size=(12, 8)), "s", random.integers(20, 90, 12))
    default = pair_classes(target, source, rounds=3)
    for size in (3, 50, default.num_images - 1, default.num_images):
        small = pair_classes(target, source, rounds=3, num_images=size)
        assert small.num_images == size
        for name, paired in small.pairs.items():
            full = {p.name: p.images for p in default.pairs[name]}
            assert paired and all(0 < p.images <= full[p.name] for p in paired)
            assert all((p.first is None) == (p.images == full[p.name]) for p in paired)
    with pytest.raises(ValueError, match="at least one image for each"):
        pair_classes(target, source, num_images=2)


def test_growing_adds_the_most_similar_unused_class() -> None:
    random = np.random.default_rng(5)
    target = centroids(random.normal(size=(3, 8)), "t")
    source = centroids(random.normal(size=(12, 8)), "s", np.full(12, 10))
    cosines = cosine_similarity(target.values, source.values)
    used = {p[0] for p in ids(pair_classes(target, source))}
    expected = sorted((s for s in range(12) if s not in used), key=lambda s: -cosines[:, s].max())
    grown = pair_classes(target, source, num_images=55)
    assert grown.num_images == 55
    added = {p.name: (name, p.images) for name, ps in grown.pairs.items() for p in ps[1:]}
    assert {name: owner for name, (owner, _) in added.items()} == {
        f"s{s}": f"t{cosines[:, s].argmax()}" for s in expected[:3]
    }
    assert added[f"s{expected[2]}"][1] == 5  # the last class gives what is missing
    assert pair_classes(target, source, num_images=120).num_images == 120
    with pytest.raises(ValueError, match="all 12 source classes together have 120"):
        pair_classes(target, source, num_images=121)


def test_random_images_are_dealt_once_each() -> None:
    random = np.random.default_rng(6)
    target = centroids(random.normal(size=(4, 8)), "t")
    source = centroids(random.normal(size=(9, 8)), "s", random.integers(5, 40, 9))
    greedy = pair_classes(target, source, rounds=2)
    pairing = pair_classes(target, source, rounds=2, method="random-images")
    assert pairing.num_images == greedy.num_images
    dealt = [
        (p.name, i)
        for paired in pairing.pairs.values()
        for p in paired
        for i in range(p.first or 0, (p.first or 0) + p.images)
    ]
    assert len(dealt) == len(set(dealt)) == greedy.num_images
    counts = dict(zip(source.class_names, source.counts.tolist(), strict=True))
    assert all(i < counts[name] for name, i in dealt)
    shares = [sum(p.images for p in paired) for paired in pairing.pairs.values()]
    assert max(shares) - min(shares) <= 1
    whole = pair_classes(target, source, method="random-images", num_images=sum(counts.values()))
    assert whole.num_images == sum(counts.values())
    with pytest.raises(ValueError, match="random images are wanted"):
        pair_classes(target, source, method="random-images", num_images=10_000)


def test_similarity_tells_each_methods_objective() -> None:
    random = np.random.default_rng(7)
    target, source = (centroids(random.normal(size=(k, 6)), p) for k, p in ((7, "t"), (20, "s")))
    cosines = cosine_similarity(target.values, source.values)
    pairing = pair_classes(target, source)
    similarity = pairing.similarity
    assert similarity is not None
    for method, mean in similarity.by_method.items():
        made = pair_classes(target, source, method=method)
        assert made.mean_cosine == pytest.approx(mean, abs=1e-6)
    by_method = similarity.by_method
    assert by_method["optimal"] >= max(by_method["greedy"], by_method["in-order"])
    assert similarity.mean == pytest.approx(cosines.mean(), abs=1e-6)
    assert similarity.std == pytest.approx(cosines.std(), abs=1e-6)
    expected = cosines[:, [p[0] for p in ids(pairing)]]
    assert np.abs(similarity.matrix - expected).max() <= 0.0005001


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
        ({"rounds": 0}, "rounds is 0; give at least 1"),
        ({"num_images": 0}, "num_images is 0; give at least 1"),
        ({"strict": True}, "strict says where min_images stops"),
        ({"min_images": 9, "num_images": 9, "strict": True}, "strict says where min_images stops"),
        ({"seed": -1}, "seed is -1"),
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


DOMAIN = {"files": ["t.beton"], "fingerprints": ["sha256:1"]}


def test_a_pairing_survives_its_file(tmp_path: Path) -> None:
    target = Centroids(np.eye(2), [3, 4], ["Katze", "犬"], {"model": "m", "domains": [DOMAIN]})
    pairing = pair_classes(target, centroids(np.eye(2), "s"), method="optimal")
    path = tmp_path / "pairing.json"
    pairing.save(path)
    loaded = Pairing.load(path)
    assert loaded == pairing
    assert loaded.similarity is not None and pairing.similarity is not None
    assert np.array_equal(loaded.similarity.matrix, pairing.similarity.matrix)
    assert loaded.similarity.by_method == pairing.similarity.by_method
    assert loaded.source_classes == ["s0", "s1"]
    assert loaded.target["domains"] == [DOMAIN]
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
        (lambda d: json.dumps(d).replace("1.0", "NaN"), "impossible numbers"),
        (lambda d: json.dumps(d).replace('"images": 10', '"images": -1'), "impossible numbers"),
        (lambda d: json.dumps(d).replace('"images": 10', '"images": 2.5'), "integer"),
        (lambda d: json.dumps(d).replace('"images"', '"domain": 1, "images"'), "of source 1"),
        (lambda d: json.dumps({**d, "options": []}), "options is no object"),
        (lambda d: json.dumps({**d, "options": {"strict": "no"}}), "neither true nor false"),
        (lambda d: json.dumps(d).replace('"images": 10', '"images": true'), "true or false"),
        (lambda d: json.dumps(d).replace('"images": 10', '"images": 0'), "impossible numbers"),
        (lambda d: json.dumps(d).replace('"cosine": 1.0', '"cosine": "1"'), "lacks a number"),
        (
            lambda d: json.dumps(d).replace('"images"', '"frist": 1, "images"'),
            "unknown key 'frist'",
        ),
        (lambda d: json.dumps(d).replace('"std": 0.5', '"std": 1e308'), "impossible numbers"),
        (lambda d: json.dumps({**d, "options": {"seed": -1}}), "seed is -1"),
        (lambda d: json.dumps({**d, "similarity": {}}), "no 'matrix'"),
        (lambda d: json.dumps(d).replace("1.000 0.000", "1.000"), "damaged pairing"),
        (lambda d: json.dumps({**d, "source": {"domains": [{"files": [1]}]}}), "list of files"),
        (lambda d: "[" * 100_000, "damaged pairing"),
    ],
)
def test_a_damaged_pairing_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    path = tmp_path / "pairing.json"
    pair_classes(centroids(np.eye(2)), centroids(np.eye(2), "s")).save(path)
    path.write_text(edit(json.loads(path.read_text())))
    with pytest.raises(ValueError, match=message) as caught:
        Pairing.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"min_images": 15, "strict": True},
        {"num_images": 17},
        {"num_images": 77},
        {"method": "random-images", "num_images": 40},
    ],
)
def test_every_selection_survives_its_file(tmp_path: Path, options: dict[str, Any]) -> None:
    random = np.random.default_rng(8)
    target, source = (centroids(random.normal(size=(k, 6)), p) for k, p in ((5, "t"), (10, "s")))
    pairing = pair_classes(target, source, **options)
    pairing.save(tmp_path / "pairing.json")
    assert Pairing.load(tmp_path / "pairing.json") == pairing


def test_parts_of_a_class_may_not_overlap(tmp_path: Path) -> None:
    def load(*parts: tuple[int | None, int]) -> Pairing:
        pairs = {f"t{i}": [PairedClass("s", 0.5, n, first)] for i, (first, n) in enumerate(parts)}
        Pairing(pairs).save(tmp_path / "pairing.json")
        return Pairing.load(tmp_path / "pairing.json")

    assert load((4, 3), (0, 4), (7, 1)).num_images == 8
    for parts in (((4, 3), (0, 5)), ((None, 9), (0, 1)), ((0, 1), (3, 2), (0, 1))):
        with pytest.raises(ValueError, match=r"'s' is paired with 't.' and again with 't.'"):
            load(*parts)


def test_a_pairing_made_by_hand_is_saved_if_it_can_be_loaded(tmp_path: Path) -> None:
    """Of NumPy's numbers, as somebody's own similarities are; what is wrong is said at once."""
    path = tmp_path / "pairing.json"
    made = Pairing({"t0": [PairedClass("s0", np.float32(0.5), np.int64(3))]})
    made.save(path)
    assert Pairing.load(path) == made
    before = path.read_bytes()
    for pairs in (
        {"t0": [PairedClass("s0", 0.5, 3)], "t1": [PairedClass("s0", 0.4, 3)]},
        {"t0": [PairedClass("s0", 1.0000001, 3)]},
        {"t0": []},
    ):
        with pytest.raises(ValueError, match=r"pairing\.json: the pairing cannot be saved, as "):
            Pairing(pairs).save(path)
        assert path.read_bytes() == before


def test_a_name_that_is_no_utf8_survives_its_file(tmp_path: Path) -> None:
    """A folder may be called anything."""
    pairing = Pairing({"caf\udce9": [PairedClass("\udcff", 0.5, 1)]})
    pairing.save(tmp_path / "pairing.json")
    assert Pairing.load(tmp_path / "pairing.json") == pairing


def test_many_classes_keep_a_part_of_their_similarities(tmp_path: Path) -> None:
    random = np.random.default_rng(9)
    target, source = (centroids(random.normal(size=(1201, 4)), p) for p in ("t", "s"))
    pairing = pair_classes(target, source)
    pairing.save(tmp_path / "pairing.json")
    loaded = Pairing.load(tmp_path / "pairing.json")
    shown = shown_classes(1201)
    assert loaded.similarity is not None and loaded.similarity.matrix.shape == (1000, 1000)
    cosines = [[*loaded.pairs.values()][t][0].cosine for t in shown]
    assert np.abs(np.diag(loaded.similarity.matrix) - cosines).max() < 0.001


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
    with pytest.raises(ValueError, match=r"2 classes and domains \(1,\)"):
        Centroids([[1, 2], [1, 3]], [1, 2], ["a", "b"], domains=np.zeros(1, np.int64))
    two = Centroids([[1, 2], [1, 3]], [1, 2], ["a", "a"], domains=np.arange(2))
    with pytest.raises(ValueError, match="two target classes are named 'a'"):
        pair_classes(two, two)


def without_features(classes: int, prefix: str) -> Centroids:
    names = [f"{prefix}{i}" for i in range(classes)]
    return Centroids(np.zeros((classes, 0)), np.full(classes, 10), names)


def test_random_classes_need_no_features(tmp_path: Path) -> None:
    target, source = without_features(3, "t"), without_features(8, "s")
    for options in ({}, {"rounds": 2}, {"min_images": 50}):
        made = pair_classes(target, source, method="random", seed=3, **options)  # type: ignore[arg-type]
        known = pair_classes(
            Centroids(np.eye(3, 8) + 0.1, target.counts, target.class_names),
            Centroids(np.eye(8) + 0.1, source.counts, source.class_names),
            method="random",
            seed=3,
            **options,  # type: ignore[arg-type]
        )
        assert {t: [p.name for p in ps] for t, ps in made.pairs.items()} == {
            t: [p.name for p in ps] for t, ps in known.pairs.items()
        }
        assert all(np.isnan(p.cosine) for ps in made.pairs.values() for p in ps)
        assert np.isnan(made.mean_cosine) and made.similarity is None
        made.save(tmp_path / "p.json")
        assert repr(Pairing.load(tmp_path / "p.json").pairs) == repr(made.pairs)
    assert "nan" not in "".join(pairs_table(made))
    for options in ({}, {"method": "random", "min_images": 20, "strict": True}):
        with pytest.raises(ValueError, match="the centroids have no features, which only pairs"):
            pair_classes(target, source, **options)  # type: ignore[arg-type]


def test_a_strict_stop_needs_no_class_for_each_target() -> None:
    values = np.eye(6) + 0.1
    target = Centroids(values, np.full(6, 5), [f"t{i}" for i in range(6)])
    source = Centroids(values[:4], np.full(4, 10), [f"s{i}" for i in range(4)])
    for method in ("greedy", "in-order", "optimal", "random"):
        made = pair_classes(target, source, method=method, min_images=25, strict=True)
        assert len(made.source_classes) == 3 and len(made.pairs) == 6
    with pytest.raises(ValueError, match="6 target classes take 6 source classes, and there are 4"):
        pair_classes(target, source, min_images=25)
