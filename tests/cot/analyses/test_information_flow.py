"""E8: graphs of planted circuits, edges against path patching in float64, the authors' construction against a naive one."""

import json
from typing import Any

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import information_flow as module
from pycotmech.cot.analyses.information_flow_figure import offsets
from pycotmech.cot.tools import cells as cells_module
from pycotmech.cot.tools import flow_exact, flow_paper
from pycotmech.cot.tools.activations import Prompt
from pycotmech.cot.tools.cost import workload
from pycotmech.cot.tools.flow_graph import Edge, Graph, Node
from tests.cot.analyses.flow_cases import activations_of, planted_activations, random_tokens
from tests.cot.analyses.interval_cases import keeps_its_ranges
from tests.reference import planted
from tests.reference.close import assert_allclose
from tests.reference.parts import layers_of, projection_of, tap
from tests.reference.paths import PathTruth
from tests.reference.small_families import small
from tests.reference.tiny import tiny_llama
from tests.reference.truth import double, hooked, logits_of
from tests.reference.windowed import registered, windowed


@pytest.fixture(scope="module")
def wide():
    return pcm.Model(double(tiny_llama(n_layers=3, n_key_value_heads=2)), check=False)


@pytest.fixture(scope="module")
def with_windows():
    with registered():
        return pcm.Model(double(windowed(windows=[0, 7, 12], n_key_value_heads=2)), check=False)


