"""`scripts/scifact_to_beir.py` on a made-up zip of SciFact's form."""

import json
import zipfile
from pathlib import Path

import scifact_to_beir
from flashback.evaluation.judgements import read_judgements

CORPUS = """doc_id,title,abstract,structured
4,"A title, quoted","['First sentence.'
 ""It's the second."" 'A \\\\n third.']",False
5,Other,['Only one.'],False
"""
CLAIMS = """id,claim,evidence_doc_id,evidence_label,evidence_sentences,cited_doc_ids
1,A claim.,4,SUPPORT,[0],[ 4 5]
1,A claim.,4,SUPPORT,[1],[ 4 5]
3,Another.,,,[],[5]
"""


def test_it_writes_what_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as files:
        files.writestr("corpus_train.csv", CORPUS)
        files.writestr("claims_validation.csv", CLAIMS)
    scifact_to_beir.convert(tmp_path / "data.zip", tmp_path / "beir")
    lines = (tmp_path / "beir" / "corpus.jsonl").read_text("utf-8").splitlines()
    first = json.loads(lines[0])
    assert first["_id"] == "4"
    assert first["text"].startswith("First sentence. It's the second. A ")
    assert [json.loads(line)["_id"] for line in lines] == ["4", "5"]
    found = read_judgements(
        tmp_path / "beir" / "queries.jsonl", tmp_path / "beir" / "qrels" / "test.tsv"
    )
    assert found.queries == {"1": "A claim.", "3": "Another."}
    assert found.judged == {"1": {"4": 1, "5": 1}, "3": {"5": 1}}
