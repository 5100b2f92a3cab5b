"""A language model behind an endpoint: it agrees with the local one, and whatever the endpoint does ends in bounded
time with an answer or an error that says what was wrong, and never with the key in it."""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from triptych import Settings
from triptych.errors import BadInput, Cancelled, EndpointError, TimedOut, Unsupported
from triptych.progress import reporting
from triptych.rerankers.prompted.query_likelihood import QueryLikelihood
from triptych.retrievers import openai_wire
from triptych.retrievers.base import Hit, Item, MediaRef, Query, Source
from triptych.retrievers.endpoint import Endpoint, _seconds
from triptych.retrievers.lm import Ability, Prompt, Turn
from triptych.retrievers.lm_endpoint import EndpointLM, Usage, abilities, prices
from triptych.retrievers.lm_transformers import TransformersLM
from triptych.tools.stages import Stages

sys.path.append(str(Path(__file__).parent))
from openai_server import Fault, Handler, Served, serving

KEY = "sk-very-secret-1234"
ALL: tuple[Ability, ...] = ("generate", "logprobs", "logits", "images")
LOCAL = TransformersLM.tiny(0)
PROMPTS = [["The capital of France is"], ["2 + 2 ="], ["Once", " upon"]]


@pytest.fixture
def served() -> Iterator[Served]:
    with serving(LOCAL) as found:
        yield found


def model(served: Served, can: tuple[Ability, ...] = ALL, key: str = KEY, **options: Any) -> EndpointLM:
    given = {"timeout_s": 2.0, "pause_s": 0.01, **options}
    return EndpointLM(Endpoint(served.url, key, **given), "tiny", can, (1.0, 2.0))


# --- it agrees with the local model ----------------------------------------------------------------------------------


def test_answers_are_the_models_in_the_order_of_the_prompts(served: Served) -> None:
    lm = model(served)
    assert lm.generate(PROMPTS, 5) == LOCAL.generate(PROMPTS, 5)
    assert lm.generate([], 5) == []
    sent = served.requests[0]
    assert (sent[0], sent[1]["Authorization"]) == ("/v1/chat/completions", f"Bearer {KEY}")
    assert (sent[2]["model"], sent[2]["temperature"], sent[2]["max_tokens"]) == ("tiny", 0, 5)
    with pytest.raises(BadInput, match="max_tokens is `0`"):
        lm.generate([["a"]], 0)


def test_stop_texts_are_sent_and_looked_for(served: Served) -> None:
    whole = LOCAL.generate(PROMPTS[:1], 5)[0]
    assert model(served).generate(PROMPTS[:1], 5, [whole[2]]) == [whole[:2]]
    assert served.requests[0][2]["stop"] == [whole[2]]


def test_logprobs_are_the_local_ones(served: Served) -> None:
    targets = [" Paris.", " 4", ""]
    found = model(served).logprobs(PROMPTS, targets)
    for one, wanted in zip(found, LOCAL.logprobs(PROMPTS, targets), strict=True):
        assert one.tokens == pytest.approx(wanted.tokens, abs=1e-3)
    assert len(served.requests) == 2  # nothing is asked about an empty target
    with pytest.raises(BadInput, match="`1` targets for `3` prompts"):
        model(served).logprobs(PROMPTS, ["a"])
    with pytest.raises(BadInput, match="first token has no probability"):
        model(served).logprobs([[""]], ["abc"])


def test_logits_are_log_probabilities_of_the_tokens_shown(served: Served) -> None:
    asked = next(LOCAL._next([LOCAL._ids("abc")]))[1][0].log_softmax(-1)
    order = [LOCAL.tokenizer.decode([token]) for token in asked.argsort(descending=True).tolist()]
    plain = [token for token in order[:20] if token.isascii() and token.isalnum()]
    last = next(token for token in reversed(order) if token.isascii() and token.isalnum())
    found = model(served).next_token_logits([["abc"]], [plain[0], last])
    assert (found.shape, found.dtype) == ((1, 2), np.float32)
    assert found[0, 0] == pytest.approx(float(asked.sort(descending=True).values[order.index(plain[0])]), abs=1e-3)
    assert found[0, 1] == pytest.approx(float(asked.topk(20).values[-1]) - openai_wire.FLOOR, abs=1e-3)
    assert served.requests[0][2]["top_logprobs"] == 20
    assert model(served).next_token_logits([], ["a"]).shape == (0, 1)


@pytest.mark.parametrize("wrong", [["yes", " yes"], ["", "a"]])
def test_candidates_that_cannot_be_told_apart_are_refused(served: Served, wrong: list[str]) -> None:
    with pytest.raises(BadInput, match="cannot be told apart"):
        model(served).next_token_logits([["a"]], wrong)
    assert served.requests == []


