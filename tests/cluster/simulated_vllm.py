"""A SIMULATED vLLM: its routes, over a model of one number. Run as a program, ``serve FOLDER --port P ...``.

The model's number is the first float of its safetensors, an adapter's is added to it; every log-probability is minus
the sum, so an answer shows which weights gave it. Some first prompt ids make it misbehave. What it does, it appends to
events.jsonl in $SIMULATED_FOLDER; files there say how it is to start.
"""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

DIES, HANGS, WAITS, LIES, TALKS_NONSENSE = 900, 901, 902, 903, 904
VOCABULARY = 1000
"""First ids of a prompt: ends the process; never answers; answers after /release; says a wrong count; no JSON."""
REFUSED = 77.0
"""The number of weights that it does not take; whole ones end it, as they do vLLM."""
MAX_MODEL_LEN = 256


def number_of(folder: str) -> float:
    file = next(iter(sorted(Path(folder).glob("*.safetensors"))))
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    return float(struct.unpack("<f", data[start : start + 4])[0])


class Model:
    def __init__(self, folder: str, notes: Path) -> None:
        self.base, self.adapter = number_of(folder), 0.0
        self.names = {"policy"}
        self.notes = notes
        self.released = threading.Event()

    def note(self, **event: Any) -> None:
        with (self.notes / "events.jsonl").open("a") as file:
            file.write(json.dumps({"pid": os.getpid(), **event}) + "\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    model: Model

    def log_message(self, format: str, *args: Any) -> None:
        print("simulated vLLM:", format % args, flush=True)

    def answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/health":
            self.answer({})
        elif self.path == "/version":
            self.answer({"version": "simulated"})
        elif self.path == "/v1/models":
            self.answer({"data": [{"id": "policy", "max_model_len": MAX_MODEL_LEN}]})
        elif self.path == "/openapi.json":
            self.answer({"paths": {"/v1/load_lora_adapter": {}, "/collective_rpc": {}}})
        else:
            self.answer({}, 404)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        asked = json.loads(self.rfile.read(length) or b"{}")
        model = self.model
        if self.path == "/v1/completions":
            self.complete(asked)
        elif self.path == "/v1/load_lora_adapter":
            number = number_of(asked["lora_path"])
            if number == REFUSED:
                self.answer({"error": {"message": "this adapter is not taken"}}, 400)
                return
            model.adapter = number
            model.names.add(asked["lora_name"])
            model.note(event="adapter", number=number, in_place=asked["load_inplace"])
            self.answer("ok")
        elif self.path == "/v1/unload_lora_adapter":
            if asked["lora_name"] not in model.names:
                self.answer({"error": {"message": "no such adapter"}}, 404)
                return
            model.names.remove(asked["lora_name"])
            model.note(event="names", names=sorted(model.names))
            self.answer("ok")
        elif self.path == "/collective_rpc":
            number = number_of(asked["kwargs"]["path"])
            if number == REFUSED:
                print("error: these weights are not taken", flush=True)
                os._exit(1)
            model.base = number
            model.note(event="full", number=number)
            self.answer({"results": [None]})
        elif self.path == "/reset_prefix_cache":
            self.answer({"success": True})
        elif self.path == "/release":
            model.released.set()
            self.answer({})
        else:
            self.answer({}, 404)

    def complete(self, asked: dict[str, Any]) -> None:
        model, prompt = self.model, asked["prompt"]
        value = -(model.base + (model.adapter if asked["model"] != "policy" else 0.0))
        if asked["model"] not in model.names:
            self.answer({"error": {"message": "no such model"}}, 404)
            return
        if max(prompt) >= VOCABULARY:
            self.answer({"error": {"message": "Token id is out of vocabulary"}}, 400)
            return
        if prompt[0] in (DIES, HANGS, WAITS):
            model.note(event="asked", first=prompt[0])
        if prompt[0] == DIES:
            os._exit(9)
        if prompt[0] == HANGS:
            threading.Event().wait()
        if prompt[0] == WAITS:
            model.released.wait()
        n = asked.get("n", 1)
        if prompt[0] == LIES:
            n += 1
        if prompt[0] == TALKS_NONSENSE:
            value = math.nan
        filtered = asked.get("top_k") == 1
        stops = asked.get("stop_token_ids") or []
        ids = [prompt[0]] * (asked["max_tokens"] - (1 if stops else 0)) + stops[:1]
        choices = [
            {
                "index": index,
                "token_ids": ids,
                "logprobs": {"token_logprobs": [0.0 if filtered else value] * len(ids)},
                "finish_reason": "stop" if stops else "length",
                "prompt_logprobs": [None, *({str(one): {"logprob": value}} for one in prompt[1:])],
            }
            for index in range(n)
        ]
        model.note(event="completion", salt=asked["cache_salt"], seed=asked.get("seed"), n=n)
        self.answer({"choices": choices})


def main() -> None:
    notes = Path(os.environ["SIMULATED_FOLDER"])
    if (notes / "cannot_start").exists():
        with (notes / "events.jsonl").open("a") as file:
            file.write(json.dumps({"event": "did not start"}) + "\n")
        sys.exit("error: cannot start, as the test asked for")
    arguments = sys.argv[1:]
    assert arguments[0] == "serve"
    port = int(arguments[arguments.index("--port") + 1])
    # As vLLM has its EngineCore: a child that does not notice its parent's death.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    Handler.model = Model(arguments[1], notes)
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    Handler.model.note(event="start", child=child.pid, port=port, arguments=arguments)
    server.serve_forever()


if __name__ == "__main__":
    main()
