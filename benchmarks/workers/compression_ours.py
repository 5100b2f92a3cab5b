"""Our refiners and the baselines, as `triptych eval compress` measures them, at one rate.

Job: `name` and `rows` (a question file's), `refiners`, `rate`, `precision`, `seed`, `keep` (systems whose arms are
given back; empty: all).
"""

import json
import tempfile
from pathlib import Path

from _worker import Out, read

from triptych import Settings
from triptych.tools.evaluation import compress, datasets


def main() -> None:
    job, out = read(), Out()
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, f"{job['name']}.jsonl")
        path.write_text("".join(f"{json.dumps(row)}\n" for row in job["rows"]), "utf-8")
        questions = datasets.questions(path)
    found = compress.evaluate(
        questions,
        job["refiners"],
        budgets=(),
        rates=(job["rate"],),
        reranker=None,
        settings=Settings.load(precision=job["precision"]),
        seed=job["seed"],
        command="",
    )
    kept = [arm for arm in found.arms if not job["keep"] or arm.system in job["keep"]]
    out.put("arms", [arm.model_dump(mode="json") for arm in kept])


if __name__ == "__main__":
    main()