def test_a_token_that_begins_two_candidates_is_refused() -> None:
    shown = [("pass", -0.5), ("x", -2.0)]
    with pytest.raises(BadInput, match="share a first token, `pass`"):
        openai_wire.of_candidates(shown, ["passage A", "passage B"])
    assert openai_wire.of_candidates([("A", -0.5)], ["A", "Apple"]) == [-0.5, -1.5]


def test_a_reranker_ranks_the_same_over_an_endpoint(served: Served) -> None:
    hits = [Hit(Item(f"p{n}", f"Passage {n} {'about petrels ' * n}", Source("a.md")), 5.0 - n) for n in range(5)]
    asked = Query("What do petrels do?")
    local, remote = (QueryLikelihood(lm).rank(asked, hits) for lm in (LOCAL, model(served)))
    assert [hit.item.id for hit in remote.hits] == [hit.item.id for hit in local.hits]
    assert [hit.score for hit in remote.hits] == pytest.approx([hit.score for hit in local.hits], abs=1e-3)


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_conversations_keep_their_turns(served: Served) -> None:
    model(served).generate([[Turn("system", "Be short."), "Who", " are you?"]], 1)
    assert served.requests[0][2]["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Who are you?"},
    ]


def test_a_begun_answer_goes_on_or_is_refused(served: Served) -> None:
    begun = [[Turn("user", "Rank."), Turn("assistant", "[")]]
    model(served).generate(begun, 1)
    assert served.requests[0][2]["continue_final_message"] is True
    served.lacks.add("begun")
    with pytest.raises(Unsupported, match="does not go on with a begun answer"):
        model(served).generate(begun, 1)


def test_pictures_are_sent_as_data(served: Served, tmp_path: Path) -> None:
    Image.new("RGB", (8, 6), "red").save(tmp_path / "a.png")
    prompt: Prompt = ["What is this? ", MediaRef(str(tmp_path / "a.png"), "image/png")]
    model(served).generate([prompt], 1)
    text, picture = served.requests[0][2]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is this? "}
    assert picture["image_url"]["url"].startswith("data:image/png;base64,")
    with pytest.raises(Unsupported, match="cannot do `images`"):
        model(served, ("generate",)).generate([prompt], 1)
    with pytest.raises(Unsupported, match="image/png"):
        model(served).logprobs([prompt], ["x"])


def test_a_newer_name_of_the_token_limit_is_learnt(served: Served) -> None:
    served.limit = "max_completion_tokens"
    lm = model(served)
    assert lm.generate(PROMPTS[:1], 3) == LOCAL.generate(PROMPTS[:1], 3)
    lm.generate(PROMPTS[:1], 3)
    assert ["max_tokens" in body for _, _, body in served.requests] == [True, False, False]


def test_a_prompt_beyond_the_context_is_bad_input(served: Served) -> None:
    with pytest.raises(BadInput, match="too long"):
        model(served).generate([["a" * 4000]], 1)


# --- what it can, and what it cost -----------------------------------------------------------------------------------


@pytest.mark.parametrize("lacks", [(), ("logits",), ("logprobs", "images"), ("logits", "logprobs", "images")])
def test_what_an_endpoint_can_is_asked_once(served: Served, lacks: tuple[str, ...], tmp_path: Path) -> None:
    served.lacks.update(lacks)
    lm = EndpointLM.load(settings(served, tmp_path), {"TRIPTYCH_LM_KEY": f" {KEY}\n"})
    assert lm.can == set(ALL) - set(lacks)
    assert len(served.requests) <= 5
    assert {headers["Authorization"] for _, headers, _ in served.requests} == {f"Bearer {KEY}"}
    with pytest.raises(Unsupported, match="local language model"):
        lm.top_next([["a"]], 3)


def test_what_an_endpoint_can_is_not_asked_when_it_is_set(served: Served, tmp_path: Path) -> None:
    lm = EndpointLM.load(settings(served, tmp_path, lm_can="generate, logits"), {})
    assert (lm.can, served.requests) == ({"generate", "logits"}, [])
    with pytest.raises(Unsupported, match="cannot do `logprobs`"):
        lm.logprobs([["a"]], ["b"])


def test_a_wrong_key_is_told_when_the_model_is_loaded(served: Served, tmp_path: Path) -> None:
    served.faults.append(lambda handler: handler.refuse(401, f"Incorrect API key provided: {KEY}."))
    with pytest.raises(EndpointError, match="status `401`") as caught:
        EndpointLM.load(settings(served, tmp_path), {"TRIPTYCH_LM_KEY": KEY})
    assert "TRIPTYCH_LM_KEY" in caught.value.hint
    assert KEY not in str(caught.value)


