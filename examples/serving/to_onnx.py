"""Write an exported classification head as ONNX and compare it with PyTorch.

    python to_onnx.py FOLDER OUT.onnx

Needs ``pip install torch transformers onnx onnxscript onnxruntime`` and nothing of muppet_fairseq. The graph takes
``input_ids`` and ``attention_mask`` ``[rows, tokens]`` of any sizes and gives ``logits`` ``[rows, classes]``. It is for
encoders: in a BART's class the choice of the last ``</s>`` depends on the tokens, which no graph can trace.
"""

import argparse
from pathlib import Path

import onnxruntime
import torch
from torch.export import Dim
from transformers import AutoModelForSequenceClassification, AutoTokenizer

TEXTS = ["A first text.", "And a second one that is longer, so that the first is padded.", "The third."]


def write_onnx(folder: str, out: str) -> float:
    """Write ``out`` and return the largest difference of its logits from PyTorch's on texts of other sizes."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = tokenizer(TEXTS[:2], padding=True, return_tensors="pt")
    any_size = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    torch.onnx.export(
        model,
        (rows["input_ids"], rows["attention_mask"]),
        out,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes=(any_size, any_size),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    rows = tokenizer(TEXTS, TEXTS[::-1], padding=True, return_tensors="pt")
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: values.numpy() for name, values in rows.items()})
    with torch.inference_mode():
        return float((model(**rows).logits - torch.from_numpy(logits)).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="a classification head's folder of 'muppet export-hf'")
    parser.add_argument("out", help="file to write")
    args = parser.parse_args()
    if not Path(args.folder, "config.json").is_file():
        parser.error(f"{args.folder} holds no config.json; name a head's folder that 'muppet export-hf' wrote")
    print(f"{args.out}: logits differ from PyTorch's by {write_onnx(args.folder, args.out):.1e} at most")


if __name__ == "__main__":
    main()
