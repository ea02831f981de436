"""What the package needs and installs. ``make setup`` installs it; PyTorch comes first, see the Makefile."""

from setuptools import find_packages, setup

REQUIRES = [
    "ve-fairseq==0.12.3",  # fairseq of mid-2025 that imports on Python >= 3.11; compat.py is written for it
    "torch>=2.6",  # from here on torch.load refuses pickled code unless told otherwise
    "numpy>=1.26",  # the first with wheels for Python 3.12
    "tokenizers>=0.20",  # reads the tokenizer.json that today's models are saved with
    "tiktoken>=0.8",  # byte-level BPE of RoBERTa and BART
    "safetensors>=0.4",  # the weights of models in Hugging Face layout
    "packaging>=22",  # names of packages and wheels, parsed as pip does
    "PyYAML>=6.0",  # suites
    "omegaconf>=2.1",  # fairseq's configurations
    "datasets>=4.2",  # reads the hub's datasets and runs none of their code; from 4.2 on Parquet in little memory
    "huggingface_hub>=1.0",  # fetches their files; from 1.0 on says how many bytes before
    "pyarrow>=17.0",  # errors of damaged Parquet files
    "orjson>=3.10",  # reads JSON lines several times as fast as Python's own
    "tqdm>=4.60",  # progress
    "scipy>=1.11.2",  # correlations; the first with wheels for Python 3.12
    "matplotlib>=3.8",  # plots of reports and benchmarks
    "markdown>=3.5",  # reports as HTML
    "tensorboardX>=2.6",  # fairseq's --tensorboard-logdir
    "rouge-score>=0.1.2",  # ROUGE of the summarization family
    "sentencepiece>=0.2",  # fairseq's --bpe sentencepiece
]

EXTRAS = {
    # builds only against Cython: pip install cython && pip install --no-build-isolation -e '.[fastbpe]'
    "fastbpe": ["fastBPE==0.1.0", "cython>=3"],
    "fairscale": ["fairscale==0.4.13"],  # fairseq's --ddp-backend fully_sharded and slowmo, and --zero-sharding os
    "tasksource": ["tasksource>=0.1.1"],  # its tasks as datasets
    "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],  # examples/serving/to_onnx.py
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.5",  # make test: as many processes as cores
        "tasksource>=0.1.1",  # its tasks are read in the tests
        "setuptools>=69",  # the tests read this file
        "hypothesis>=6.100",
        "ruff==0.17.5",  # exact: what `ruff format --check` accepts changes between versions
        "matplotlib==3.11.2",  # exact: the figures in results/ are made again, pixel for pixel
        "transformers>=4.44",  # the reference that imported and exported models are compared with
        "onnx>=1.17",  # examples/serving/to_onnx.py
        "onnxscript>=0.5",
        "onnxruntime>=1.20",
        "peft>=0.11",  # the reference for decomposed prompts; it imports accelerate and psutil, which come with it
        "scikit-learn>=1.4",  # the reference for metrics
        "seqeval>=1.2.2",  # the reference for chunks
        "nltk>=3.8",  # reads trees back
    ],
}

setup(
    name="muppet-fairseq",
    version="0.1.0",
    description="Massively multi-task pre-finetuning (MUPPET) of RoBERTa and BART as a fairseq plugin",
    license="MIT",
    python_requires=">=3.11,<3.13",  # ve-fairseq has wheels for 3.11 and 3.12
    packages=find_packages(include=["muppet_fairseq*", "preprocess*", "benchmarks*"]),
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["muppet = muppet_fairseq.cli:main"]},
)