def test_the_stages_ask_the_endpoint_and_keep_the_local_model(served: Served, tmp_home: Path) -> None:
    stages = Stages(Settings.load(home=tmp_home, environ={}, lm_endpoint=served.url, lm_model="tiny", lm_can="logits"))
    assert isinstance(stages.lm(), EndpointLM)
    assert stages.lm() is stages.lm()
    assert isinstance(stages.local_lm(), TransformersLM)


def test_tokens_and_cost_are_counted(served: Served) -> None:
    lm = model(served)
    assert lm.usage == Usage(cost=0.0)
    served.faults.append(lambda handler: handler.refuse(500, "Later."))
    lm.generate([["abcde"], ["xyz"]], 2)
    assert lm.usage == Usage(requests=3, retries=1, prompt_tokens=8, completion_tokens=4, cost=(8 + 2 * 4) / 1e6)
    served.faults.append(lambda handler: handler.answer({"choices": [{"message": {"content": "hi"}}]}))
    assert lm.generate([["a"]], 2) == ["hi"]
    assert lm.usage.uncounted == 1
    assert EndpointLM(Endpoint(served.url), "m").usage.cost is None


def settings(served: Served, home: Path, **more: Any) -> Settings:
    return Settings.load(home=home, environ={}, lm_endpoint=served.url, lm_model="tiny", lm_timeout=2, **more)


@pytest.mark.parametrize("told", ["0.15", "a, b", "1, -2", "nan, 1", "1, 2, 3"])
def test_prices_are_two_numbers(told: str) -> None:
    with pytest.raises(BadInput, match="lm_prices"):
        prices(told)
    assert prices(" ") is None


def test_abilities_are_known_ones() -> None:
    assert abilities("") == ["generate"]
    with pytest.raises(BadInput, match="`flying`"):
        abilities("logits, flying")


# --- whatever an endpoint does ---------------------------------------------------------------------------------------


def refusing(status: int, **headers: str) -> Fault:
    return lambda handler: handler.refuse(status, "Not now.", **headers)


def saying(data: bytes, kind: str = "application/json", length: int = 0) -> Fault:
    return lambda handler: handler.send(200, data, kind, length)


def hanging_up(handler: Handler) -> None:
    handler.close_connection = True


def dripping(handler: Handler) -> None:
    """One byte of an answer now and then."""
    handler.send(200, b"", length=1000)
    try:
        for _ in range(100):
            handler.wfile.write(b" ")
            time.sleep(0.05)
    except OSError:
        handler.close_connection = True


def dripping_header(handler: Handler) -> None:
    """One byte of a header now and then: each is in time, and none is the last."""
    handler.close_connection = True
    try:
        for n in range(50):
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: "[n : n + 1] or b"a")
            time.sleep(0.05)
    except OSError:
        return


PASSING = {
    "429": refusing(429),
    "500": refusing(500),
    "503 with a time": refusing(503, Retry_After="0.05"),
    "503 with a date": refusing(503, Retry_After=formatdate(0, usegmt=True)),
    "half a body": saying(b'{"choices": [', length=500),
    "half of its JSON": saying(b'{"choices": [{"mess'),
    "no body": hanging_up,
}


@pytest.mark.parametrize("name", PASSING)
def test_what_passes_is_tried_again(served: Served, name: str) -> None:
    served.faults += [PASSING[name]] * 2
    lm = model(served)
    assert lm.generate(PROMPTS[:1], 3) == LOCAL.generate(PROMPTS[:1], 3)
    assert (lm.usage.requests, lm.usage.retries) == (3, 2)


@pytest.mark.parametrize("name", PASSING)
def test_what_does_not_pass_ends_after_five_attempts(served: Served, name: str) -> None:
    served.faults += [PASSING[name]] * 9
    with pytest.raises(EndpointError) as caught:
        model(served).generate(PROMPTS[:1], 3)
    assert len(served.requests) == 5
    assert served.url.removesuffix("/v1") in caught.value.message
    assert KEY not in str(caught.value)


