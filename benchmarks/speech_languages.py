"""Word error of the speech models on sentences of ours that espeak-ng reads, by language; and text made up for noise.

    python benchmarks/speech_languages.py [--noise FOLDER] [--most 60]

Needs espeak-ng, the extra `whisper`, and pulled weights (`TRIPTYCH_SPEECH=whisper_base triptych pull embedded`). A
synthetic voice is harder for these models than a person: the figures compare models, they do not say how good one is.
Chinese and Japanese are counted in characters.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from pathlib import Path

from triptych import Settings
from triptych.retrievers.readers import read
from triptych.retrievers.readers.base import Limits

SENTENCES = {
    "en-us": (
        "The ferry does not run today, because the wind is too strong. Please bring warm clothes and bread "
        "for three days. The next boat leaves on Thursday at nine. Nobody may enter the lighthouse alone."
    ),
    "de": (
        "Die Fähre fährt heute nicht, weil der Wind zu stark ist. Bitte bringen Sie warme Kleidung und Brot "
        "für drei Tage mit. Das nächste Schiff fährt am Donnerstag um neun. Niemand darf den Leuchtturm "
        "allein betreten."
    ),
    "es": (
        "El barco no sale hoy porque el viento es demasiado fuerte. Traigan ropa de abrigo y pan para tres "
        "días. El próximo barco sale el jueves a las nueve. Nadie puede entrar solo en el faro."
    ),
    "fr": (
        "Le bateau ne part pas aujourd'hui, parce que le vent est trop fort. Apportez des vêtements chauds "
        "et du pain pour trois jours. Le prochain bateau part jeudi à neuf heures. Personne ne doit entrer "
        "seul dans le phare."
    ),
    "it": (
        "Il traghetto oggi non parte, perché il vento è troppo forte. Portate vestiti caldi e pane per tre "
        "giorni. La prossima nave parte giovedì alle nove. Nessuno può entrare da solo nel faro."
    ),
    "pl": (
        "Prom dzisiaj nie płynie, bo wiatr jest zbyt silny. Proszę zabrać ciepłe ubrania i chleb na trzy "
        "dni. Następny statek odpływa w czwartek o dziewiątej. Nikt nie może sam wejść do latarni."
    ),
    "cmn": "今天风太大,渡船不开。请带上暖和的衣服和三天的面包。下一班船星期四九点开。谁也不可以一个人进灯塔。",
}
MODELS = ("moonshine_tiny_en", "whisper_base")


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--noise", type=Path, help="a folder of recordings in which nobody speaks")
    given.add_argument("--most", type=int, default=60, help="of them")
    plan = given.parse_args()
    limits = {name: Limits(weights=Settings.load().weights, speech=name) for name in MODELS}
    print("| language | " + " | ".join(MODELS) + " |\n|---|" + "---|" * len(MODELS))
    with tempfile.TemporaryDirectory() as folder:
        for voice, words in SENTENCES.items():
            clip = Path(folder) / f"{voice}.wav"
            subprocess.run(["espeak-ng", "-v", voice, "-s", "130", "-w", str(clip), words], check=True)
            errors = [error(tokens(words, voice), tokens(heard(clip, one), voice)) for one in limits.values()]
            print(f"| {voice} | " + " | ".join(f"{value:.2f}" for value in errors) + " |", flush=True)
    if plan.noise:
        clips = sorted(path for path in plan.noise.iterdir() if path.is_file())[: plan.most]
        made_up = [sum(bool(heard(clip, one)) for clip in clips) for one in limits.values()]
        print(f"| text for noise, of {len(clips)} clips | " + " | ".join(map(str, made_up)) + " |")


def heard(clip: Path, limits: Limits) -> str:
    sections = read(clip, clip.name, limits).sections
    return " ".join(section.text for section in sections if section.meta.get("speech"))


def tokens(text: str, voice: str) -> list[str]:
    return re.findall(r"\w" if voice == "cmn" else r"\w+", text.lower())


def error(wanted: list[str], found: list[str]) -> float:
    """Insertions, deletions and substitutions (Levenshtein) for each token of `wanted`."""
    row = list(range(len(found) + 1))
    for i, one in enumerate(wanted, 1):
        before, row = row, [i]
        for j, other in enumerate(found, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (one != other)))
    return row[-1] / len(wanted)


if __name__ == "__main__":
    main()
