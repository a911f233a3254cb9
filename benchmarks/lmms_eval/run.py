"""Accuracy with fewer visual tokens by lmms-eval, where the weights and the benchmarks are.

    pip install lmms-eval==0.7.3
    python benchmarks/lmms_eval/run.py llava-hf/llava-1.5-7b-hf --tasks gqa,pope
    python benchmarks/lmms_eval/run.py llava-hf/llava-1.5-7b-hf --tasks gqa --method topk --attach '{"tokens": 64}'

The first command is the unreduced model, which every comparison needs from the same machine and the same versions. The
model is made by lmms-eval (``--model``, ``--model-args`` as of its own command line), ``ficoco_ext.attach`` is applied
to it, and ``lmms_eval.evaluator.simple_evaluate`` asks it. lmms-eval turns an exception of ``generate`` into an empty
answer; here it ends the run, so that a refused reduction is no accuracy of 0.

``ficoco cost --reproduce`` prints this command for the rows of FiCoCo's tables. It was tested with a stand-in for
lmms-eval 0.7.3, without its models and benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ficoco_ext


@contextlib.contextmanager
def watched(model: Any) -> Iterator[None]:
    """While it lasts exceptions of ``model.generate`` are noted; afterwards the first one is raised.

    Raises:
        RuntimeError: some calls failed; the message says how many, and why the first did.
    """
    failures: list[Exception] = []
    generate = model.generate

    def noting(*given: Any, **named: Any) -> Any:
        try:
            return generate(*given, **named)
        except Exception as error:
            failures.append(error)
            raise

    own = "generate" in vars(model)
    model.generate = noting
    try:
        yield
    finally:
        if own:
            model.generate = generate
        else:
            del model.generate
    if failures:
        raise RuntimeError(f"{len(failures)} calls of generate failed, the first with: {failures[0]}") from failures[0]


def evaluate(
    pretrained: str,
    tasks: Sequence[str],
    method: str | None = None,
    arguments: dict[str, Any] | None = None,
    *,
    model: str = "llava_hf",
    model_args: str = "",
    limit: float | None = None,
) -> dict[str, Any]:
    """Ask ``tasks`` of a model of lmms-eval that reduces visual tokens by ``method``.

    Args:
        pretrained: hub name or directory of the checkpoint. tasks: names of lmms-eval.
        method: as of :func:`ficoco_ext.attach`; None: nothing is reduced. arguments: the others of ``attach``.
        model: name of lmms-eval's class, which must hold a model of transformers as ``.model``.
        model_args: more arguments of that class, ``key=value`` with commas between.
        limit: of questions of each task, for a try.

    Returns:
        ``results``: what lmms-eval found of each task; ``plan``: what was reduced; ``method``, ``arguments``.

    Raises:
        ValueError, TypeError, NotImplementedError: as ``attach``. RuntimeError: an answer that could not be generated.
    """
    from lmms_eval.evaluator import simple_evaluate
    from lmms_eval.models import get_model
    from lmms_eval.tasks import TaskManager

    given = ",".join(filter(None, (f"pretrained={pretrained}", model_args)))
    loaded = get_model(model).create_from_arg_string(given, {"batch_size": 1})
    plan = None
    with contextlib.ExitStack() as stack:
        if method is not None:
            handle = stack.enter_context(ficoco_ext.attach(loaded.model, method, **(arguments or {})))
            plan = str(handle.attach_plan)
        stack.enter_context(watched(loaded.model))
        found = simple_evaluate(
            model=loaded,
            tasks=list(tasks),
            task_manager=TaskManager(model_name=model),  # some tasks ask models of one name in words of their own
            batch_size=1,
            limit=limit,
            log_samples=False,
        )
    return {"results": found["results"], "plan": plan, "method": method, "arguments": arguments or {}}


def main(given: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pretrained", help="hub name or directory of the checkpoint")
    parser.add_argument("--tasks", required=True, help="of lmms-eval, with commas between")
    parser.add_argument("--method", help="of ficoco_ext; without it nothing is reduced")
    parser.add_argument("--attach", type=json.loads, default={}, help="other arguments of attach, as JSON")
    parser.add_argument("--model", default="llava_hf", help="class of lmms-eval")
    parser.add_argument("--model-args", default="", help="more arguments of that class, key=value,...")
    parser.add_argument("--limit", type=float, help="questions of each task, for a try")
    parser.add_argument("--output", type=Path, help="write what was found as JSON")
    said = parser.parse_args(given)
    if not isinstance(said.attach, dict):
        parser.error(f"--attach must be a JSON object, got {said.attach!r}")
    if said.attach and said.method is None:
        parser.error("--attach is of a method; give --method")
    found = evaluate(
        said.pretrained,
        said.tasks.split(","),
        said.method,
        said.attach,
        model=said.model,
        model_args=said.model_args,
        limit=said.limit,
    )
    text = json.dumps(found, indent=1, default=str)
    if said.output is not None:
        said.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
