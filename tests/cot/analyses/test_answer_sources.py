"""E8: sources of pathways, by word; what cutting them off costs; context-abidance."""

import numpy as np
import pytest
import torch

import pycotmech as pcm
from pycotmech.cot.analyses import answer_sources as module
from pycotmech.cot.analyses import context_abidance as abidance
from pycotmech.cot.tools import flow_exact
from pycotmech.cot.tools.activations import Prompt, Shots, text_activations
from pycotmech.cot.tools.cells import choose
from pycotmech.cot.tools.cost import metered, workload
from pycotmech.cot.tools.flow_graph import Edge, Graph, Node
from tests.cot.analyses.flow_cases import planted_activations
from tests.cot.analyses.interval_cases import keeps_its_ranges, tells
from tests.reference import planted
from tests.reference.close import assert_allclose, assert_close
from tests.reference.tiny import tiny_llama


@pytest.fixture(scope="module")
def flow(model, examples, every):
    return pcm.cot.information_flow(model, examples, steps=[1, 5], right=every, total=False)


@pytest.fixture(scope="module")
def result(model, examples, every, flow):
    return pcm.cot.answer_sources(model, examples, steps=[1, 5], right=every, flow=flow)


def prompt_with(spans, length=12):
    segments = {"few_shot": slice(0, 4), "question": slice(4, 8), "generated": slice(8, length)}
    return Prompt(torch.arange(length), 3, 4, segments=segments, occurrences=tuple(spans))


def test_segments_part_the_prompt():
    prompt = prompt_with([])
    assert [prompt.segment_of(p) for p in range(12)] == ["few_shot"] * 4 + ["question"] * 4 + ["generated"] * 4
    labels = prompt.labels().tolist()
    assert labels == [3, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 4]  # first token and read position have entries of their own


def test_source_is_that_of_the_pathways_own_edges():
    """Along values only, the heavier part; ties and places without the word count for none; what other writers reach does
    not count (the authors counted children and parents of a head alike)."""
    prompt = prompt_with([slice(2, 3), slice(5, 7), slice(9, 10)])
    nodes = [Node(3, 0, 11, 0), Node(3, 1, 11, 0), Node(1, 0, 9, 1), Node(3, 2, 11, 0)]
    edges = [
        Edge(0, -1, 6, 0, "v", 0.9, 0.4),  # question
        Edge(0, 2, 9, 0, "k", 0.9, 5.0),  # only where to look
        Edge(1, 2, 9, 0, "v", 0.9, 0.1),  # generated, and by what is there question and few-shot
        Edge(2, -1, 5, 0, "v", 0.9, 0.3),
        Edge(2, -1, 2, 0, "v", 0.9, -0.7),
        Edge(3, -1, 4, 0, "v", 0.9, 0.9),  # no occurrence
    ]
    graph = Graph(nodes, edges)
    assert [module.pathway_source(graph, w, prompt) for w in graph.writers] == ["question", "few_shot", "none"]
    tied = Graph(nodes, [Edge(0, -1, 5, 0, "v", 1.0, 0.5), Edge(0, -1, 9, 0, "v", 1.0, 0.5)])
    assert module.pathway_source(tied, 0, prompt) == "none"


def test_planted_pathways_take_the_answer_from_where_they_were_planted():
    p = planted.parallel()
    for prompt, kept, _ in planted_activations(p, 4):
        flow = flow_exact.Flow(p.model.family, kept, prompt, flow_exact.Sources(p.model.family, kept))
        graph = flow_exact.grow(flow, flow_exact.Limits())[0]
        found = {graph.nodes[w][:2]: module.pathway_source(graph, w, prompt) for w in graph.writers}
        assert found == {p.heads["question"]: "question", p.heads["generated"]: "generated"}


