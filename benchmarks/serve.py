"""Serving figures: swift's pt engine beside other ways to answer the same requests on the same core.

    make bench-serve MODEL=DIR
    python benchmarks/serve.py --model DIR --engines swift vllm llama.cpp --gguf FILE --python vllm=PATH llama.cpp=PATH

Every engine runs in a process of its own with one computing thread, and its clock is the CPU-seconds of that process
after loading, so a busy machine changes little. `requests` requests with ragged prompts and answers, of which at most
`concurrent` are under way at once; the answers' lengths are prescribed and no token ends them. Engines:

    swift       the pt engine as `swift deploy` runs it
    static      transformers' `generate` on left-padded batches of `concurrent` requests in order of arrival
    one_by_one  transformers' `generate`, one request after another: what ms-swift's default (pt, max_batch_size 1) does
    llama.cpp   llama-cpp-python's llama_decode with as many sequences, on a BF16 (float32: F16) file of the GGUF
    vllm        vLLM's engine in one process (VLLM_ENABLE_V1_MULTIPROCESSING=0), eager
    openvino    OpenVINO GenAI's ContinuousBatchingPipeline on the same kind of file as llama.cpp
    ms_swift    ms-swift's default engine (TransformersEngine, max_batch_size 1), one request after another

Each foreign engine has a Python of its own: --python vllm=PATH openvino=PATH ms_swift=PATH llama.cpp=PATH.

A first token counts when its reader can have it: for `static` that is when the whole batch is done, and beside it
stands when `generate` had computed it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ALONE = ("one_by_one", "ms_swift")  # these answer one after the other, however many ask
GGUF_TYPES = {"bfloat16": 32, "float32": 1}  # BF16, and F16, by the numbers of llama.cpp
VLLM_ENV = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
}
clock = time.process_time


def workload(args: argparse.Namespace) -> list[tuple[list[int], int]]:
    """(prompt, answer length) of each request: stretches of a text, lengths drawn with a fixed seed."""
    chance = random.Random(args.seed)
    text = json.loads(Path(args.tokens).read_text())
    requests = []
    for _ in range(args.requests):
        prompt = min(max(int(chance.lognormvariate(4.2, 0.8)), 4), 400)
        answer = min(max(int(chance.expovariate(1 / 64)), 2), 256)
        start = chance.randrange(len(text) - prompt)
        requests.append((text[start : start + prompt], answer))
    return requests


def load(args: argparse.Namespace) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype)).eval()
    model.generation_config.eos_token_id = None
    return model


def run_swift(args: argparse.Namespace, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
    import threading

    from transformers import AutoTokenizer

    from swift.engines.protocol import GenerationRequest, Sampling
    from swift.engines.pt import PtEngine

    model, tokenizer = load(args), AutoTokenizer.from_pretrained(args.model)
    engine = PtEngine(model, tokenizer, max_batch_size=args.concurrent)
    free = threading.Semaphore(args.concurrent)
    began: dict[int, float] = {}
    first: dict[int, float] = {}
    answers: dict[int, list[int]] = {}
    asked = [
        GenerationRequest(prompt_ids=p, sampling=Sampling(max_new_tokens=n, temperature=args.temperature, seed=i))
        for i, (p, n) in enumerate(requests)
    ]

    def read(i: int, stream: Any) -> None:
        got: list[int] = []
        for delta in stream:
            if not got:
                first[i] = clock() - began[i]
            got += delta.token_ids
        answers[i] = got
        free.release()

    start = clock()
    threads = []
    for i, request in enumerate(asked):
        free.acquire()
        began[i] = clock()
        thread = threading.Thread(target=read, args=(i, engine.submit(request)))
        thread.start()
        threads.append(thread)
    for thread in threads:
        thread.join()
    seconds = clock() - start
    engine.close()
    return result(seconds, [first[i] for i in range(len(asked))], [answers[i] for i in range(len(asked))])


def run_static(args: argparse.Namespace, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
    import torch
    from transformers import LogitsProcessor, LogitsProcessorList

    class FirstCall(LogitsProcessor):
        at = 0.0

        def __call__(self, input_ids: Any, scores: Any) -> Any:
            self.at = self.at or clock()
            return scores

    model = load(args)
    answers, first, computed = [], [], []
    start = clock()
    for begin in range(0, len(requests), args.concurrent):
        batch = requests[begin : begin + args.concurrent]
        longest = max(len(p) for p, _ in batch)
        ids = torch.tensor([[0] * (longest - len(p)) + p for p, _ in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p, _ in batch])
        noted, batch_start = FirstCall(), clock()
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max(n for _, n in batch),
                do_sample=False,
                pad_token_id=0,
                logits_processor=LogitsProcessorList([noted]),
            )
        first += [clock() - batch_start] * len(batch)
        computed += [noted.at - batch_start] * len(batch)
        answers += [row[longest : longest + n].tolist() for row, (_, n) in zip(output, batch, strict=True)]
    return result(clock() - start, first, answers) | {"computed": tails(computed)}


def run_one_by_one(args: argparse.Namespace, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
    """With `concurrent` clients, each asking again when it was answered; time to the first token includes the queue."""
    requests = requests[: args.few]
    few = argparse.Namespace(**{**vars(args), "concurrent": 1})
    return run_static(few, requests)


def run_llama(args: argparse.Namespace, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
    import llama_cpp
    import numpy

    params = llama_cpp.llama_model_default_params()
    model = llama_cpp.llama_model_load_from_file(args.gguf.encode(), params)
    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx, settings.n_batch, settings.n_ubatch = args.concurrent * 768, 512, 512
    settings.n_seq_max, settings.n_threads, settings.n_threads_batch = args.concurrent, 1, 1
    settings.kv_unified = False
    context = llama_cpp.llama_init_from_model(model, settings)
    words = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))
    batch = llama_cpp.llama_batch_init(512, 0, 1)
    memory = llama_cpp.llama_get_memory(context)
    waiting = list(range(len(requests)))[::-1]
    slots: dict[int, dict[str, Any]] = {}
    answers: dict[int, list[int]] = {}
    first: dict[int, float] = {}
    start = clock()
    while waiting or slots:
        while waiting and len(slots) < args.concurrent:
            slot, i = next(s for s in range(args.concurrent) if s not in slots), waiting.pop()
            slots[slot] = {"i": i, "ids": list(requests[i][0]), "done": 0, "began": clock()}
            answers[i] = []
        batch.n_tokens, ends = 0, []
        for slot, row in sorted(slots.items(), key=lambda item: len(item[1]["ids"]) - item[1]["done"]):
            for place in range(row["done"], min(len(row["ids"]), row["done"] + 512 - batch.n_tokens)):
                k, last = batch.n_tokens, place == len(row["ids"]) - 1
                batch.token[k], batch.pos[k], batch.n_seq_id[k] = row["ids"][place], place, 1
                batch.seq_id[k][0], batch.logits[k] = slot, last
                batch.n_tokens, row["done"] = k + 1, place + 1
                if last:
                    ends.append((k, slot))
        if llama_cpp.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        for k, slot in ends:
            row = slots[slot]
            logits = numpy.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, k), shape=(words,))
            token = int(logits.argmax())
            first.setdefault(row["i"], clock() - row["began"])
            answers[row["i"]].append(token)
            row["ids"].append(token)
            if len(answers[row["i"]]) == requests[row["i"]][1]:
                llama_cpp.llama_memory_seq_rm(memory, slot, -1, -1)
                del slots[slot]
    return result(clock() - start, [first[i] for i in sorted(first)], [answers[i] for i in sorted(answers)])


def serve(args: argparse.Namespace, requests: Any, add: Any, step: Any) -> dict[str, Any]:
    """Keep `concurrent` requests in an engine that is driven by hand: `add(i, prompt, length)`, and `step()` gives
    (i, new token ids, whether it has ended) of those that have moved.
    """
    waiting, running = list(range(len(requests)))[::-1], 0
    began: dict[int, float] = {}
    first: dict[int, float] = {}
    answers: dict[int, list[int]] = {}
    start = clock()
    while waiting or running:
        while waiting and running < args.concurrent:
            i = waiting.pop()
            began[i], answers[i] = clock(), []
            add(i, *requests[i])
            running += 1
        for i, ids, ended in step():
            if ids:
                first.setdefault(i, clock() - began[i])
                answers[i] += ids
            running -= ended
    return result(clock() - start, [first[i] for i in sorted(first)], [answers[i] for i in sorted(answers)])


def run_vllm(args: argparse.Namespace, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
    from vllm import EngineArgs, LLMEngine, SamplingParams
    from vllm.sampling_params import RequestOutputKind

    settings = EngineArgs(
        args.model, dtype=args.dtype, max_model_len=768, max_num_seqs=args.concurrent, enforce_eager=True, seed=0
    )
    engine = LLMEngine.from_engine_args(settings)

    def add(i: int, prompt: list[int], length: int) -> None:
        wanted = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
        wanted.output_kind = RequestOutputKind.DELTA
        engine.add_request(str(i), {"prompt_token_ids": prompt}, wanted)

    def step() -> Any:
        for output in engine.step():
            yield int(output.request_id), list(output.outputs[0].token_ids), output.finished

    return serve(args, requests, add, step)


def run_openvino(args: argparse.Namespace, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
    import numpy
    import openvino
    from openvino_genai import ContinuousBatchingPipeline, GenerationConfig, SchedulerConfig

    scheduler = SchedulerConfig()
    scheduler.max_num_seqs, scheduler.cache_size, scheduler.enable_prefix_caching = args.concurrent, 2, False
    hints = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
    engine = ContinuousBatchingPipeline(args.gguf, scheduler, "CPU", hints if args.dtype == "float32" else {})
    handles: dict[int, Any] = {}

    def add(i: int, prompt: list[int], length: int) -> None:
        wanted = GenerationConfig(max_new_tokens=length, ignore_eos=True, do_sample=False)
        handles[i] = engine.add_request(i, openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)), wanted)

    def step() -> Any:
        engine.step()
        for i, handle in list(handles.items()):
            while handle.can_read():
                (output,) = handle.read().values()
                ended = output.finish_reason.name != "NONE"
                if ended:
                    del handles[i]
                yield i, list(output.generated_ids), ended

    return serve(args, requests, add, step)


def run_ms_swift(args: argparse.Namespace, requests: list[tuple[list[int], int]]) -> dict[str, Any]:
    """The same token ids: its template is passed over, the rest is its own. An end token ends an answer early."""
    import torch
    from swift.infer_engine import InferRequest, RequestConfig, TransformersEngine

    torch.set_num_threads(1)
    engine = TransformersEngine(args.model, torch_dtype=getattr(torch, args.dtype))
    own, prompts = engine._batch_encode, {str(i): ids for i, (ids, _) in enumerate(requests)}

    def encode(infer_requests: Any, *given: Any, **named: Any) -> Any:
        inputs, errors = own(infer_requests, *given, **named)
        for request, one in zip(infer_requests, inputs, strict=True):
            one["input_ids"] = prompts[request.messages[-1]["content"]]
            one.pop("attention_mask", None)
        return inputs, errors

    engine._batch_encode = encode
    first, answers, start = [], [], clock()
    for i, (_, length) in enumerate(requests[: args.few]):
        begin, got, seen = clock(), [], 0.0
        asked = InferRequest(messages=[{"role": "user", "content": str(i)}])
        config = RequestConfig(max_tokens=length, temperature=0, stream=True, return_details=True)
        for chunk in engine.infer([asked], config)[0]:
            seen = seen or clock() - begin
            got = chunk
        first.append(seen)
        answers.append([0] * got.usage.completion_tokens)
    return result(clock() - start, first, answers)


ENGINES = {
    "swift": run_swift,
    "static": run_static,
    "one_by_one": run_one_by_one,
    "llama.cpp": run_llama,
    "vllm": run_vllm,
    "openvino": run_openvino,
    "ms_swift": run_ms_swift,
}


def result(seconds: float, first: list[float], answers: list[list[int]]) -> dict[str, Any]:
    tokens = sum(map(len, answers))
    return {"seconds": seconds, "tokens": tokens, "rate": tokens / seconds, "first": tails(first), "answers": answers}


def tails(values: list[float]) -> tuple[float, float]:
    """(median, 99th percentile)"""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]


def make_gguf(python: str, source: str, target: Path, kind: int) -> None:
    """The packaged GGUF as another type: same file format, for speed only."""
    code = (
        "import llama_cpp, sys; p = llama_cpp.llama_model_quantize_default_params(); p.allow_requantize = True;"
        f"p.ftype = {kind}; assert llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p) == 0"
    )
    subprocess.run([python, "-c", code, source, str(target)], check=True, capture_output=True)


def text_tokens(model: str, target: Path) -> None:
    from transformers import AutoTokenizer

    pages = sorted((Path(__file__).resolve().parents[1] / "docs" / "en").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    target.write_text(json.dumps(AutoTokenizer.from_pretrained(model)(text)["input_ids"]))


def same(answers: list[list[int]], wanted: list[list[int]]) -> str:
    pairs = list(zip(answers, wanted, strict=False))
    return f"{sum(a == b for a, b in pairs)}/{len(pairs)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--engines", nargs="+", default=["swift", "static", "one_by_one"], choices=ENGINES)
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--concurrents", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--few", type=int, default=12, help="requests that are answered one by one")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gguf", help="the GGUF of the same model, for llama.cpp")
    parser.add_argument("--python", nargs="*", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--work", default="/tmp/bench-serve")
    parser.add_argument("--child", nargs=3, metavar=("ENGINE", "DTYPE", "CONCURRENT"))
    args = parser.parse_args()
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    args.tokens = work / "tokens.json"
    if args.child:
        engine, args.dtype, concurrent = args.child
        args.concurrent = int(concurrent)
        args.requests = min(args.requests, {1: args.few}.get(args.concurrent, args.requests))
        args.gguf = str(gguf_of(work, args.dtype))
        (work / "result.json").write_text(json.dumps(ENGINES[engine](args, workload(args))))
        return
    text_tokens(args.model, args.tokens)
    args.pythons = dict(pair.split("=", 1) for pair in args.python)
    for dtype in args.dtypes if {"llama.cpp", "openvino"} & {*args.engines} else ():
        if not gguf_of(work, dtype).is_file():
            make_gguf(args.pythons["llama.cpp"], args.gguf, gguf_of(work, dtype), GGUF_TYPES[dtype])
    compare(args, work)


def gguf_of(work: Path, dtype: str) -> Path:
    return work / f"{dtype}.gguf"


def compare(args: argparse.Namespace, work: Path) -> None:
    print("| engine | dtype | concurrent | tokens per CPU-s | first token p50 / p99, CPU-s | answers as one by one |")
    print("|---|---|---|---|---|---|")
    for dtype in args.dtypes:
        wanted: list[list[int]] = []
        for engine in sorted(args.engines, key=lambda e: e != "one_by_one"):
            for concurrent in args.concurrents[-1:] if engine in ALONE else args.concurrents:
                found = child(args, engine, dtype, concurrent, work)
                if engine == "one_by_one":
                    wanted = found["answers"]
                first = "{:.2f} / {:.2f}".format(*found["first"])
                if engine == "static" and concurrent > 1:
                    first += " (computed {:.2f} / {:.2f})".format(*found["computed"])
                agree = same(found["answers"], wanted) if wanted and engine != "ms_swift" else ""
                print(f"| {engine} | {dtype} | {concurrent} | {found['rate']:.1f} | {first} | {agree} |", flush=True)


def child(args: argparse.Namespace, engine: str, dtype: str, concurrent: int, work: Path) -> dict[str, Any]:
    python = args.pythons.get(engine, sys.executable)
    given = ["--model", args.model, "--work", args.work, "--requests", str(args.requests), "--few", str(args.few)]
    given += ["--temperature", str(args.temperature), "--seed", str(args.seed)]
    paths = {"PYTHONPATH": "" if engine == "ms_swift" else str(Path(__file__).resolve().parents[1])}
    with open(work / f"{engine}.err", "w") as errors:
        subprocess.run(
            [python, __file__, *given, "--child", engine, dtype, str(concurrent)],
            check=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(VLLM_ENV if engine == "vllm" else {}), **paths},
            stderr=errors if engine != "swift" else None,
        )
    return json.loads((work / "result.json").read_text())


if __name__ == "__main__":
    main()
