"""lm-eval as it is, against the server: its log-likelihoods are those of recomputing everything."""

import json
from pathlib import Path
from typing import Any

import pytest

from flashback.settings import RetrievalSettings
from servers import DEFAULTS, chat_reader, recomputed_scores, serving

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed: make extras")

FIRST_BOUNDARY = 32
"""Where the server's stride grid begins unless a request says otherwise."""
DOCUMENTS = [
    {"question": "The tides follow the moon, which", "choices": [" pulls the water", " is made"]},
    {"question": "A socket reaches the network: it", "choices": [" connects", " sends and closes"]},
    {"question": "Snow", "choices": [" falls in winter and melts in spring", " is warm"]},
]
TASK = """
task: tides
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: 0
target_delimiter: ""
metric_list: [{metric: acc}]
"""


@pytest.mark.parametrize("pattern", ["none", "append"])
@pytest.mark.filterwarnings("ignore")  # a peer's own
def test_log_likelihoods_are_those_of_recomputing_everything(
    pattern: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    reader = chat_reader(window=400)
    reader.tokenizer.save_pretrained(tmp_path / "tokenizer")
    defaults = RetrievalSettings(
        pattern,
        stride=DEFAULTS.stride,
        query_tokens=DEFAULTS.query_tokens,
        passage_tokens=DEFAULTS.passage_tokens,
    )
    with serving(reader, defaults=defaults) as served:
        samples = evaluate(served.url, tmp_path)
    assert len(samples) == len(DOCUMENTS)
    for sample in samples:
        document = sample["doc"]
        for choice, ((found, _),) in zip(document["choices"], sample["resps"], strict=True):
            before = tuple(reader.encode_prompt(document["question"]))
            ids = before + tuple(reader.encode(choice))
            scores = recomputed_scores(reader, ids, pattern, FIRST_BOUNDARY)
            assert float(found) == pytest.approx(sum(scores[len(before) - 1 :]), abs=1e-4)


def evaluate(url: str, folder: Path) -> list[dict[str, Any]]:
    """The samples of a local task, scored by lm-eval over the API."""
    from lm_eval.tasks import TaskManager

    documents, task = folder / "documents.jsonl", folder / "tasks" / "tides.yaml"
    documents.write_text("".join(json.dumps(one) + "\n" for one in DOCUMENTS))
    task.parent.mkdir()
    task.write_text(TASK.replace("FILE", str(documents)))
    found = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "model": "llama",
            "base_url": f"{url}/v1/completions",
            "tokenizer": str(folder / "tokenizer"),
            "tokenizer_backend": "huggingface",
            "add_bos_token": True,
            "num_concurrent": 1,
            "max_retries": 1,
        },
        tasks=["tides"],
        task_manager=TaskManager(include_path=str(task.parent), include_defaults=False),
        bootstrap_iters=0,
    )
    samples: list[dict[str, Any]] = found["samples"]["tides"]
    return samples