LASTING = {
    "400": (refusing(400), "status `400`: `Not now.`"),
    "401": (refusing(401), "TRIPTYCH_LM_KEY"),
    "404": (refusing(404), "usually ends in `/v1`"),
    "redirect": (refusing(302, Location="http://127.0.0.1:1/elsewhere"), "elsewhere"),
    "page": (saying(b"<!doctype html><title>Sign in</title>", "text/html"), "a web page"),
    "page as JSON": (saying(b"  <html>"), "a web page"),
    "list": (saying(b"[1, 2]"), "`list`"),
    "empty object": (saying(b"{}"), "without `choices`"),
    "no choice": (saying(b'{"choices": []}'), "without `choices`"),
    "odd choice": (saying(b'{"choices": ["hello"]}'), "without `choices`"),
    "odd message": (saying(b'{"choices": [{"message": "hello"}]}'), r"without `choices\[0\].message.content`"),
    "number": (saying(b'{"choices": [{"message": {"content": 7}}]}'), r"without `choices\[0\].message.content`"),
    "too much": (saying(b" " * (16 * 2**20 + 1)), "more than `16,777,216` bytes"),
}


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_told_at_once(served: Served, name: str) -> None:
    fault, words = LASTING[name]
    served.faults += [fault]
    with pytest.raises(EndpointError, match=words):
        model(served).generate(PROMPTS[:1], 3)
    assert len(served.requests) == 1


def test_an_answer_without_text_is_empty(served: Served) -> None:
    served.faults.append(saying(b'{"choices": [{"message": {"content": null, "refusal": "No."}}]}'))
    assert model(served).generate(PROMPTS[:1], 3) == [""]


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"tokens": ["a"], "token_logprobs": []},
        {"tokens": ["!"], "token_logprobs": [-1.0]},
        {"tokens": ["ab", "c"], "token_logprobs": [None, "x"]},
        "text",
    ],
)
def test_odd_echoes_are_refused(served: Served, told: Any) -> None:
    served.faults.append(lambda handler: handler.answer({"choices": [{"logprobs": told}]}))
    with pytest.raises(EndpointError, match="logprobs"):
        model(served).logprobs([["ab"]], ["c"])


@pytest.mark.parametrize("told", [None, {}, {"content": []}, {"content": [{"top_logprobs": [{"token": "a"}]}]}])
def test_odd_tops_are_refused(served: Served, told: Any) -> None:
    served.faults.append(lambda handler: handler.answer({"choices": [{"logprobs": told}]}))
    with pytest.raises(EndpointError, match="top_logprobs"):
        model(served).next_token_logits([["ab"]], ["c"])


def test_a_token_in_front_and_characters_in_pieces_find_their_place() -> None:
    told = {"tokens": ["<s>", "ab", "cd", "e", "!"], "token_logprobs": [None, -1.0, -2.0, -3.0, -9.0]}
    assert openai_wire.echoed("x", {"choices": [{"logprobs": told}]}, "abcde", 3) == (-2.0, -3.0)
    split = {"tokens": ["a", "\ufffd", "\ufffd", "b"], "token_logprobs": [None, -1.0, -2.0, -3.0]}
    split["text_offset"] = [0, 1, 1, 2]
    assert openai_wire.echoed("x", {"choices": [{"logprobs": split}]}, "a世b", 1) == (-1.0, -2.0, -3.0)


@given(st.text("ab 世", min_size=1, max_size=8), st.text("ab 世", min_size=1, max_size=8), st.data())
def test_every_way_to_cut_a_text_into_tokens_gives_those_of_the_target(prompt: str, target: str, data: Any) -> None:
    text = prompt + target
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1))))
    tokens = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    values = [-float(n) for n in range(len(tokens))]
    answer = {"choices": [{"logprobs": {"tokens": [*tokens, "!"], "token_logprobs": [*values, -99.0]}}]}
    found = openai_wire.echoed("x", answer, text, len(prompt))
    assert found == tuple(values[len(values) - len(found) :])
    assert sum(len(token) for token in tokens[len(tokens) - len(found) :]) >= len(target)


# --- time ------------------------------------------------------------------------------------------------------------


def test_a_silent_endpoint_is_waited_for_only_so_long(served: Served) -> None:
    served.delay_s = 0.5
    start = time.monotonic()
    with pytest.raises(TimedOut, match=r"within `0\.1` s"):
        model(served, timeout_s=0.1, patience_s=0.4).generate(PROMPTS[:1], 1)
    assert time.monotonic() - start < 2


def test_an_answer_that_drips_is_waited_for_only_so_long(served: Served) -> None:
    served.faults += [dripping] * 9
    start = time.monotonic()
    with pytest.raises(TimedOut, match=r"within `0\.2` s"):
        model(served, timeout_s=0.2, patience_s=0.5).generate(PROMPTS[:1], 1)
    assert time.monotonic() - start < 3


