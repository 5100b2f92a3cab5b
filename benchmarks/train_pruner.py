"""Trains, exports and describes the weights of `triptych_pruner`.

    python benchmarks/prepare.py nq_train FOLDER nq_train.jsonl
    python benchmarks/train_pruner.py annotate nq_train.jsonl WORK
    python benchmarks/train_pruner.py teach WORK WORK [--share S]   # what a language model says of the sentences
    python benchmarks/train_pruner.py train WORK RUN [--epochs N] [--share S] [--without PART …] [--teacher NAME]
    python benchmarks/train_pruner.py measure WORK RUN
    python benchmarks/train_pruner.py export RUN OUT
    python benchmarks/train_pruner.py ablation WORK OUT   # of the finished runs WORK/abl_full, abl_PART, abl_TEACHER

Data: 2,055 questions of Natural Questions (CC BY-SA 3.0), each with the passage that answers it and 19 that do not,
found by BM25 (see `pruner_data.py`). 200 questions and their passages are never trained on.

Every run is seeded, and goes on from its last checkpoint when it is started again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pruner_data import PARTS, TEACHERS, Asked, Drawn, annotate, example, load, split, taught, teach

from triptych.rerankers.finetuned._pruner_export import exported
from triptych.rerankers.finetuned._pruner_training import Collator, Network, fit, sentence_logits
from triptych.rerankers.finetuned.triptych_pruner import MAX_PIECES, Pruner, session
from triptych.retrievers.lm_transformers import TransformersLM
from triptych.settings import Settings
from triptych.tools.evaluation.compare import against
from triptych.tools.evaluation.environment import environment
from triptych.tools.evaluation.result import Arm, DataInfo, Result

ABLATION = 100
"""Held-out questions that runs of an ablation are measured on."""
TESTED = ("words_hit1", "both_hit1", "words_kept_0.03")


# --- measuring -------------------------------------------------------------------------------------------------------


def measured(network: Network, collate: Collator, asked: Sequence[Asked], others: int) -> dict[str, float]:
    """How well a network ranks sentences and passages of held-out questions among `others` further passages."""
    rows = [_ranks(network, collate, one, others) for one in asked]
    return _means(rows)


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def _ranks(network: Network, collate: Collator, asked: Asked, others: int) -> dict[str, float]:
    examples = [example(asked.query, one, True, n == 0) for n, one in enumerate([asked.gold, *asked.others[:others]])]
    batch = collate([examples])
    with torch.inference_mode():
        pieces, passages = network.read_chunked(batch)
        means = sentence_logits(pieces, batch["sentences"], len(batch["targets"])).numpy()
    targets = batch["targets"].numpy()
    lengths = np.concatenate(
        [np.bincount(one.sentences[one.sentences >= 0], minlength=len(one.targets)) for one in examples]
    )
    told = {"passage_mrr": 1.0 / (1 + int((passages > passages[0]).sum()))}
    by_passage = means + passages.numpy()[batch["passage_of"].numpy()]
    for name, scores in (
        ("words", means),
        ("both", by_passage),
        ("teacher", np.concatenate([e.teacher for e in examples])),
    ):
        order = np.argsort(-scores, kind="stable")
        before = np.cumsum([0, *lengths[order]])[:-1][targets[order] > 0]
        told[f"{name}_hit1"] = float(targets[order[0]] > 0)
        for share in (0.03, 0.06, 0.125):
            told[f"{name}_kept_{share}"] = float(len(before) > 0 and before[0] < share * lengths.sum())
    return told


# --- commands --------------------------------------------------------------------------------------------------------


def fresh(seed: int) -> tuple[Network, Collator]:
    """The network before training, and what makes its batches."""
    from tokenizers import Tokenizer
    from transformers import BertModel

    folder = Settings.load().weights / "all_minilm_l6_v2"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    torch.manual_seed(seed)
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True, dtype=torch.float32)
    return Network(bert), Collator(tokenizer)


def train(work: Path, run: Path, given: argparse.Namespace) -> None:
    network, collate = fresh(given.seed)
    asked, held = (taught(part, work, given.teacher) for part in split(load(work)))
    asked = asked[: int(len(asked) * given.share)]
    data = Drawn(asked, given.epochs, given.seed, given.without)
    told = fit(
        network,
        data,
        run,
        collate,
        measure=lambda network: measured(network, collate, held[: given.dev], 9),
        rate=given.rate,
        questions=given.questions,
        seed=given.seed,
        every=given.every,
        bf16=given.bf16,
    )
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in told.state_dict().items()}, run / "network.safetensors")


def ask(work: Path, share: float) -> None:
    """Scores of a language model for the questions that runs of an ablation learn from, and are measured on."""
    asked, held = split(load(work))
    lm = TransformersLM.load(Settings.load())
    teach(held[:ABLATION], work, lm, others=9)
    teach(asked[: int(len(asked) * share)], work, lm)


def final(work: Path, run: Path) -> None:
    """Held-out questions among 19 further passages, and how near the exported network is to the trained one."""
    network, collate = trained(run)
    _, held = split(load(work))
    told = {"dev": measured(network, collate, held, 19), "int8": agreement(network, collate, held[:50])}
    (run / "dev.json").write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    print(json.dumps(told, indent=1))


def agreement(network: Network, collate: Collator, asked: Sequence[Asked]) -> dict[str, float]:
    """Of the network in 8-bit integers and in float32, over the golden and the likeliest other passages."""
    pruner = Pruner(session(exported(*_plain(network), MAX_PIECES)), collate.tokenizer)
    rows = []
    for one in asked:
        for known in (one.gold, *one.others[:4]):
            given = example(one.query, known, True, True)
            batch = collate([[given]])
            with torch.inference_mode():
                pieces, passage = network.read(batch["ids"], batch["kinds"], batch["mask"])
            [reading] = pruner.read(one.query, [given.text])
            start = int((batch["kinds"] == 0).sum())
            exact = pieces.sigmoid()[0, start : start + len(reading.keep)].numpy()
            keep = reading.keep[: len(exact)]
            apart = abs(reading.score - float(passage.sigmoid()))
            rows.append([apart, np.abs(keep - exact).mean(), np.corrcoef(keep, exact)[0, 1]])
    score, keep, correlation = np.array(rows).T
    return {
        "score_difference": float(score.mean()),
        "score_difference_most": float(score.max()),
        "keep_difference": float(keep.mean()),
        "keep_correlation": float(np.nanmedian(correlation)),
    }


def ablation(work: Path, out: Path) -> None:
    """`out/pruner_ablation.json`: runs of equal length that leave out one thing each, on the held-out questions."""
    arms = []
    for run in ("full", *PARTS, *TEACHERS[1:]):
        folder = work / f"abl_{run}"
        if (folder / "network.safetensors").is_file():
            network, collate = trained(folder)
            held = taught(split(load(work))[1], work, run if run in TEACHERS else "cosine")
            rows = {one.id: _ranks(network, collate, one, 9) for one in held[:ABLATION]}
            told = {} if run == "full" else {"teacher": run} if run in TEACHERS else {"without": run}
            values = {key: {name: row[key] for name, row in rows.items()} for key in TESTED}
            arms.append(
                Arm(system="triptych_pruner", settings=told, metrics=_means(list(rows.values())), per_query=values)
            )
    sizes = {"questions": min(ABLATION, len(held)), "contexts": 10}
    digest = hashlib.sha256((work / "annotated.jsonl").read_bytes()).hexdigest()
    made = Result(
        name="pruner_ablation",
        kind="pruner",
        title="What the pruner learns from: short runs without one part each, or with another teacher",
        command="python benchmarks/train_pruner.py ablation work results",
        seed=0,
        data=(DataInfo(name="nq_train", sha256=digest, sizes=sizes),),
        environment=environment((), "float32"),
        arms=tuple(arms),
        comparisons=tuple(against(arms, arms[0], TESTED)),
        notes=(
            "Every run: a quarter of the questions, two epochs, 115 steps of 8 questions, a tenth of the shipped run.",
            "Held-out questions, each with the passage that answers it and nine others; sentences stand by the mean "
            "logit of their word pieces (`words`), with the passage's logit added (`both`), or as the teacher does. "
            "`kept_S`: a sentence with the answer is among the first share S of the characters.",
            "`teacher`: SmolLM2-135M instead of MiniLM, for each question's own passage and the four likeliest others. "
            "`likelihood` is log P(question | sentence), `contrast` log P(sentence | question) - log P(sentence), "
            "LongLLMLingua's contrastive perplexity sentence by sentence; `teacher_…` is the teacher's own order.",
        ),
    )
    print(made.write(out).name)


def _plain(network: Network) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The configuration, and the weights as `exported` wants them."""
    weights = {key.removeprefix("bert."): value.detach().numpy() for key, value in network.state_dict().items()}
    return network.bert.config.to_dict(), weights


