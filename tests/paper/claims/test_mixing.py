"""The claim about related words: borne out by a planted chain, and by nothing that surface, embedding or chance give."""

import numpy as np
import pytest
import xarray as xr

import pycotmech as pcm
from pycotmech.cot.analyses.pair_probes import PairProbes
from pycotmech.paper.claims.mixing import CLAIM
from tests.cot.analyses.relation_cases import apart_by_distance, chained, rooted
from tests.reference.planted import models as planted
from tests.reference.tiny import tiny_llama


def verdict(found):
    return CLAIM.verdict({"pair_probes": found})


def probes(hits, held, *, embedding=10, surface=10, random=10, stated=18, n=12, pairs=20, definition="right"):
    """PairProbes over the depths 0 .. len(held) - 1: right answers of `pairs` at depth 0, and at the others [question], and
    those of the baselines."""
    depths = len(held)
    hits = np.stack([np.broadcast_to(embedding, n), *[np.broadcast_to(hits, n)] * (depths - 1)], 1)  # [question, depth]
    confusion = np.zeros((n, depths, 1, 2, 2))
    confusion[..., 0, 0], confusion[..., 0, 1] = hits[..., None], pairs - hits[..., None]
    same = lambda x: np.broadcast_to(np.asarray(x, float)[..., None, None] / pairs, (n, depths, 1))  # noqa: E731
    axes = ("example", "depth", "probe")
    data = {
        "confusion": ((*axes, "label", "predicted"), confusion),
        "random": (axes, same(np.broadcast_to(random, n))),
        "stated": (axes, same(np.full(n, stated))),
        "surface": ("example", np.broadcast_to(np.asarray(surface, float), n) / pairs),
        "held_out": (axes[1:], np.asarray(held, float)[:, None]),
        "random_held_out": (axes[1:], np.full((depths, 1), 0.5)),
    }
    settings = {"definition": definition, "n_layers": depths - 1, "train": 80, "samples": 320}
    coords = {"depth": np.arange(depths), "probe": ["bilinear"]}
    return PairProbes(xr.Dataset(data, coords=coords), {"settings": settings})


HELD = [0.5, 0.6, 0.9, 0.7]
SPREAD = np.array([-3, 3] * 6)


def test_it_is_borne_out_above_every_null_only():
    gained = verdict(probes(14 + SPREAD / 3, HELD))
    assert gained.word == "borne out" and "70% [" in gained.evidence and "at depth 2 of 3" in gained.evidence
    assert "on words that one sentence relates, its accuracy is 90%" in gained.evidence
    assert gained.null == "surface 50% in each unit, embedding 50% in each unit, random weights 50% in each unit"
    for name in ("surface", "embedding", "random"):
        told = "random weights" if name == "random" else name
        same = verdict(probes(14 + SPREAD / 3, HELD, **{name: 14 - SPREAD / 3}))
        assert same.word != "borne out" and f"No gain remains above {told}" in same.evidence
        worse = verdict(probes(14 + SPREAD / 3, HELD, **{name: 17}))
        assert worse.word == "not borne out" and worse.evidence.endswith(f"not so: above {told}")


def test_a_small_gain_is_denied_and_a_vague_one_is_open():
    assert verdict(probes(10 + SPREAD / 3, HELD)).word == "not borne out"
    vague = verdict(probes(11 + 2 * SPREAD, HELD))
    assert vague.word == "not decided" and "open: above surface" in vague.evidence
    assert verdict(probes(14, HELD, n=4)).word == "not decided"  # four units that agree decide nothing


def test_a_probe_that_finds_nothing_stated_either_leaves_it_open():
    blind = verdict(probes(10 + SPREAD / 3, HELD, stated=10))
    assert blind.word == "not decided" and "may miss what is there" in blind.evidence


def test_the_depth_is_one_of_the_lower_two_thirds_and_chosen_on_other_questions():
    late = probes(10 + SPREAD / 3, [0.5, 0.4, 0.4, 0.9])
    late.data["confusion"][:, 3] = 0
    late.data["confusion"][:, 3, :, 0, 0] = 20  # the last depth alone knows
    assert late.choice() == ("bilinear", 1) and verdict(late).word == "not borne out"


def test_the_papers_classes_decide_nothing():
    found = verdict(probes(14 + SPREAD / 3, HELD, definition="paper"))
    assert found.word == "not decided" and "cannot show that a model encodes the relation" in found.evidence


def test_a_planted_chain_bears_it_out():
    found = verdict(pcm.cot.pair_probes(rooted(), questions=chained(100)))
    assert found.word == "borne out", found


def test_labels_that_are_distances_do_not():
    """A model that knows positions, and classes that differ in distance: the probe is right and nothing is shown."""
    found = pcm.cot.pair_probes(planted.nothing().model, questions=apart_by_distance(48))
    probe, depth = found.choice()
    assert float(found.accuracy()["mean"].sel(probe=probe, depth=depth)) > 0.8 and found.data["surface"].mean() > 0.99
    told = verdict(found)
    assert told.word == "not borne out" and "No gain remains above surface" in told.evidence
    three = pcm.cot.pair_probes(
        planted.nothing().model, questions=apart_by_distance(48, classes=3), definition="paper", piece="last"
    )
    assert three.data["surface"].mean() > 0.99 and verdict(three).word == "not decided"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("models", "most"), [(5, 1), pytest.param(40, 2, marks=pytest.mark.slow)])
def test_random_models_do_not(models, most):
    """At most 2 of 40 by chance, at a level of 2.5 % for each of the nulls together."""
    tokenizer = pcm.Model.from_pretrained("tiny-cot").tokenizer
    words = []
    for seed in range(models):
        hf = tiny_llama(n_layers=4, d_model=32, d_head=8, d_mlp=48, d_vocab=len(tokenizer), seed=seed)
        words.append(verdict(pcm.cot.pair_probes(pcm.Model(hf, tokenizer, check=False), questions=40, seed=seed)).word)
    assert words.count("borne out") <= most, words