def test_cutting_a_planted_source_off_costs_the_answer():
    p = planted.copying()
    for prompt, _, _ in planted_activations(p, 3):
        made = module.cuts(prompt, [p.heads["writer"]], p.model.cfg.n_layers)
        assert [m[:3] for m in made] == [(scope, "question", kind) for kind in ("answer", "control") for scope in module.SCOPES]
        found = pcm.sweep(p.model, prompt.tokens, [m[3] for m in made], metric="prob", answer=prompt.answer)
        effect = dict(zip([(m[0], m[2]) for m in made], found.effect, strict=True))
        assert found.base_metric > 0.9
        for scope in module.SCOPES:
            assert effect[scope, "answer"] < -0.5 and abs(effect[scope, "control"]) < 0.05
        by_decoy = module.cuts(prompt, [p.heads["decoy"]], p.model.cfg.n_layers)[0][3]
        assert abs(pcm.sweep(p.model, prompt.tokens, [by_decoy], metric="prob", answer=prompt.answer).effect[0]) < 0.01


def test_cuts_reach_what_they_say():
    prompt = prompt_with([slice(5, 7), slice(9, 10)])
    made = {(scope, name, kind): v for scope, name, kind, v in module.cuts(prompt, [(1, 2)], 3)}
    assert {k[1] for k in made} == {"question", "generated"}
    (one,) = made["writers", "question", "answer"].edits
    assert (one.layer, one.head, list(one.positions), list(one.keys)) == (1, 2, [11], [5, 6])
    assert len(made["read", "generated", "answer"].edits) == 3 and made["read", "generated", "answer"].edits[0].head is None
    everywhere = made["everywhere", "question", "answer"].edits[0]
    assert list(everywhere.positions) == [7, 8, 9, 10, 11] and list(everywhere.keys) == [5, 6]
    control = made["writers", "question", "control"].edits[0]
    assert set(control.keys) <= {4, 7} and len(control.keys) == 2


def test_result(model, examples, every, result, flow, tmp_path):
    data = result.data
    writers = flow.data["writers"]
    np.testing.assert_array_equal(data["pathways"].sum("place"), writers)
    assert_allclose(result.shares()["mean"].sum("place"), 1)
    for e, example in enumerate(examples):
        for step in (1, 5):
            here = data.isel(example=e).sel(step=step)
            logits = model.run(example.steps[step].clean, positions=-1).logits[0]
            p = float(logits.softmax(-1)[example.steps[step].answer])
            assert float(here["probability"]) == pytest.approx(p, abs=1e-5)
            assert int(here["occurrences"].sum()) == len(example.steps[step].occurrences)
            assert bool(here["drop"].sel(segment="few_shot").isnull().all())  # the shots have other words
    drop = data["drop"].sel(scope="everywhere", segment="question", step=1)
    assert float(drop.min()) > 0.9  # the model copies the word from the question
    assert len(result.table()) == 8 and "n = 3" in result.findings()[0]
    keeps_its_ranges(result)
    table = result.table()
    row = table[(table["step"] == 1) & (table["place"] == "question")].iloc[0]
    here = data.sel(step=1)
    tells(row, "drop_read", here["drop"].sel(scope="read", segment="question").values, (-1, 1))
    tells(row, "control_read", here["control_drop"].sel(scope="read", segment="question").values, (-1, 1))
    tells(row, "pathways", here["pathways"].sel(place="question").values, (0, np.inf))
    assert table["low"].min() >= 0 and table["high"].max() <= 1
    result.save(tmp_path)
    again = module.AnswerSources.load(tmp_path)
    again.plot(path=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_each_head_is_coloured_by_what_most_of_its_nodes_lead_to(result, flow, examples, tmp_path):
    data = result.data
    writers = [flow.graph(e, s).writers for e, s in flow.cells()]
    nodes = [flow.graph(e, s).nodes for e, s in flow.cells()]
    assert int(data["by_head"].sum()) == sum(map(len, nodes)) > sum(map(len, writers))
    last = data.sizes["layer"] - 1  # whose nodes can only be writers
    assert (data["by_head"].sel(layer=last).sum("head") <= data["pathways"]).all()
    found = result.majority()
    for s, step in enumerate((1, 5)):
        for l in range(4):
            for h in range(8):
                number = {p: float(data["by_head"].isel(step=s).sel(layer=l, head=h, place=p).sum()) for p in module.SEGMENTS}
                best = [p for p, n in number.items() if n == max(number.values()) > 0]
                assert found.sel(step=step, layer=l, head=h).item() == (best[0] if len(best) == 1 else "none")
    assert {"question", "none"} <= set(found.values.ravel().tolist())
    figure = result.map(path=tmp_path / "map.png")
    maps = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in maps] == ["1 copying\nn = 3", "5 induction\nn = 3"]
    for axis, step in zip(maps, (1, 5), strict=True):
        drawn = np.array(["none", *module.SEGMENTS])[axis.images[0].get_array().astype(int)]
        np.testing.assert_array_equal(drawn, found.sel(step=step).values)
    assert (tmp_path / "map.png").stat().st_size > 5_000


