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
    questions = {"classify": classify, "choose": choose, "answer": answer, "summarize": summarize}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("question", choices=questions)
    parser.add_argument("folder", help="what 'muppet export-hf' wrote")
    parser.add_argument("texts", nargs="+")
    args = parser.parse_args()
    print(json.dumps(questions[args.question](args.folder, *args.texts)))


if __name__ == "__main__":
    main()