def test_a_header_that_drips_keeps_nobody(served: Served) -> None:
    served.faults.append(dripping_header)
    start = time.monotonic()
    with pytest.raises(TimedOut, match=r"within `0\.3` s"):
        model(served, timeout_s=0.2, patience_s=0.3).generate(PROMPTS[:1], 1)
    assert time.monotonic() - start < 2.5


def test_a_wait_beyond_the_patience_is_not_begun(served: Served) -> None:
    served.faults.append(refusing(429, Retry_After="3600"))
    with pytest.raises(EndpointError, match="asks to wait 3600 s"):
        model(served).generate(PROMPTS[:1], 1)
    assert len(served.requests) == 1


def test_the_time_asked_for_is_waited(served: Served) -> None:
    served.faults.append(refusing(429, Retry_After="0.3"))
    model(served).generate(PROMPTS[:1], 1)
    assert served.times[1] - served.times[0] >= 0.3


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    lm = EndpointLM(Endpoint(url, KEY, timeout_s=1, pause_s=0.01), "m")
    with pytest.raises(EndpointError, match="cannot be reached"):
        lm.generate([["a"]], 1)
    assert lm.usage.requests == 5


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_whoever_waits_can_stop(served: Served, how: str) -> None:
    served.delay_s = 0.6
    stop = threading.Event()
    threading.Timer(0.1, stop.set).start()
    limit = {"cancelled": stop} if how == "cancelled" else {"timeout_s": 0.1}
    start = time.monotonic()
    with reporting(**limit), pytest.raises(Cancelled if how == "cancelled" else TimedOut):  # type: ignore[arg-type]
        model(served, at_once=1).generate(PROMPTS * 4, 1)
    assert time.monotonic() - start < 0.6
    assert len(served.requests) == 1


def test_so_many_at_once_and_no_more_from_many_threads(served: Served) -> None:
    served.delay_s = 0.05
    lm = model(served, at_once=3)
    wanted = LOCAL.generate(PROMPTS, 2)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: lm.generate(PROMPTS, 2), range(8)))
    assert found == [wanted] * 8
    assert served.most == 3


def test_requests_keep_their_pace(served: Served) -> None:
    model(served, per_minute=600).generate([["a"]] * 4, 1)
    gaps = np.diff(sorted(served.times))
    assert gaps.min() > 0.05
    assert sum(gaps) == pytest.approx(0.3, abs=0.2)


@pytest.mark.parametrize(("said", "wanted"), [("1.5", 1.5), ("-3", 0.0), ("x", None), (None, None), ("nan", 0.0)])
def test_the_time_to_wait_is_read(said: str | None, wanted: float | None) -> None:
    assert _seconds(said) == wanted
    assert _seconds(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=3)


# --- addresses and the key -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "localhost:8000", "ftp://a/v1", "file:///etc/passwd", "http://", "http://[::1", "https://a/v1?k=s3cret"]
)
def test_only_plain_web_addresses(url: str) -> None:
    with pytest.raises(BadInput) as caught:
        Endpoint(url)
    assert "s3cret" not in str(caught.value)


def test_an_address_with_a_password_is_refused_without_showing_it() -> None:
    with pytest.raises(BadInput) as caught:
        Endpoint("https://me:s3cret@example.test/v1")
    assert "s3cret" not in str(caught.value)
    assert "TRIPTYCH_LM_KEY" in caught.value.hint


def test_a_key_that_no_header_can_carry_is_refused_without_showing_it() -> None:
    for key in ("sk-1\nX-Other: 1", "schlüssel"):
        with pytest.raises(BadInput) as caught:
            Endpoint("http://127.0.0.1:1", key)
        assert key[:3] not in str(caught.value)


def test_the_key_is_nowhere_to_be_read(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    lm = model(served)
    with caplog.at_level(logging.DEBUG):
        lm.generate(PROMPTS[:1], 1)
        served.faults.append(lambda handler: handler.refuse(400, f"`{KEY}`\x1b[31m is\nnone of ours. " + "x" * 500))
        with pytest.raises(EndpointError, match=r"status `400`: `'\*\*\*' \[31m is none of ours\. x+…`") as caught:
            lm.generate(PROMPTS[:1], 1)
    shown = [repr(lm), str(lm), repr(lm._endpoint), str(caught.value), repr(caught.value), caplog.text]
    assert all(KEY not in text for text in shown)
    assert "tiny" in repr(lm)


def test_a_model_has_to_be_named(served: Served) -> None:
    with pytest.raises(BadInput, match="lm_model"):
        EndpointLM(Endpoint(served.url), "")
    with pytest.raises(BadInput, match="above 0"):
        Endpoint(served.url, at_once=0)