@pytest.fixture(scope="module", params=["wide", "with_windows"])
def any_wide(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def parallel():
    return pcm.Model(double(small("gpt_neox")), check=False)


@pytest.fixture(scope="module", params=["wide", "with_windows", "parallel"])
def any_block(request):
    """Also one whose MLPs read what attention reads."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def pair():
    clean = random_tokens(18)
    corrupted = clean.clone()
    corrupted[5], corrupted[9] = 4, 6
    return clean, corrupted


@pytest.fixture(scope="module")
def result(model, examples, every):
    return pcm.cot.information_flow(model, examples, steps=[0, 5], right=every)


def flow_of(model, clean, corrupted, freeze=False):
    """What follows from replacing things in the clean prompt by what they are in the other."""
    kept, other = (activations_of(model, [t], flow_exact.sites(model.cfg))[0] for t in (clean, corrupted))
    return flow_exact.Flow(model.family, kept, Prompt(clean, 7, 11), flow_exact.Sources(model.family, kept, other), freeze)


def exact(p, prompt, kept, **limits):
    flow = flow_exact.Flow(p.model.family, kept, prompt, flow_exact.Sources(p.model.family, kept))
    return flow_exact.grow(flow, flow_exact.Limits(**limits))[0]


def edges_of(graph):
    """{(parent head, child head or "token", position, input)}"""
    out = set()
    for e in graph.edges:
        child = graph.nodes[e.child][:2] if e.child >= 0 else "token"
        out.add((graph.nodes[e.parent][:2], child, e.position, e.input))
    return out


def check_dag(graph, length):
    for e in graph.edges:
        parent = graph.nodes[e.parent]
        assert 0 <= e.position <= parent.position < length
        if e.child >= 0:
            child = graph.nodes[e.child]
            assert child.layer < parent.layer and child.position == e.position
    assert all(n.depth == 0 for n in graph.nodes[: len(graph.writers)])
    assert len(set((*n[:3], n.depth == 0) for n in graph.nodes)) == len(graph.nodes)


# ---- what was planted ----------------------------------------------------------------------------------------------


def test_induction_is_recovered_as_writer_previous_token_head_and_tokens():
    p = planted.induction()
    writer, previous = p.heads["writer"], p.heads["previous"]
    for prompt, kept, where in planted_activations(p, 4):
        graph = exact(p, prompt, kept)
        assert graph.nodes[0][:2] == writer and graph.nodes[0].weight > 0.8
        assert all(n.weight < 0.4 for n in graph.nodes[1 : len(graph.writers)])  # the unembedding reads "previous" a little
        found, at = edges_of(graph), where.positions["answer"]
        assert (writer, previous, at, "k") in found  # by its keys it finds the place
        assert (writer, "token", at, "v") in found  # by its values it takes the word
        assert (writer, "token", prompt.read, "q") in found
        assert (previous, "token", where.positions["earlier"], "v") in found
        assert {n[:2] for n in graph.nodes} == {writer, previous}
        check_dag(graph, len(prompt.tokens))
        mended = flow_paper.grow(flow_paper.Lens(p.model.family, kept), prompt, flow_paper.Rules())
        assert mended.nodes[0][:3] == (*writer, prompt.read)  # behind it heads of noise that say the word by chance
        assert mended.nodes[mended.of(0)[0].child][:3] == (*previous, at)


def test_two_planted_writers_are_two_pathways_to_two_sources():
    p = planted.parallel()
    for prompt, kept, where in planted_activations(p, 4):
        graph = exact(p, prompt, kept)
        assert {n[:2] for n in graph.nodes if n.depth == 0} == {p.heads["question"], p.heads["generated"]}
        found = module.counts(graph, prompt)
        assert (found["writers"], found["with_source"], found["sources"], found["segments"]) == (2, 2, 2, 2)
        for role in ("question", "generated"):
            assert (p.heads[role], "token", where.positions[f"answer_{role}"], "v") in edges_of(graph)
        assert (p.heads["generated"], p.heads["marker"], where.positions["answer_generated"], "k") in edges_of(graph)


def test_a_chain_of_three_heads_is_followed():
    p = planted.relation()
    for prompt, kept, where in planted_activations(p, 3, seed=1):
        found = edges_of(exact(p, prompt, kept))
        at = where.positions["object"]
        assert (p.heads["writer"], p.heads["relate"], at, "v") in found
        assert (p.heads["relate"], "token", where.positions["answer"], "v") in found
        assert (p.heads["relate"], p.heads["previous"], at, "q") in found


def test_where_nothing_was_planted_no_graph_is_found():
    """But the authors' construction always names four writers."""
    p = planted.nothing()
    for prompt, kept, _ in planted_activations(p, 4):
        assert exact(p, prompt, kept).nodes == []
        lens = flow_paper.Lens(p.model.family, kept)
        graph = flow_paper.grow(lens, prompt, flow_paper.Rules(floor=0.5))
        assert module.counts(graph, prompt)["sources"] == 0
        assert len(flow_paper.grow(lens, prompt, flow_paper.Rules.paper()).writers) == 4


def test_a_counterfactual_does_not_show_what_only_routes():
    p = planted.copying()
    (prompt, kept, where), *_ = planted_activations(p, 1)
    (other,) = activations_of(p.model, [prompt.corrupted], whole=True)
    flow = flow_exact.Flow(p.model.family, kept, prompt, flow_exact.Sources(p.model.family, kept, other))
    graph = flow_exact.grow(flow, flow_exact.Limits())[0]
    assert edges_of(graph) == {(p.heads["writer"], "token", where.positions["answer"], "v")}


# ---- exactness -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize(("input", "position"), [("v", 9), ("k", 9), ("q", 17), ("v", 17)])
def test_an_edge_is_path_patching(any_block, pair, freeze, input, position):
    clean, corrupted = pair
    flow = flow_of(any_block, clean, corrupted, freeze)
    senders = [(0, 1), (0, 3), (1, 2)]
    truth = pcm.path_patch(
        any_block, clean, corrupted, senders=senders, receivers=[(2, 1)], receiver_input=input, positions=[position],
        direction="noise", metric="logit_diff", answer=7, wrong=11, normalize=False, freeze_mlps=freeze,
    )  # fmt: skip
    rows = [l * 4 + h for l, h in senders]
    place = (2, 1, 17)
    x = flow.climb(position, flow.deltas(position)[rows], [l for l, _ in senders], 2)
    z = flow.received(place, position, x, "qkv")[input]
    found = flow.carried([(place, -1, "")], z)
    if freeze:  # to the logits MLPs are computed anew either way in path_patch
        flow.freeze_mlps = False
        found = flow.carried([(place, -1, "")], z)
    expected = np.asarray(truth.raw, dtype=float).reshape(-1)
    assert_allclose(found.numpy(), expected, rtol=1e-9, atol=1e-10)
    base = flow.difference
    assert_allclose(found.numpy() - base, expected - base, rtol=1e-5)
    assert np.abs(expected - base).max() > 1e-6  # there is something to agree on


def test_a_writer_is_the_direct_path_to_the_logits(any_block, pair):
    clean, corrupted = pair
    flow = flow_of(any_block, clean, corrupted)
    truth = pcm.path_patch(
        any_block, clean, corrupted, direction="noise", metric="logit_diff", answer=7, wrong=11, normalize=False
    )  # fmt: skip
    found = flow.logit_difference(flow.climb(17, flow.deltas(17)[:-1], [i // 4 for i in range(12)], 3))
    assert_allclose(found.numpy(), np.asarray(truth.raw, dtype=float).reshape(-1), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("freeze", [True, False])
def test_a_token_reaches_a_head_past_frozen_attention(any_block, pair, freeze):
    """By hooks: the embedding of one position changes, z of every head and (freeze) what MLPs add are as they were."""
    hf, at, to = any_block.hf, 9, 2
    flow = flow_of(any_block, *pair, freeze)
    truth, changed, new = PathTruth(hf, *pair, freeze_mlps=freeze), [], flow.deltas(at)[-1]

    def replace(_module, _args, out):
        out = out.clone()
        out[0, at] += new
        return out

    layers = layers_of(hf)
    handles = [hf.get_input_embeddings().register_forward_hook(replace)]
    handles += [layers[to].register_forward_pre_hook(lambda _module, args: changed.append(args[0][0, at]))]
    for l, layer in enumerate(layers):
        z = truth.base_z[l].flatten(1)[None]
        handles.append(projection_of(layer).register_forward_pre_hook(lambda _module, _args, z=z: (z,)))
        if freeze:
            handles.append(tap(layer, "mlp_out").hook(lambda _x, l=l: truth.base_mlp[l]))
    with hooked(*handles):
        logits_of(hf, pair[0])
    found = flow.climb(at, new[None], [-1], to)
    assert_allclose(found[0].numpy(), changed[0].numpy(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("input", ["k", "v"])
def test_a_chain_carries_what_its_first_head_changes(any_wide, pair, input):
    """Through the next head's input, by Hugging Face's own modules, and from there by a sweep."""
    clean, _ = pair
    (kept,) = activations_of(any_wide, [clean])
    flow = flow_exact.Flow(any_wide.family, kept, Prompt(clean, 7, 11), flow_exact.Sources(any_wide.family, kept))
    l, h, at = 1, 3, 9
    z = torch.randn(16, generator=torch.Generator().manual_seed(0)).double()
    layers, acts = any_wide.hf.model.layers, any_wide.run(clean, capture=("z", "resid_mid"))
    W = layers[l].self_attn.o_proj.weight[:, h * 16 : (h + 1) * 16]
    middle = acts["resid_mid"][l, at] + W @ (z - acts["z"][l, at, h])
    x = middle + layers[l].mlp(layers[l].post_attention_layernorm(middle[None])[None])[0, 0]
    projection = getattr(layers[2].self_attn, f"{input}_proj")
    value = projection(layers[2].input_layernorm(x[None]))[0].view(2, 16)[2 // 2]
    edit = pcm.Edit(input, 2, head=2, positions=[at], value=value[None], per_query_head=True)
    truth = pcm.sweep(any_wide, clean, [pcm.Variant((edit,))], metric="logit_diff", answer=7, wrong=11).raw
    found = flow.carried([((l, h, at), -1, ""), ((2, 2, 17), at, input)], z[None])
    assert_allclose(found.numpy(), truth, rtol=1e-9)


# ---- the authors' construction -------------------------------------------------------------------------------------


def naive_paper(model, tokens):
    """Stages I to III as the authors describe them, from dense arrays, one head at a time: {(layer, head, position, depth)}
    and [(parent, child, token)]."""
    hf, L, H = model.hf, model.cfg.n_layers, model.cfg.n_heads
    eager = tiny_llama(n_layers=3, n_key_value_heads=2)
    patterns = double(eager)
    patterns.config._attn_implementation = "eager"
    attention = [a[0] for a in patterns(tokens[None], output_attentions=True).attentions]
    acts = model.run(tokens, capture=("z", "resid_pre"))

    def say(x):
        return hf.lm_head(hf.model.norm(x)).softmax(-1)

    def writers(q, v, below, width):
        w = {}
        for l in range(below):
            W = hf.model.layers[l].self_attn.o_proj.weight.T.view(H, 16, -1)
            w |= {(l, h): float(say(acts["z"][l, q, h] @ W[h])[v]) for h in range(H)}
        return sorted(w, key=lambda k: (-w[k], k))[:width]

    end, width, depth = len(tokens) - 1, 4, 0
    frontier = [(l, h, -1) for l, h in writers(end, int(acts.logits[-1].argmax()), L, width)]
    nodes, edges, seen = {(*n, 0) for n in frontier}, [], set(frontier)
    while any(n[0] > 0 for n in frontier):
        width, depth, new = max(1, width - 1), depth + 1, []
        for l, h, q in frontier:
            row = attention[l][h, q]
            at = int(row.argmax())
            if not row[at] > row.median():
                continue
            v = int(say(acts["resid_pre"][l, at]).argmax())
            for child in writers(at, v, l, width):
                place = (*child, at)
                edges.append(((l, h, q), place, v))
                if place not in seen:
                    seen.add(place)
                    new.append(place)
                    nodes.add((*place, depth))
        frontier = new
    return nodes, edges


def test_the_authors_construction_is_that_of_a_naive_one(wide, pair):
    tokens = pair[0]
    (kept,) = activations_of(wide, [tokens])
    prompt = Prompt(tokens, 7, 11)
    graph = flow_paper.grow(flow_paper.Lens(wide.family, kept), prompt, flow_paper.Rules.paper())
    nodes, edges = naive_paper(wide, tokens)

    def at(n):
        return (n.layer, n.head, -1 if n.depth == 0 else n.position)

    assert {(*at(n), n.depth) for n in graph.nodes} == nodes
    ours = [(at(graph.nodes[e.parent]), at(graph.nodes[e.child]), e.token) for e in graph.edges if e.child >= 0]
    assert ours == edges and len(edges) > 4
    check_dag(graph, 18)
    again = flow_paper.grow(flow_paper.Lens(wide.family, kept), prompt, flow_paper.Rules.paper())
    assert repr(again.nodes) == repr(graph.nodes) and repr(again.edges) == repr(graph.edges)


def test_only_allowed_heads_are_in_the_graph(wide, pair):
    (kept,) = activations_of(wide, [pair[0]])
    allowed = torch.zeros(3, 4, dtype=torch.bool)
    allowed[0, 2] = allowed[1, 1] = allowed[2, 0] = True
    prompt = Prompt(pair[0], 7, 11)
    graph = flow_paper.grow(flow_paper.Lens(wide.family, kept), prompt, flow_paper.Rules.paper(), allowed)
    assert graph.nodes and all(bool(allowed[n.layer, n.head]) for n in graph.nodes)
    flow = flow_exact.Flow(wide.family, kept, prompt, flow_exact.Sources(wide.family, kept))
    graph = flow_exact.grow(flow, flow_exact.Limits(floor=0.0, writer_share=0.0, share=0.0), allowed)[0]
    assert all(bool(allowed[n.layer, n.head]) for n in graph.nodes)


# ---- results -------------------------------------------------------------------------------------------------------


def test_result(model, examples, every, result, tmp_path):
    data, cells = result.data, list(result.cells())
    assert len(cells) == 6 and data["depth_map"].dims == ("example", "step", "depth", "layer", "head")
    for example, step in cells:
        graph = result.graph(example, step)
        prompt = examples[example].steps[step]
        check_dag(graph, len(prompt.clean))
        assert len(graph.nodes) == int(data["nodes"].sel(example=example, step=step))
        for n in graph.nodes:
            assert float(data["depth_map"].sel(example=example, step=step, depth=n.depth, layer=n.layer, head=n.head)) == 1
        last = [n for n in graph.nodes if n.depth == 0 and n.layer == model.cfg.n_layers - 1]
        assert all(n.total == pytest.approx(n.weight, rel=1e-2, abs=2e-3) for n in last)  # nothing above to recompute
        assert all(int(prompt.clean[e.position]) == e.token for e in graph.edges)
    assert len(result.to_dataframe()) == int(data["edges"].sum())
    again = pcm.cot.information_flow(model, examples, steps=[0, 5], right=every)
    np.testing.assert_array_equal(again.data["edge_weight"], data["edge_weight"])
    result.save(tmp_path)
    kept = module.InformationFlow.load(tmp_path)
    assert (
        repr(kept.graph(*cells[3])) == repr(result.graph(*cells[3]))
        or kept.graph(*cells[3]).nodes == result.graph(*cells[3]).nodes
    )
    assert len(kept.table()) == 2 and "n = 3" in kept.findings()[0]
    keeps_its_ranges(result)
    kept.plot(path=tmp_path / "flow.png")
    assert (tmp_path / "flow.png").stat().st_size > 20_000
    assert not result.writers()["held_out"].any() and set(result.writers()["step"]) == {0, 5}


def test_writers_are_reported_on_the_other_half(result):
    """The head that most often writes in one half, and how often it does in the other; counts made by hand."""
    data = result.data.isel(example=np.arange(8) % 3, step=[1]).assign_coords(example=np.arange(8))
    maps = np.zeros(data["depth_map"].shape)
    probe = module.InformationFlow(data, result.about).at_step("writers", 5)
    choosing, reporting = (set(p.data["example"].values.tolist()) for p in (probe.choosing, probe.reporting))
    assert len(choosing) == len(reporting) == 4 and not choosing & reporting
    depth, first = data["depth_map"].get_axis_num("depth"), sorted(reporting)[0]
    at = np.moveaxis(maps, depth, -1)  # [example, step, layer, head, depth]
    at[sorted(choosing), 0, 1, 2, 0] = 1
    at[first, 0, 1, 2, 0] = 1
    at[sorted(choosing)[:2], 0, 3, 4, 0] = 1
    at[sorted(reporting), 0, 2, 0, 0] = 1  # only in the other half
    at[:, 0, 0, 0, 1] = 1  # no writer
    data["depth_map"] = data["depth_map"].copy(data=maps)
    many = module.InformationFlow(data, result.about)
    table = many.writers(5)
    assert list(zip(table["layer"], table["head"], table["share"])) == [(1, 2, 0.25), (3, 4, 0.0)]
    assert table["n"].eq(4).all() and table["held_out"].all()
    assert 0 < table["low"][0] < 0.05 and 0.8 < table["high"][0] < 1  # one of four
    same = many.writers(5, held_out=False)
    assert list(zip(same["layer"], same["head"], same["share"])) == [(1, 2, 0.625), (2, 0, 0.5), (3, 4, 0.25)]
    assert same["n"].eq(8).all() and not same["held_out"].any()
    with pytest.raises(ValueError, match="step: got 3; expected one of 5"):
        many.writers(3)


def test_a_graph_is_a_tree_in_json_and_comes_back(result, model):
    for example, step in result.cells():
        graph = result.graph(example, step)
        again = module.Graph.from_json(graph.to_json())
        assert repr(again.nodes) == repr(graph.nodes)
        for i in range(len(graph.nodes)):
            assert repr(again.of(i)) == repr(graph.of(i))
        assert len(again.edges) == len(graph.edges)
        tree = json.loads(graph.to_json(text=lambda t: model.tokenizer.decode([t]), indent=None))
        assert [root["node"] for root in tree["roots"]] == graph.writers
        edge, first = tree["roots"][0]["edges"][0], graph.of(graph.writers[0])[0]
        assert edge["position"] == first.position and edge["text"] == model.tokenizer.decode([first.token])


def test_the_tree_of_a_graph_has_its_documented_shape():
    """Two writers share a node, which is written out once; NaN is null; a node that nothing reaches is a root."""
    nodes = [Node(3, 0, 9, 0, 0.5), Node(3, 1, 9, 0, 0.25, 0.125), Node(1, 2, 6, 1), Node(0, 3, 2, 2)]
    edges = [
        Edge(1, 2, 6, 11, "v", 0.75, 0.25),
        Edge(0, 2, 6, 11, "v", 0.5, 0.125, -0.5),
        Edge(2, -1, 4, 12, "k", 1.0, np.nan),
    ]
    tree = json.loads(Graph(nodes, edges).to_json())
    shared = {"node": 2, "layer": 1, "head": 2, "position": 6, "depth": 1, "weight": None, "total": None}
    leaf = {"position": 4, "token": 12, "input": "k", "attention": 1.0, "weight": None, "total": None, "child": None}
    one = {"position": 6, "token": 11, "input": "v", "attention": 0.5, "weight": 0.125, "total": -0.5}
    other = {"position": 6, "token": 11, "input": "v", "attention": 0.75, "weight": 0.25, "total": None}
    assert tree == {
        "roots": [
            {"node": 0, "layer": 3, "head": 0, "position": 9, "depth": 0, "weight": 0.5, "total": None}
            | {"edges": [one | {"child": shared | {"edges": [leaf]}}]},
            {"node": 1, "layer": 3, "head": 1, "position": 9, "depth": 0, "weight": 0.25, "total": 0.125}
            | {"edges": [other | {"child": {"node": 2}}]},
            {"node": 3, "layer": 0, "head": 3, "position": 2, "depth": 2, "weight": None, "total": None, "edges": []},
        ]
    }
    again = Graph.from_json(json.dumps(tree))
    assert repr(again.nodes) == repr(nodes) and repr(again.edges) == repr([edges[1], edges[0], edges[2]])
    assert Graph.from_json(Graph().to_json()).nodes == []
    gap = json.dumps({"roots": [tree["roots"][2]]})
    for text, words in (
        ("{}", "KeyError: 'roots'"),
        ("[", "JSONDecodeError"),
        (gap, r"holds nodes \[3\]; expected all of 0 to 3"),
    ):
        with pytest.raises(ValueError, match=f"text: {words}"):
            Graph.from_json(text)


def test_the_other_definitions_run(model, examples, every):
    for definition, options in (
        ("paper", {}),
        ("projection", {}),
        ("exact", {"replaced_by": "counterfactual", "total": False}),
    ):
        found = pcm.cot.information_flow(
            model, examples.only(examples[:1].items), steps=[5], right=every[:1], definition=definition, **options
        )
        assert found.about["definition"].startswith(module._WORDS[definition])
        assert float(found.data["writers"].item()) == 4 or definition != "paper"
        found.findings()


def test_cost(model, examples, every, result):
    """The graphs' size is not known before: the prediction is of the order."""
    size = workload(cells_module.choose(model, examples, steps=[0, 5], right=every))
    predicted = module.cost(model.cfg, size)
    assert 0.4 < result.about["cost"]["token_forwards"] / predicted.token_forwards < 2.5
    assert module.authors_cost(model.cfg, size).flop > 5 * predicted.flop


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"definition": "guess"}, "definition: got 'guess'"),
        ({"replaced_by": "zero"}, "replaced_by: got 'zero'"),
        ({"rules": flow_paper.Rules()}, "rules: not used with definition='exact'"),
        ({"definition": "paper", "limits": flow_exact.Limits()}, "limits: not used with definition='paper'"),
    ],
)
def test_bad_input(model, examples, every, arguments, words):
    with pytest.raises(ValueError, match=words):
        pcm.cot.information_flow(model, examples, right=every, **arguments)


def test_nodes_that_would_touch_in_the_figure_stand_side_by_side():
    from types import SimpleNamespace

    nodes: Any = [SimpleNamespace(position=p, layer=l) for p, l in ((9, 28), (9, 29), (9, 20), (3, 28), (9, 27))]
    assert np.allclose(offsets(nodes, 1.5), [0.0, 0.8 / 3, 0.0, 0.0, -0.8 / 3])
    assert offsets(nodes, 0.5) == [0.0] * 5 and np.allclose(offsets([*nodes[:1] * 2], 0.5), [-0.15, 0.15])
