"""``muppet similarity`` and ``muppet nearest``: their numbers against scipy's, what they write, what they refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.spatial import distance
from torch import Tensor

from muppet_fairseq import checkpoint_file
from muppet_fairseq.cli import main
from muppet_fairseq.errors import MuppetError
from muppet_fairseq.prompts.backbone import BACKBONE_KEY
from muppet_fairseq.prompts.similarity import FoldedPrompt, folded_prompts, similarities
from tests.toy_suite import options, trained

#: vectors of a prompt and their width
SIZE = (3, 64)
#: writes a checkpoint with these tensors
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def checkpoint(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run with decomposed prompts of two datasets."""
    folder = tmp_path_factory.mktemp("similarity")
    quick = ("--max-update", "1", "--disable-validation")
    trained(options(data, folder / "whole", *quick, suite="animals"))
    more = ("--tune", "prompts", "--prompt-length", "3", "--prompt-type", "decomposed", *quick)
    backbone = str(folder / "whole" / "checkpoint_last.pt")
    trained(options(data, folder / "tuned", "--backbone", backbone, *more, suite="animals,pairs"))
    return folder / "tuned" / "checkpoint_last.pt"


@pytest.fixture
def write(checkpoint: Path, tmp_path: Path) -> Write:
    def written(name: str, prompts: Mapping[str, Any], **tensors: Tensor) -> Path:
        state = checkpoint_file.read(checkpoint)
        rest = {key: value for key, value in state["model"].items() if not key.startswith("prompts.")}
        matrices = {f"prompts.P_{name}": torch.as_tensor(value).float() for name, value in prompts.items()}
        path = tmp_path / f"{name}.pt"
        torch.save(state | {"model": rest | matrices | tensors}, path)
        return path

    return written


def random(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SIZE).astype(np.float32)


@given(
    matrices=st.lists(
        hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.just(5)), elements=st.floats(-5, 5, width=32)),
        min_size=1,
        max_size=4,
    )
)
def test_similarities_are_scipys_of_the_mean_vectors(matrices):
    prompts = [FoldedPrompt("a", torch.tensor(matrix), Path("f"), b"") for matrix in matrices]
    found = similarities(prompts).numpy()
    assert found.shape == (len(prompts),) * 2
    assert (abs(found) <= 1).all()
    means = [matrix.astype(np.float64).mean(axis=0) for matrix in matrices]
    for (row, column), value in np.ndenumerate(found):
        one, other = means[row], means[column]
        if min(np.linalg.norm(one), np.linalg.norm(other)) > 1e-6:
            assert value == pytest.approx(1 - distance.cosine(one, other), abs=1e-6)


def test_a_table_of_decomposed_and_other_prompts(checkpoint, write, capsys, tmp_path):
    other = write("other", {"animals": random(1)})
    tensors = checkpoint_file.read(checkpoint)["model"]
    own = [
        (tensors["prompts.P"] * tensors[f"prompts.u_{name}"][:, None] * tensors[f"prompts.v_{name}"]).mean(dim=0)
        for name in ("animals", "pairs")
    ]
    vectors = [vector.double().numpy() for vector in (*own, torch.tensor(random(1)).mean(dim=0))]
    names = [f"animals ({checkpoint})", "pairs", f"animals ({other})"]
    main(["similarity", str(checkpoint), str(other), "--json", "--figure", str(tmp_path / "figures" / "map.png")])
    found = json.loads(capsys.readouterr().out)
    assert found["prompts"] == names
    expected = 1 - distance.cdist(vectors, vectors, "cosine")
    np.testing.assert_allclose(found["similarities"], expected, atol=1e-5)
    assert (tmp_path / "figures" / "map.png").read_bytes()[1:4] == b"PNG"
    main(["similarity", str(checkpoint), str(other), "--figure", str(tmp_path / "map.svg")])
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["1", "2", "3"]
    for number, (row, name, values) in enumerate(zip(rows, names, expected, strict=True), 1):
        assert row.startswith(f"{number:>3}  {name} ")
        assert row.split()[-3:] == [f"{value:.2f}" for value in values]
    drawing = (tmp_path / "map.svg").read_text()
    assert f"<!-- {expected[0, 2]:.2f} -->" in drawing
    assert "<!-- pairs -->" in drawing