def export(run: Path, out: Path) -> None:
    """`model.onnx` and `tokenizer.json` into `out`."""
    network, collate = trained(run)
    out.mkdir(parents=True, exist_ok=True)
    (out / "model.onnx").write_bytes(exported(*_plain(network), MAX_PIECES))
    (out / "tokenizer.json").write_text(collate.tokenizer.to_str(), "utf-8")
    for path in sorted(out.iterdir()):
        print(f"{path.stat().st_size:>12,} {hashlib.sha256(path.read_bytes()).hexdigest()} {path.name}")


def trained(run: Path) -> tuple[Network, Collator]:
    """The network of a finished run."""
    from safetensors.torch import load_file

    network, collate = fresh(0)
    network.load_state_dict(load_file(run / "network.safetensors"))
    return network.eval(), collate


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("annotate", "teach", "train", "measure", "export", "ablation"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--without", nargs="*", default=[], choices=PARTS)
    parser.add_argument("--teacher", default="cosine", choices=TEACHERS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.5e-4)
    parser.add_argument("--questions", type=int, default=8)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--dev", type=int, default=60)
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args(arguments)
    if given.command == "annotate":
        annotate(given.source, given.out)
    elif given.command == "teach":
        ask(given.source, given.share)
    elif given.command == "train":
        train(given.source, given.out, given)
    elif given.command == "measure":
        final(given.source, given.out)
    elif given.command == "ablation":
        ablation(given.source, given.out)
    else:
        export(given.source, given.out)


if __name__ == "__main__":
    main()
