"""Ask an exported model: four kinds of question, with transformers alone.

    python serve.py classify  FOLDER "a text" ["a second one"]
    python serve.py choose    FOLDER "a context" "one ending" "another" ...
    python serve.py answer    FOLDER "a question" "a passage"
    python serve.py summarize FOLDER "a text"

FOLDER is a head's folder of ``muppet export-hf`` (for ``summarize``, that of an exported BART itself). Needs
``pip install torch transformers`` and nothing of muppet_fairseq. Of these four, transformers 5 has a pipeline for the
first alone; the others are what a pipeline would do.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    pipeline,
)

#: tokens that two neighbouring windows of a passage share, and of the longest answer
OVERLAP, MAX_ANSWER = 128, 30


def classify(folder: str, text: str, second: str | None = None) -> dict[str, object]:
    """The most likely class of a text or a pair, or the number that a regression gives it."""
    texts = {"text": text} if second is None else {"text": text, "text_pair": second}
    return pipeline("text-classification", model=folder, tokenizer=folder)(texts, truncation=True)


@torch.inference_mode()
def choose(folder: str, context: str, *choices: str) -> dict[str, object]:
    """The likeliest choice and the probabilities of all."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # a BART's class for this is in the folder itself
    model = AutoModelForMultipleChoice.from_pretrained(folder, trust_remote_code=True).eval()
    rows = tokenizer([context] * len(choices), list(choices), truncation=True, padding=True, return_tensors="pt")
    logits = model(**{name: values[None] for name, values in rows.items()}).logits[0]
    return {"choice": choices[logits.argmax()], "probabilities": logits.softmax(dim=0).tolist()}


@torch.inference_mode()
def answer(folder: str, question: str, passage: str) -> dict[str, object]:
    """The best span of a passage, which may be longer than the model: it is read in windows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    room = tokenizer.model_max_length - 4 - len(tokenizer.tokenize(question))
    windows = tokenizer(
        question,
        passage,
        truncation="only_second",
        stride=min(OVERLAP, room // 2),
        padding=True,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    output = model(windows["input_ids"], attention_mask=windows["attention_mask"])
    best = {"answer": "", "score": float("-inf")}
    for number, offsets in enumerate(windows["offset_mapping"].tolist()):
        inside = torch.tensor([sequence == 1 for sequence in windows.sequence_ids(number)])
        starts = output.start_logits[number].masked_fill(~inside, float("-inf"))
        ends = output.end_logits[number].masked_fill(~inside, float("-inf"))
        # an answer ends where it starts or up to MAX_ANSWER - 1 tokens later
        scores = starts[:, None] + ends[None]
        is_span = torch.ones_like(scores, dtype=torch.bool).triu().tril(MAX_ANSWER - 1)
        scores = scores.masked_fill(~is_span, float("-inf"))
        start, end = divmod(int(scores.argmax()), len(offsets))
        if scores[start, end] > best["score"]:
            span = passage[offsets[start][0] : offsets[end][1]]
            best = {"answer": span.strip(), "score": float(scores[start, end])}
    return best


@torch.inference_mode()
def summarize(folder: str, text: str) -> dict[str, object]:
    """A shorter text, written as ``generation_config.json`` says."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    written = model.generate(**tokenizer([text], truncation=True, return_tensors="pt"))
    return {"summary": tokenizer.decode(written[0], skip_special_tokens=True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    questions = parser.add_subparsers(required=True, metavar="QUESTION")
    for ask, texts in (
        (classify, {"text": None, "second": "?"}),
        (choose, {"context": None, "choices": "+"}),
        (answer, {"question": None, "passage": None}),
        (summarize, {"text": None}),
    ):
        command = questions.add_parser(ask.__name__, help=ask.__doc__.splitlines()[0])
        command.add_argument("folder", help="what 'muppet export-hf' wrote")
        for name, count in texts.items():
            command.add_argument(name, nargs=count)
        command.set_defaults(ask=ask)
    asked = vars(parser.parse_args())
    ask, folder, choices = asked.pop("ask"), asked.pop("folder"), asked.pop("choices", [])
    if not Path(folder, "config.json").is_file():
        parser.error(f"{folder} holds no config.json; name a folder that 'muppet export-hf' wrote")
    print(json.dumps(ask(folder, *asked.values(), *choices)))


if __name__ == "__main__":
    main()
