"""The token classifier of ours on the texts that the untouched package gets, passage by passage.

Job: `threads`, `query`, `warm_up` (a text), `texts` (by name), `repeats` (by name).
"""

from collections.abc import Iterator
from functools import partial

import torch
from _pruning import measured
from _worker import Out, read

from triptych.rerankers.finetuned.triptych_pruner import Pruner, Reading


def main() -> None:
    job, out = read(), Out()
    torch.set_num_threads(job["threads"])
    pruner = Pruner.shipped(threads=job["threads"])
    pruner.read(job["query"], [job["warm_up"]])
    for name, text in job["texts"].items():
        # Each repetition asks something else, so that nothing is answered from memory.
        asked = iter([f"{job['query']} ({n})" for n in range(job["repeats"][name])])
        found, figures = measured(partial(ask, pruner, asked, text.split("\n\n")), job["repeats"][name])
        out.put(name, {**figures, "tokens": sum(len(one.keep) for one in found)})


def ask(pruner: Pruner, questions: Iterator[str], texts: list[str]) -> list[Reading]:
    """What one pass says about each text, for the next question."""
    return pruner.read(next(questions), texts)


if __name__ == "__main__":
    main()
