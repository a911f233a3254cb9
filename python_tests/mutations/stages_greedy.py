"""Faults of the filter that keeps what differs."""

from __future__ import annotations

from mutations import Mutation

FILE = "ficoco_ext/stages/greedy.py"
TESTS = "python_tests/reduce/test_greedy.py"

MUTATIONS = [
    Mutation(
        FILE,
        "attn.key.detach().mean(1)[:, int(class_token) :]",
        "attn.key.detach()[:, 0, int(class_token) :]",
        (f"{TESTS}::test_what_stays_is_what_is_picked",),
        "Only the first head says what differs.",
    ),
    Mutation(
        FILE,
        'least = math.ulp(0.0) if self.objective == "mmr" else 0',
        "least = 0",
        (f"{TESTS}::test_refusals",),
        "mmr without class attention ends in an error of the operator.",
    ),
    Mutation(
        FILE,
        "trade=self.trade\n        ).order",
        "trade=0.5\n        ).order",
        (f"{TESTS}::test_what_stays_is_what_is_picked",),
        "The trade between attention and similarity is ignored.",
    ),
    Mutation(
        FILE,
        "return seen if class_token else seen - seen.amin(1, keepdim=True)",
        "return seen",
        (f"{TESTS}::test_what_stays_is_what_is_picked",),
        "Without a class token saliency is negative, and refused.",
    ),
    Mutation(
        FILE,
        "torch.where(largest > 0, seen / largest.clamp_min(torch.finfo(seen.dtype).tiny), 1.0)",
        "seen",
        (f"{TESTS}::test_the_power_of_class_attention",),
        "Class attention of a long sequence to a power vanishes, and all gains with it.",
    ),
    Mutation(
        FILE,
        "** self.weigh",
        "** 1.0",
        (f"{TESTS}::test_the_power_of_class_attention",),
        "The power of class attention is ignored.",
    ),
    Mutation(
        FILE,
        "n=shape.visual, h=shape.head_dim, m=shape.kept",
        "n=shape.tokens, h=shape.head_dim, m=shape.kept",
        (f"{TESTS}::test_cost",),
        "The class token is priced as if it were compared.",
    ),
    Mutation(
        FILE,
        "class_attention=seen if class_token else None",
        "class_attention=None",
        (f"{TESTS}::test_what_stays_is_what_is_picked",),
        "A Compress that weighs by class attention refuses this filter.",
    ),
]
