"""Requests that share a batch: newcomers join it, answers stay those of lone decodes, a full queue refuses."""

import time

from bard_core.decoding import generate
from bard_core.serving.batching import Batcher, BusyError, Ended, Request, joined


class Log(list):
    """What a request is told; ``told`` is called with the log after each."""

    def __init__(self, told=lambda log: None):
        super().__init__()
        self.told = told

    def append(self, said):
        super().append(said)
        self.told(self)


def listened(chat, text, longest, log, **options):
    return Request(dict(chat.inputs([{"role": "user", "content": text}])), options, longest, lambda said: log.append(said))


def ended(*logs):
    deadline = time.monotonic() + 60
    while not all(log and isinstance(log[-1], Ended) for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.005)


def answered(batcher, early, late, *logs):
    """Submit the request ``early`` and, once it was told something, ``late``; both are answered whole."""
    try:
        batcher.submit(early)
        while not logs[0]:
            time.sleep(0.001)
        batcher.submit(late)
        ended(*logs)
    finally:
        batcher.close()


def test_newcomers_do_not_wait_for_a_long_answer(chat):
    order = []
    long, short = Log(order.append), Log(order.append)
    early, late = listened(chat, "Read A.", 200, long, factor=1.0), listened(chat, "Read B.", 4, short)
    answered(Batcher(chat, max_rows=4), early, late, long, short)
    assert order[-1] is long and sum(len(said) for said in long[:-1]) > 4


def test_a_newcomer_joins_the_running_batch_and_both_say_what_they_say_alone(chat):
    """They share one batch from the newcomer's second block on, whose answers are those of lone decodes."""
    batcher, groups = Batcher(chat, max_rows=4), []
    early, late = (Log(lambda _: groups.append((len(batcher.groups), batcher.rows))) for _ in range(2))
    answered(batcher, listened(chat, "Read A.", 120, early), listened(chat, "Read B C.", 40, late), early, late)
    assert (1, 2) in groups, "two requests in one group"
    for text, cap, log in (("Read A.", 120, early), ("Read B C.", 40, late)):
        inputs = chat.inputs([{"role": "user", "content": [{"type": "text", "text": text}]}])
        alone = generate(chat.model, inputs, max_new_tokens=cap, tokenizer=chat.tokenizer).sequences[0].tolist()
        assert [token for said in log[:-1] for token in said] == alone


def test_a_full_queue_refuses_and_a_stop_tells_those_who_wait(chat):
    batcher, logs = Batcher(chat, max_rows=1, max_waiting=2), [[] for _ in range(8)]
    refused = 0
    for log in logs:
        try:
            batcher.submit(listened(chat, "Read A.", 100, log))
        except BusyError:
            refused += 1
    batcher.close()
    assert refused >= 4 and not batcher.alive
    heard = [log[-1] for log in logs if log]
    assert all(isinstance(said, Ended) for said in heard) and "the server is stopping" in {said.words for said in heard}


def test_joined_prompts_are_padded_at_the_left(chat):
    prompts = [chat.inputs([{"role": "user", "content": text}]) for text in ("A", "A B C")]
    batch = joined([dict(prompt) for prompt in prompts])
    assert batch["input_ids"][0].tolist()[-prompts[0]["input_ids"].shape[1] :] == prompts[0]["input_ids"][0].tolist()
    assert batch["attention_mask"].sum(1).tolist() == [prompt["input_ids"].shape[1] for prompt in prompts]
