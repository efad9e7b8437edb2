"""Start `flashback serve`, and write with OpenAI's client."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import openai

import flashback


def write(address: str) -> None:
    """Print a text as it comes."""
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none")
    stream = client.completions.create(
        model="flashback-mini",
        prompt="The tides follow",
        max_tokens=32,
        temperature=0,
        stream=True,
        extra_body={"flashback": {"pattern": "slot"}},
    )
    for chunk in stream:
        print(chunk.choices[0].text, end="", flush=True)
    print()


with tempfile.TemporaryDirectory() as folder:
    text, index = Path(folder, "tides.txt"), Path(folder, "IDX")
    text.write_text("The tides follow the moon, which pulls the water of the ocean towards it.")
    flashback.index_corpus(text, index)

    command = [sys.executable, "-m", "flashback", "serve", "--port", "0", "--index", str(index)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            for line in server.stderr or ():
                if ready := re.search(r"serving at (\S+)", line):
                    write(ready[1])
                    break
        finally:
            server.terminate()
