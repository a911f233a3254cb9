"""to_sequence against lists written out from its definition, and against what compress makes of the result."""

import pytest
import torch
from helpers.backends import BACKENDS
from helpers.ops import needs_kernels, partition

from ficoco_ext import ops
from ficoco_ext.cost import flop_counter

NAMES = ("visual", "sources", "kept", "targets", "tokens")


def inputs(b=2, n=12, r=5, k=2, tokens=20):
    """Visual tokens anywhere among ``tokens``, elsewhere in every item."""
    visual = torch.rand(b, tokens).argsort(1)[:, :n].sort(1).values
    sources, kept = partition(b, n, r, False)
    targets = torch.rand(b, r, n - r).argsort(-1)[..., :k]
    return visual, sources, kept, targets, tokens


def written_out(visual, sources, kept, targets, tokens):
    """The four results, from the tokens' names: a token is called by its column."""
    out = []
    for v, s, m, t in zip(*(one.tolist() for one in (visual, sources, kept, targets)), strict=True):
        gone = [v[place] for place in s]
        left = [column for column in range(tokens) if column not in set(gone)]
        place = {column: i for i, column in enumerate(left)}
        out.append((gone, left, [[place[v[m[j]]] for j in row] for row in t], [place[v[j]] for j in m]))
    return [torch.tensor(part, dtype=torch.int64) for part in zip(*out, strict=True)]


def check(backend, args):
    got, wanted = backend("to_sequence", *args), written_out(*args)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == torch.int64
        assert torch.equal(one, other.reshape(one.shape))
    b, n = args[0].shape
    r, k = args[3].shape[1:]
    assert [one.shape for one in got] == [(b, r), (b, args[4] - r), (b, r, k), (b, n - r)]
    return got