def test_a_tie_is_white(result):
    counts = result.data["by_head"].copy(data=np.zeros(result.data["by_head"].shape))
    counts[0, 0, 1, 2] = [0, 2, 0, 5]
    counts[1, 0, 1, 2] = [0, 0, 2, 0]  # with the example before: as many generated as question
    counts[2, 1, 3, 0] = [1, 0, 2, 0]
    found = module.AnswerSources(result.data.assign(by_head=counts), result.about).majority()
    assert found[0, 1, 2] == "none" and found[1, 3, 0] == "generated" and int((found != "none").sum()) == 1


def test_a_cut_everywhere_is_the_hooked_one(model, examples, result):
    """Against eager attention of Hugging Face with a mask that hides the word from all positions behind it."""
    step = examples[0].steps[5]
    T = len(step.clean)
    name = "generated"
    spans = [s for s in step.occurrences if s.start >= step.segments[name].start]
    mask = torch.full((T, T), float("-inf")).triu(1)
    for span in spans:
        mask[span.stop :, span] = float("-inf")
    truth = model.hf(step.clean[None], attention_mask=mask[None, None]).logits[0, -1].softmax(-1)[step.answer]
    here = result.data.isel(example=0).sel(step=5)
    found = float(here["probability"]) - float(here["drop"].sel(scope="everywhere", segment=name))
    assert found == pytest.approx(float(truth), abs=1e-4)


def test_words_of_shots_count_by_word_and_not_by_token(smollm2):
    """At the beginning of a line or a sentence a word has other tokens."""
    made = pcm.cot.make_examples(1, shots=2, tokenizer=smollm2, bos=False, seed=0, style="paper")
    shots = Shots(made, smollm2)
    word = made.few_shot.split("Response:")[1].split()[0]  # an entity, at the beginning of its line
    spans = shots.find(word)
    texts = {smollm2.decode(made.shared_ids[s]) for s in spans}
    ids = {tuple(made.shared_ids[s].tolist()) for s in spans}
    assert len(spans) >= 3 and {t.strip() for t in texts} == {word} and len(ids) > 1


# ---- context-abidance ----------------------------------------------------------------------------------------------