def test_the_most_similar_candidate_is_copied(write, capsys, tmp_path):
    probe = random(0)
    far, near, equal = (
        write(name, {name: matrix})
        for name, matrix in (("far", -probe), ("near", probe + 0.1 * random(1)), ("equal", 3 * probe))
    )
    to, out = write("probe", {"target": probe}), tmp_path / "new" / "out.pt"
    command = ["nearest", "--to", str(to), "--out", str(out)]
    main([*command, str(far), str(near)])
    assert out.read_bytes() == near.read_bytes()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    value = 1 - distance.cosine(probe.mean(axis=0), (probe + 0.1 * random(1)).mean(axis=0))
    assert lines == [["far", "-1.000"], ["near", f"{value:.3f}", "chosen"]]
    main([*command, str(near), str(equal), str(far)])  # what was there before is replaced
    assert out.read_bytes() == equal.read_bytes()
    assert [path.name for path in out.parent.iterdir()] == ["out.pt"]
    (only,) = folded_prompts(out)
    assert (only.dataset, only.file) == ("equal", out)


def refused(*words: Any) -> str:
    with pytest.raises(MuppetError) as error:
        main([str(word) for word in words])
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_cannot_be_compared_is_one_sentence(checkpoint, write, tmp_path):
    whole = checkpoint.parent.parent / "whole" / "checkpoint_last.pt"
    one, two = write("one", {"animals": random(1)}), write("two", {"pairs": random(2)})
    other = write("other", {"pairs": random(3)}, **{BACKBONE_KEY: torch.zeros(32, dtype=torch.uint8)})
    wide = write("wide", {"pairs": np.ones((3, 65))})
    longer = write("longer", {"pairs": np.ones((4, 64))})
    diverged = write("diverged", {"pairs": np.full(SIZE, np.nan)})
    nearest = ("nearest", "--out", tmp_path / "out.pt", "--to")
    for words in (("similarity", one, whole), (*nearest, whole, one), (*nearest, one, two, whole)):
        assert refused(*words).startswith(f"{whole} holds no prompts; name a checkpoint of a run with --tune prompts")
    for foreign in (other, wide):
        for words in (("similarity", one, foreign), (*nearest, one, foreign)):
            said = f"the prompts of {one} and {foreign} were trained on different backbones, so they cannot be compared"
            assert refused(*words).startswith(said)
    for words in ((*nearest, checkpoint, one), (*nearest, one, two, checkpoint)):
        assert refused(*words).startswith(f"{checkpoint} has prompts of animals, pairs, so it is not clear which is")
    assert re.search(
        r"longer\.pt has 4 vectors, that of .*one\.pt 3, .* --prompt-length", refused(*nearest, one, longer)
    )
    assert "the prompt of pairs has values that are no numbers" in refused(*nearest, one, diverged)
    assert f"the checkpoint {tmp_path / 'none.pt'} cannot be read" in refused("similarity", tmp_path / "none.pt")
    assert not (tmp_path / "out.pt").exists()
    before = one.read_bytes()
    assert "is one of the checkpoints that are compared" in refused("nearest", "--out", one, "--to", one, two)
    assert one.read_bytes() == before
    assert "let its name end in .png or .svg" in refused("similarity", one, "--figure", "map.gif")
    (tmp_path / "file").touch()
    assert "cannot write" in refused("nearest", "--out", tmp_path / "file" / "out.pt", "--to", one, two)
    state = torch.load(one, weights_only=False)
    del state["model"][BACKBONE_KEY]
    torch.save(state, one)
    assert "does not say which backbone" in refused("similarity", one)
