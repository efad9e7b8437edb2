"""Record what a real vLLM answers: a line of JSON for each request, for the fake of the tests.

    python scripts/record_vllm.py http://127.0.0.1:8100/v1 --model NAME > recorded_vllm.jsonl

The model is SmolLM2, whose id 2 ends a turn.
"""

import argparse
import json
from collections.abc import Iterator
from typing import Any

import httpx2

from flashback.engines.openai_body import body_of
from flashback.sampling import Sampler
from flashback.settings import SamplingSettings

Record = dict[str, Any]
_PROMPT = (504, 3575, 282, 4649, 314)


def bodies(model: str) -> Iterator[tuple[str, Record]]:
    """Requests by name."""
    sampler = Sampler(SamplingSettings(), _PROMPT, forbidden=[5], ends=[2])
    streamed = body_of(model, _PROMPT, 4, sampler)
    plain = {"model": model, "prompt": list(_PROMPT), "max_tokens": 1, "temperature": 0.0}
    drawn = Sampler(SamplingSettings(temperature=0.9, seed=7), _PROMPT, ends=[2])
    yield "streamed", streamed
    yield "drawn", body_of(model, _PROMPT, 4, drawn)
    yield "ended", streamed | {"stop_token_ids": list(range(49152)), "max_tokens": 4}
    yield "ids back", plain | {"return_token_ids": True}
    yield "echoed", plain | {"echo": True}
    yield "again", plain | {"prompt": list(_PROMPT) * 20}
    yield "again", plain | {"prompt": list(_PROMPT) * 20}
    yield "no such model", plain | {"model": "nonsuch"}
    yield "no such id", plain | {"prompt": [*_PROMPT, 60000]}
    yield "too long", plain | {"max_tokens": 100_000}


def main() -> None:
    """Ask, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--model", required=True)
    given = parser.parse_args()
    with httpx2.Client(base_url=given.url.rstrip("/"), timeout=60) as client:
        version = client.get(given.url.removesuffix("/v1") + "/version").json()["version"]
        asked = [("models", None), *bodies(given.model)]
        for name, body in asked:
            answer = (
                client.get("/models") if body is None else client.post("/completions", json=body)
            )
            shown = body
            if name == "ended" and body is not None:
                shown = body | {"stop_token_ids": "all"}
            text = answer.text.replace(_root(client, given.model), given.model)
            print(
                json.dumps(
                    {
                        "name": name,
                        "server": f"vllm {version}",
                        "request": shown,
                        "status": answer.status_code,
                        "type": answer.headers["content-type"],
                        "answer": text,
                    }
                )
            )


def _root(client: httpx2.Client, model: str) -> str:
    """Where the server has its model, which is nobody's business."""
    listed = client.get("/models").json()["data"]
    return str(next(one["root"] for one in listed if one["id"] == model))


if __name__ == "__main__":
    main()
