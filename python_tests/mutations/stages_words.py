"""Faults of the selects that go by the words of the prompt."""

from __future__ import annotations

from mutations import Mutation

RELEVANCE, COVER = "ficoco_ext/stages/relevance.py", "ficoco_ext/stages/cover.py"
CDPRUNER, MMTOK = "python_tests/methods/test_cdpruner.py", "python_tests/methods/test_mmtok.py"
BRUTE, COVERS = (
    f"{CDPRUNER}::test_it_is_brute_force",
    f"{MMTOK}::test_it_is_brute_force_and_a_smaller_number_keeps_a_part",
)

MUTATIONS = [
    Mutation(
        RELEVANCE,
        "self.sign * likeness(",
        "likeness(",
        (BRUTE,),
        "The sign of the authors' release is ignored.",
    ),
    Mutation(
        RELEVANCE,
        "words.sum(1, dtype=wide).div(count).to(words.dtype)",
        "words.mean(1)",
        (f"{CDPRUNER}::test_how_words_are_padded_does_not_show",),
        "Padding of a prompt dilutes its words.",
    ),
    Mutation(
        RELEVANCE,
        'wide = words.dtype if words.device.type == "mps" else torch.float64',
        "wide = words.dtype",
        (f"{CDPRUNER}::test_how_words_are_padded_does_not_show",),
        "How a prompt is padded changes the last bits of relevance.",
    ),
    Mutation(
        RELEVANCE,
        "lowest = score if mask is None else score.masked_fill(~mask, math.inf)",
        "lowest = score",
        (f"{CDPRUNER}::test_padding_is_not_what_is_least_relevant",),
        "A picture's padding decides what is least relevant.",
    ),
    Mutation(
        RELEVANCE,
        "torch.where(spread > SMALLEST,",
        "torch.where(spread > 0,",
        (f"{CDPRUNER}::test_equal_relevance_is_none",),
        "Where all tokens are equally relevant, rounding says which are not.",
    ),
    Mutation(
        RELEVANCE,
        "power = self.theta / (2 * (1 - self.theta))",
        "power = self.theta / (1 - self.theta)",
        (BRUTE,),
        "Relevance counts twice.",
    ),
    Mutation(
        RELEVANCE,
        "MOST_THETA = 0.9\n",
        "MOST_THETA = 0.95\n",
        (f"{CDPRUNER}::test_refusals_of_hyperparameters",),
        "A theta is taken with which copies of relevant tokens stay and others leave.",
    ),
    Mutation(
        RELEVANCE,
        "return both, (1 - self.theta + relevant * relevant).sqrt()",
        "return both, weight",
        (BRUTE,),
        "The linear blend weighs twice by relevance.",
    ),
    Mutation(
        RELEVANCE,
        "first = turn <= mask.sum(1, keepdim=True) // 2",
        "first = turn <= n // 2",
        (f"{CDPRUNER}::test_padding_and_batches_change_nothing",),
        "Padding moves the middle of a picture.",
    ),
    Mutation(
        RELEVANCE,
        "(count // 2, count - count // 2)",
        "(count - count // 2, count // 2)",
        (f"{CDPRUNER}::test_two_blocks",),
        "An odd number keeps more of the first half, which may have fewer tokens.",
    ),
    Mutation(
        RELEVANCE,
        "ok = text.dim() == 3 and text.shape[2] == width",
        "ok = text.dim() == 3",
        (f"{CDPRUNER}::test_refusals_of_input",),
        "Words of another width end in an error of torch.",
    ),
    Mutation(
        RELEVANCE,
        'return (needs.TEXT,) if self.relevance == "words" else ()',
        "return ()",
        (f"{CDPRUNER}::test_it_says_what_it_needs_and_does",),
        "A model passes no words, and nothing warns of a picture that is tied to one question.",
    ),
    Mutation(
        COVER,
        "weights = torch.cat([there / count.to(weights.dtype), weights], 1)",
        "weights = torch.cat([there.to(weights.dtype), weights], 1)",
        (f"{MMTOK}::test_each_kind_of_thing_weighs_the_same_however_many",),
        "A long prompt outweighs the picture.",
    ),
    Mutation(
        COVER,
        "return self.alpha * counted / counted.sum(1, keepdim=True)",
        "return counted / counted.sum(1, keepdim=True)",
        (COVERS,),
        "alpha is ignored.",
    ),
    Mutation(
        COVER,
        "ops.cosines(own, own).div_(self.tau_vision)",
        "ops.cosines(own, own).div_(self.tau_text)",
        (COVERS,),
        "The temperature of words is that of tokens, too.",
    ),
    Mutation(
        COVER,
        "return scores.softmax(1)",
        "return scores.softmax(2)",
        (COVERS,),
        "Every token covers the same in all, so none is better than another.",
    ),
    Mutation(
        COVER,
        "scores.masked_fill_(~mask.unsqueeze(-1), -math.inf)",
        "scores.masked_fill_(~mask.unsqueeze(-1), 0)",
        (f"{MMTOK}::test_padding_and_batches_change_nothing",),
        "Padding takes a share of what there is to cover.",
    ),
    Mutation(
        COVER,
        "features, asked = alike(real(visual.features, mask), real(text, there))",
        "features, asked = alike(own, real(text, there))",
        (COVERS,),
        "Words are compared with what the vision tower gives.",
    ),
    Mutation(
        COVER,
        "asked = {needs.TEXT: self.cover_words, needs.TOWER_FEATURES: self.before_projector}",
        "asked = {needs.TEXT: self.cover_words, needs.TOWER_FEATURES: False}",
        (f"{MMTOK}::test_it_says_what_it_needs_and_does",),
        "A model passes no features of its tower, and the stage refuses in the middle of a call.",
    ),
    Mutation(
        "ficoco_ext/methods/cdpruner.py",
        "blocks=blocks, sign=sign",
        "blocks=blocks",
        (BRUTE,),
        "cdpruner does not pass its sign on.",
    ),
    Mutation(
        "ficoco_ext/methods/mmtok.py",
        "CoverSelect(tau_text, tau_vision, alpha,",
        "CoverSelect(tau_vision, tau_text, alpha,",
        (COVERS,),
        "The two temperatures of mmtok change places.",
    ),
    Mutation(
        "ficoco_ext/cost/reduction.py",
        "        text=text,\n",
        "",
        ("python_tests/cost/test_after_projector.py::test_words_are_priced",),
        "The words that a method reads cost nothing.",
    ),
]