@pytest.mark.parametrize("tokens", [0, 1, 7, 300])
@pytest.mark.parametrize("n", [1, 2, 31, 32, 33, 257, 577])
def test_sizes(backend, n, tokens):
    """From no token besides the visual ones to many; nobody leaves, some do, all but one do."""
    for r in sorted({0, n // 3, n - 1}):
        for k in sorted({0, 1, min(3, n - r)}):
            check(backend, inputs(3, n, r, k, n + tokens))


@pytest.mark.parametrize(("n", "tokens"), [(2880, 3392), (2048, 16384), (16384, 16384), (9000, 20000)])
def test_long_sequences(backend, n, tokens):
    check(backend, inputs(1, n, n // 5, 2, tokens))


@pytest.mark.parametrize("first", [0, 3, 8])
def test_the_visual_tokens_may_begin_and_end_anywhere(backend, first):
    """In a row, as a picture in a prompt has them: at the begin, in the middle, at the end."""
    visual, sources, kept, targets, tokens = inputs()
    visual = torch.arange(first, first + 12).repeat(2, 1)
    check(backend, (visual, sources, kept, targets, tokens))


def test_everybody_leaves(backend):
    visual, sources, kept, targets, tokens = inputs(n=6, r=6, k=0)
    got = check(backend, (visual, sources, kept, targets, tokens))
    assert got[3].shape == (2, 0)


def test_nothing_to_do(backend):
    for shape in ({"b": 0}, {"n": 0, "r": 0, "k": 0}, {"n": 0, "r": 0, "k": 0, "tokens": 0}):
        args = inputs(**shape)
        got = backend("to_sequence", *args)
        b, n = args[0].shape
        r, k = args[3].shape[1:]
        assert [one.shape for one in got] == [(b, r), (b, args[4] - r), (b, r, k), (b, n - r)]
        assert torch.equal(got[1], torch.arange(args[4]).expand(b, -1)) or b == 0


def test_any_strides(backend):
    visual, sources, kept, targets, tokens = inputs(b=3)
    wanted = backend("to_sequence", visual, sources, kept, targets, tokens)
    spread = [torch.stack([one, one + 1], dim=-1)[..., 0] for one in (visual, sources, kept, targets)]
    assert all(map(torch.equal, wanted, backend("to_sequence", *spread, tokens)))
    row = visual[:1].expand(3, -1)
    got = backend("to_sequence", row, sources, kept, targets, tokens)
    assert all(map(torch.equal, got, backend("to_sequence", row.clone(), sources, kept, targets, tokens)))


def test_places_hold_the_tokens_that_they_held():
    """Layer after layer: names of tokens instead of hidden states, and where they are then."""
    visual, *_, length = inputs(b=2, n=40, tokens=60)
    names = torch.arange(length).repeat(2, 1)
    held = names.gather(1, visual)
    for r in (7, 1, 20):
        sources, kept = partition(2, visual.shape[1], r, False)
        targets = torch.zeros(2, r, 1, dtype=torch.int64)
        placed = ops.to_sequence(visual, sources, kept, targets, names.shape[1])
        assert torch.equal(names.gather(1, placed.sources), held.gather(1, sources))
        names, visual, held = names.gather(1, placed.kept), placed.visual, held.gather(1, kept)
        assert torch.equal(names.gather(1, visual), held)
        assert torch.equal(names.gather(1, placed.targets[..., 0]), held[:, :1].expand(-1, r))


def test_compress_of_the_sequence_is_compress_of_its_visual_tokens():
    """Merged by places in the sequence or cut out, merged and put back: the same bits, and text is left alone."""
    visual, sources, kept, targets, length = inputs()
    tokens, weights = torch.randn(2, length, 8), torch.rand(2, 5, 2).softmax(-1)
    placed = ops.to_sequence(visual, sources, kept, targets, length)
    got, size, _ = ops.compress(tokens, placed.sources, placed.kept, placed.targets, weights)

    def columns(of, index):
        return of.gather(1, index.unsqueeze(-1).expand(-1, -1, of.shape[-1]))

    cut, cut_size, _ = ops.compress(columns(tokens, visual), sources, kept, targets, weights)
    assert torch.equal(columns(got, placed.visual), cut)
    assert torch.equal(columns(size, placed.visual), cut_size)
    text = torch.ones(2, length - 5, dtype=torch.bool).scatter(1, placed.visual, False)
    assert torch.equal(got[text], columns(tokens, placed.kept)[text])


@pytest.mark.parametrize("name", ["emulated", "cuda"])
def test_launches(name):
    backend = BACKENDS[name]
    if backend.missing or name == "cuda":
        pytest.skip(backend.missing or "only the emulation counts launches")
    args = inputs(3, 700, 100, 2, 900)
    backend("to_sequence", *args)
    before = torch.ops.ficoco_emu.launch_count()
    backend("to_sequence", *args)
    assert torch.ops.ficoco_emu.launch_count() - before == 1


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    compiled = torch.compile(ops.to_sequence, fullgraph=True, dynamic=dynamic, backend="eager")
    for tokens in (20, 33):
        args = inputs(tokens=tokens)
        assert all(map(torch.equal, compiled(*args), ops.to_sequence(*args)))


def test_it_counts_no_flops():
    with flop_counter.counter() as mode:
        ops.to_sequence(*inputs())
    assert mode.get_total_flops() == 0


BAD = [
    ("visual", torch.zeros(12, dtype=torch.int64), ValueError),
    ("visual", torch.zeros(2, 12), TypeError),
    ("sources", torch.zeros(2, 5, dtype=torch.int32), TypeError),
    ("sources", torch.zeros(3, 5, dtype=torch.int64), ValueError),
    ("kept", torch.zeros(2, 8, dtype=torch.int64), ValueError),
    ("kept", torch.zeros(2, 7), TypeError),
    ("targets", torch.zeros(2, 5, dtype=torch.int64), ValueError),
    ("targets", torch.zeros(2, 4, 2, dtype=torch.int64), ValueError),
    ("targets", torch.zeros(2, 5, 2), TypeError),
    ("tokens", 11, ValueError),
    ("tokens", -1, ValueError),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_bad_argument(backend, case):
    name, value, kind = BAD[case]
    args = dict(zip(NAMES, inputs(), strict=True)) | {name: value}
    with pytest.raises(kind, match=rf"ficoco::to_sequence: {name} must be .*, got .*; .+"):
        backend("to_sequence", *args.values())


@pytest.mark.parametrize("name", ["sources", "kept", "targets"])
def test_other_device(name):
    args = dict(zip(NAMES, inputs(), strict=True))
    args[name] = args[name].to("meta")
    with pytest.raises(ValueError, match=rf"ficoco::to_sequence: {name} must be on .*meta"):
        BACKENDS["reference"].find("to_sequence")(*args.values())


def changed(name, place, value):
    args = dict(zip(NAMES, inputs(), strict=True))
    args[name] = args[name].clone()
    args[name][place] = value
    return args.values()


@pytest.mark.parametrize("value", [-1, -(2**62), 20, 2**31, 2**62])
@pytest.mark.parametrize("name", ["visual", "sources", "kept", "targets"])
def test_a_place_that_is_none(backend, name, value):
    """Kernels follow places blindly, so they are read first: nothing outside may be touched."""
    if not backend.reads_values:
        pytest.skip("reading the places would synchronise")
    argument = "sources and kept" if name in ("sources", "kept") else name
    for place in ((0, 0), (-1, -1)):
        with pytest.raises(ValueError, match=rf"ficoco::to_sequence: {argument} must be .*, got .*; pass "):
            backend("to_sequence", *changed(name, place if name != "targets" else (*place, -1), value))


def test_lists_that_do_not_ascend_or_share_a_place(backend):
    if not backend.reads_values:
        pytest.skip("reading the places would synchronise")
    visual, sources, kept, targets, tokens = inputs()
    with pytest.raises(ValueError, match="visual must be ascending"):
        backend("to_sequence", visual.flip(1), sources, kept, targets, tokens)
    twice = visual.clone()
    twice[1, 3] = twice[1, 4]
    with pytest.raises(ValueError, match="visual must be ascending"):
        backend("to_sequence", twice, sources, kept, targets, tokens)
    shared = sources.clone()
    shared[1, 0] = kept[1, 0]
    for wrong in ((sources.flip(1), kept), (sources, kept.flip(1)), (shared, kept)):
        with pytest.raises(ValueError, match="sources and kept must be ascending and together every index"):
            backend("to_sequence", visual, *wrong, targets, tokens)


@needs_kernels
def test_one_bad_item_of_a_batch_is_found():
    visual, sources, kept, targets, tokens = inputs(b=9)
    kept[7] = kept[7].flip(0)
    with pytest.raises(ValueError, match="sources and kept must be"):
        BACKENDS["cpu"].find("to_sequence")(visual, sources, kept, targets, tokens)