def test_tokens_handed_over_are_counted_by_head():
    spelling = abidance.Spelling(None, 20)
    prompt = prompt_with([])
    nodes = [Node(2, 0, 11, 0), Node(1, 1, 9, 1), Node(0, 0, 5, 2)]
    edges = [Edge(0, 1, 9, 9, "", 1, 1), Edge(0, 1, 9, 15, "", 1, 1), Edge(1, 2, 5, 19, "", 1, 1), Edge(2, -1, 5, 5, "", 1, 1)]
    others = [torch.tensor([9, 15, prompt.answer]), torch.tensor([9, 19])]
    contexts = abidance.Contexts([((0, 0), prompt.tokens), ((1, 0), others[0]), ((2, 0), others[1])], spelling)
    found = abidance.of_graph(Graph(nodes, edges), (0, 0), contexts, spelling, (3, 2), "context", prompt.answer)
    assert found[0].tolist() == [[1, 0], [0, 2], [1, 0]] and found[1].tolist() == [[0, 0], [0, 1], [1, 0]]
    assert found[2].tolist() == [[0.5, 0], [0, 1.5], [0.5, 0]]
    left = abidance.of_graph(Graph(nodes, edges), (0, 0), contexts, spelling, (3, 2), "leave_out", prompt.answer)
    assert (left[:, 2, 0] == 0).all()
    assert spelling.chance(spelling.context(prompt.tokens)) == 12 / 20


def test_spelling_knows_a_word_by_its_letters(smollm2):
    spelling = abidance.Spelling(smollm2, len(smollm2))
    a, b = (smollm2(text)["input_ids"][0] for text in (" large", "Large"))
    assert a != b and spelling.of(a) == spelling.of(b) == "large"


@pytest.mark.parametrize("definition", ["heads", "paper"])
def test_abidance_of_tiny_cot(model, examples, every, tmp_path, definition):
    few = examples.only(examples.items[:2])
    found = pcm.cot.context_abidance(model, few, steps=[5], right=every[:2], definition=definition)
    step = few[1].steps[5]
    z = model.run(step.clean, capture=("z",))["z"][:, -1]
    context, other = (
        {model.tokenizer.decode([t]).strip().lower() for t in few[e].steps[5].clean.tolist()} - {""} for e in (1, 0)
    )
    for l in range(4):
        W = model.hf.model.layers[l].self_attn.o_proj.weight.T.view(8, 32, -1)
        for h in range(8):
            top = int(model.hf.lm_head(model.hf.model.norm(z[l, h] @ W[h])).argmax())
            expected = model.tokenizer.decode([top]).strip().lower() in context
            here = found.data.isel(example=1).sel(step=5, layer=l, head=h)
            assert bool(here["abides"]) == expected
            assert bool(here["elsewhere"]) == (model.tokenizer.decode([top]).strip().lower() in other)
    assert found.of_graphs == (definition == "paper")
    if found.of_graphs:
        assert bool((found.data["in_context"] <= found.data["occurs"]).all()) and float(found.data["occurs"].sum()) > 8
        assert bool((found.data["in_others"] <= found.data["occurs"]).all()) and float(found.data["in_others"].sum()) > 0
    assert len(found.table()) == 4 and "n = 2" in found.findings()[0]
    keeps_its_ranges(found, *(() if found.of_graphs else ("occurs", "in_context", "in_others")))
    found.save(tmp_path)
    abidance.ContextAbidance.load(tmp_path).plot(path=tmp_path / "c.png")


def test_the_layer_of_the_jump_is_found():
    import xarray as xr

    rng = np.random.default_rng(0)
    share = np.where(np.arange(12) < 7, 0.2, 0.9)
    abides = (rng.random((6, 1, 12, 10)) < share[:, None]).astype(float)
    dims = ("example", "step", "layer", "head")
    elsewhere = np.full(abides.shape, 0.2)
    data = xr.Dataset({"abides": (dims, abides), "elsewhere": (dims, elsewhere)}, coords={"layer": range(12)})
    jump = abidance.ContextAbidance(data, {}).jump(draws=100)
    assert jump.mean == 7 and 6 <= jump.low <= jump.high <= 8
    falling = abidance.ContextAbidance(data.isel(layer=slice(None, None, -1)), {})
    assert np.isnan(falling.jump(draws=20).mean) and "it rises at no layer" in falling.findings()[1]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda m, e, r, f: pcm.cot.answer_sources(m, e, right=r, flow=f, definition="paper"),
            "definition: only used without flow",
        ),
        (lambda m, e, r, f: pcm.cot.answer_sources(m, e, right=r, flow=f), "flow: holds no graph of"),
        (lambda m, e, r, f: pcm.cot.context_abidance(m, e, right=r, definition="x"), "definition: got 'x'"),
        (lambda m, e, r, f: pcm.cot.context_abidance(m, e, right=r, depth0="x"), "depth0: got 'x'"),
        (
            lambda m, e, r, f: pcm.cot.context_abidance(m, e, right=r, flow=f, definition="paper"),
            "flow: got graphs of definition",
        ),
    ],
)
def test_bad_input(model, examples, every, flow, call, words):
    with pytest.raises(ValueError, match=words):
        call(model, examples, every, flow)


