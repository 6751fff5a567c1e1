"""A small server that speaks the OpenAI API's chat completions for a real checkpoint on disk, as vLLM does.

    python chat_server.py FOLDER LOG KEY

It prints its port when it is ready, and appends every request to LOG. The checkpoint is served under two names:
"planted", and "silent", which gives no log-probabilities. A request that says "slow" takes a moment; the first that
says "busy" is turned away.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

KEY = "correct-key"


@dataclass(frozen=True)
class Served:
    """A running server."""

    process: "subprocess.Popen[str]"
    url: str
    log: Path

    def requests(self) -> list[dict[str, Any]]:
        """Everything that was asked until now."""
        return [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]


@contextlib.contextmanager
def serving(folder: Path, log: Path) -> Iterator[Served]:
    """A server of the checkpoint in a process of its own."""
    log.touch()
    command = [sys.executable, __file__, str(folder), str(log), KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Served(process, f"http://127.0.0.1:{int(process.stdout.readline())}/v1", log)
        finally:
            process.kill()


class Handler(BaseHTTPRequestHandler):
    model: Any
    tokenizer: Any
    log: Path
    key: str
    lock = Lock()
    turned_away = False

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text = asked["messages"][-1]["content"]
        with self.lock, self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asked) + "\n")
        if "slow" in text:
            time.sleep(0.3)
        if self.headers["Authorization"] != f"Bearer {self.key}":
            self.answer(401, {"error": {"message": "Incorrect API key", "code": "invalid_api_key"}})
        elif self.path != "/v1/chat/completions" or asked["model"] not in ("planted", "silent"):
            self.answer(404, {"error": {"message": "The model does not exist", "code": "model_not_found"}})
        elif "busy" in text and not Handler.turned_away:
            Handler.turned_away = True
            self.answer(429, {"error": {"message": "Too many requests"}})
        else:
            with self.lock:
                torch.manual_seed(0)
                choices = [self.choice(number, asked) for number in range(asked.get("n", 1))]
            made = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"], "choices": choices}
            self.answer(200, made)

    @torch.no_grad()
    def choice(self, number: int, asked: dict[str, Any]) -> dict[str, Any]:
        """One completion, token by token."""
        ids = self.tokenizer.apply_chat_template(asked["messages"], add_generation_prompt=True)["input_ids"]
        start, listed = len(ids), []
        while len(ids) - start < asked["max_tokens"] and ids[-1] != self.tokenizer.eos_token_id:
            logits = self.model(torch.tensor([ids])).logits[0, -1].double()
            drawn = torch.multinomial(torch.softmax(logits, 0), 1) if asked["temperature"] else logits.argmax()
            ids.append(int(drawn))
            listed.append(self.token(ids[-1], torch.log_softmax(logits, 0), asked.get("top_logprobs", 0)))
        told = {"content": listed} if asked.get("logprobs") and asked["model"] != "silent" else None
        said = {"role": "assistant", "content": self.tokenizer.decode(ids[start:], skip_special_tokens=True)}
        return {"index": number, "message": said, "finish_reason": "stop", "logprobs": told}

    def token(self, id: int, logprobs: torch.Tensor, top: int) -> dict[str, Any]:
        def one(i: int) -> dict[str, Any]:
            return {"token": self.tokenizer.decode([i]), "logprob": max(float(logprobs[i]), -9999.0), "bytes": None}

        return {**one(id), "top_logprobs": [one(int(i)) for i in logprobs.topk(top).indices]}

    def answer(self, status: int, body: dict[str, Any]) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None: ...


if __name__ == "__main__":
    torch.set_num_threads(1)
    Handler.model, Handler.tokenizer = (
        kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    Handler.log, Handler.key = Path(sys.argv[2]), sys.argv[3]
    ThreadingHTTPServer.request_queue_size = 64
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()