def test_traces_of_prompts_agree_with_runs_of_their_own(model, examples):
    """One pass of an example's text serves all its steps: each prompt read in it is as if it had been run alone."""
    texts = [example.full_ids for example in examples]
    for batch in text_activations(model, texts, ("z",)):
        for i, kept in batch:
            for step in examples[i].steps[::3]:
                alone = model.run(step.clean, capture=("z",), positions=-1)
                read = len(step.clean) - 1
                logits = model.family.logits(kept.final([read]))[0]
                assert_close(logits, alone.logits[0], rtol=1e-3, atol=1e-3)
                assert_close(kept.at("z", 2, [read])[0], alone["z"][2, -1], rtol=1e-3, atol=1e-4)


def test_a_shared_beginning_that_is_kept_is_not_computed_again(model, examples):
    texts = [example.full_ids for example in examples]
    first = len(examples.shared_ids)  # behind it, each text's own

    def run(**options):
        with metered(model) as meter:
            found = [t for batch in text_activations(model, texts, ("z", "q"), first=first, **options) for _, t in batch]
        return found, meter.token_forwards

    model.prefixes.clear()
    (cold, rows), (warm, fewer), (whole, all_rows) = run(), run(), run(whole=True)
    own = sum(len(t) - first for t in texts)
    assert fewer == own and own + 0.7 * first < rows < own + first and all_rows == own + first
    for a, b, c, text in zip(cold, warm, whole, texts, strict=True):
        at = [first, len(text) - 1]
        for l in range(model.cfg.n_layers):
            assert torch.equal(a.keys(l), b.keys(l)) and torch.equal(a.values(l), b.values(l))
            assert torch.equal(a.at("z", l, at), b.at("z", l, at))  # found or computed: the same to the last bit
            assert_close(a.pattern(l, at), c.pattern(l, at), rtol=1e-4, atol=1e-6)
            assert_close(a.values(l), c.values(l), rtol=1e-4, atol=1e-5)
        assert torch.equal(a.final(at), b.final(at))
    limited = model.prefixes.limit
    try:
        model.prefixes.limit = 0  # nothing is kept: nothing else changes
        none, again = run()
        assert again == rows and torch.equal(none[0].keys(3), cold[0].keys(3))
    finally:
        model.prefixes.limit = limited


@pytest.mark.parametrize("random", [False, True])
def test_cost_of_the_cuts_is_predicted(model, examples, every, random):
    """By a model that reasons and by one that does not: each sweep runs what no kept segment of its prompt holds."""
    asked = model
    if random:
        hf = tiny_llama(n_layers=6, n_heads=4, d_vocab=model.cfg.d_vocab)
        asked = pcm.Model(hf, model.tokenizer, check=False)
    some, steps, right = examples[:2], [0, 3, 5, 8], every[:2]
    graphs = pcm.cot.information_flow(asked, some, steps=steps, right=right, total=False)
    asked.prefixes.clear()  # the cost is that of a cold call
    found = pcm.cot.answer_sources(asked, some, steps=steps, right=right, flow=graphs)
    size = workload(choose(asked, some, steps=steps, right=right))
    ratio = found.about["cost"]["token_forwards"] / module.cost(asked.cfg, size, flow=graphs).token_forwards
    assert 1 / 1.3 < ratio < 1.3
