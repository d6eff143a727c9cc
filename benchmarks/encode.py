"""How fast and in how much memory rows become token ids, beside the tokenizer alone and beside other trainers.

    python benchmarks/encode.py --model DIR [--rows 300000] [--llamafactory PYTHON] [--ms_swift PYTHON]
    python benchmarks/encode.py --tokenizers DIR ... [--rows 20000]   # encoding alone beside encode_batch_fast

DIR needs a tokenizer and config.json, no weights. Each measurement is a process of its own; figures are CPU-seconds
(user and system, children included) after imports and loading of the tokenizer, and the highest resident memory. The
rows are made from a seed: query and response, about 90 tokens together. The others are Python interpreters that have
LLaMA-Factory or ms-swift installed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TEXT = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word but "
    "not what all were we when your can said there use an each which she do how their if will up other about out many "
    "then them these so some her would make like him into time has look two more write go see number no way could "
    "people compute average function variable temperature history description language model example sentence translate"
)
WORDS = TEXT.split()


def make_rows(path: Path, count: int) -> None:
    """Rows of 15 to 25 words asked and 15 to 45 answered."""
    rng = random.Random(0)
    with open(path, "w", encoding="utf-8") as file:
        for i in range(count):
            query = " ".join(rng.choices(WORDS, k=rng.randint(15, 25)))
            response = " ".join(rng.choices(WORDS, k=rng.randint(15, 45)))
            file.write(json.dumps({"query": f"{i}: {query}?", "response": response.capitalize() + "."}) + "\n")


def cpu() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def peak_mb() -> float:
    """The highest resident memory of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Clock:
    """CPU and wall seconds since it was made."""

    def __init__(self) -> None:
        self.cpu, self.wall = cpu(), time.monotonic()

    def read(self) -> dict[str, float]:
        return {"cpu": round(cpu() - self.cpu, 2), "wall": round(time.monotonic() - self.wall, 2)}


def raw(model: str, rows: str) -> dict:
    """The tokenizer alone on the rendered texts, in batches of 1000."""
    from swift.chat import ChatEncoder
    from swift.config.data import DataOptions
    from swift.data.load import load_rows
    from swift.models.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    encoder = ChatEncoder(tokenizer)
    loaded = load_rows(DataOptions(dataset=(rows,), dataset_shuffle=False))
    texts = [encoder.decode(encoder.encode(row).input_ids) for row in loaded.train[:2000]]
    backend = tokenizer.backend_tokenizer
    clock, tokens = Clock(), 0
    repeats = max(1, len(loaded.train) // len(texts))
    for _ in range(repeats):
        for start in range(0, len(texts), 1000):
            found = backend.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)
            tokens += sum(len(one.ids) for one in found)
    return {"rows": repeats * len(texts), "tokens": tokens, "encode": clock.read()}


def swift(model: str, rows: str, num_proc: str) -> dict:
    """What `swift sft` does before it loads weights."""
    from swift.chat import ChatEncoder
    from swift.config.data import DataOptions, EncodingOptions
    from swift.data import prepare
    from swift.models.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    encoder = ChatEncoder(tokenizer, max_length=2048)
    clock = Clock()
    options = EncodingOptions(dataset_num_proc=int(num_proc) or None)
    prepared = prepare(DataOptions(dataset=(rows,)), encoder, seed=42, encoding=options)
    took = clock.read()
    return {"rows": len(prepared.train), "tokens": int(prepared.train.lengths.sum()), "all": took, "peak_mb": peak_mb()}


def encoding(model: str, count: str) -> dict:
    """Rows that are in memory -> flat arrays of ids and labels, beside the tokenizer alone on the rendered texts.

    The two take turns, five times each; the least CPU time of each counts. One thread."""
    from swift.chat import ChatEncoder
    from swift.data.encode import encode_rows
    from swift.data.report import DataReport
    from swift.data.rows import Rows
    from swift.models.load import load_tokenizer

    tokenizer = load_tokenizer(model)
    encoder = ChatEncoder(tokenizer, max_length=2048)
    with tempfile.TemporaryDirectory() as folder:
        make_rows(Path(folder) / "rows.jsonl", int(count))
        plain = [json.loads(line) for line in (Path(folder) / "rows.jsonl").read_text("utf-8").splitlines()]
    talks = [(("user", row["query"]), ("assistant", row["response"])) for row in plain]
    rows = Rows.of({"messages": [{"role": role, "content": text} for role, text in talk]} for talk in talks)
    texts = [tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    backend = tokenizer.backend_tokenizer
    least, tokens = {"raw": float("inf"), "encode": float("inf")}, 0
    for _ in range(5):
        clock, tokens = Clock(), 0
        for start in range(0, len(texts), 1000):
            found = backend.encode_batch_fast(texts[start : start + 1000], add_special_tokens=False)
            tokens += sum(len(one.ids) for one in found)
        least["raw"] = min(least["raw"], clock.read()["cpu"])
        clock = Clock()
        encoded = encode_rows(rows, encoder, report=DataReport(), num_proc=1)
        least["encode"] = min(least["encode"], clock.read()["cpu"])
    assert int(encoded.lengths.sum()) == tokens
    return {"rows": len(rows), "tokens": tokens, **least}


def beside_tokenizers(models: list[str], rows: int) -> None:
    """One line for each tokenizer: the share of encoding that is the tokenizer's own work."""
    for model in models:
        with tempfile.TemporaryDirectory() as cache:
            found = child(sys.executable, "encoding", model, str(rows), cache=Path(cache))
        each = {name: found[name] / found["rows"] * 1e6 for name in ("raw", "encode")}
        figures = f"tokenizer {each['raw']:.1f}, encoding {each['encode']:.1f} CPU-us a row"
        tokens = found["tokens"] / found["rows"]
        print(f"{model:40} {tokens:.0f} tokens a row: {figures}, {each['raw'] / each['encode']:.0%}", flush=True)


def llamafactory(model: str, rows: str) -> dict:
    """LLaMA-Factory's own get_dataset, one process, without its cache."""
    folder = Path(rows).parent
    info = {"bench": {"file_name": Path(rows).name, "columns": {"prompt": "query", "response": "response"}}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    arguments = {
        "model_name_or_path": model,
        "dataset": "bench",
        "dataset_dir": str(folder),
        "template": "chatml",
        "stage": "sft",
        "do_train": True,
        "output_dir": str(folder / "lf"),
        "cutoff_len": 2048,
        "preprocessing_num_workers": 1,
        "overwrite_cache": True,
        "report_to": "none",
        "bf16": False,
        "use_cpu": True,
    }
    model_args, data_args, training_args, _, _ = get_train_args(arguments)
    module = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(module["tokenizer"], data_args)
    clock = Clock()
    found = get_dataset(template, model_args, data_args, training_args, stage="sft", **module)["train_dataset"]
    took = clock.read()
    tokens = sum(map(len, found.select(range(2000))["input_ids"])) / 2000 * len(found)
    return {"rows": len(found), "tokens": int(tokens), "all": took, "peak_mb": peak_mb()}


def ms_swift(model: str, rows: str) -> dict:
    """ms-swift's load_dataset and EncodePreprocessor, one process."""
    os.environ["MODELSCOPE_OFFLINE"] = "1"
    from swift.dataset import EncodePreprocessor, load_dataset
    from swift.model import get_processor
    from swift.template import get_template

    template = get_template(get_processor(model, model_type="llama"), template_type="chatml", max_length=2048)
    template.set_mode("train")
    clock = Clock()
    found, _ = load_dataset(rows, num_proc=1, load_from_cache_file=False)
    found = EncodePreprocessor(template=template)(found, num_proc=1, load_from_cache_file=False)
    took = clock.read()
    tokens = sum(map(len, found.select(range(2000))["input_ids"])) / 2000 * len(found)
    return {"rows": len(found), "tokens": int(tokens), "all": took, "peak_mb": peak_mb()}


def child(python: str, name: str, *words: str, cache: Path) -> dict:
    """Run one measurement in a process of its own."""
    env = os.environ | {"SWIFT_CACHE": str(cache), "HF_DATASETS_CACHE": str(cache / "hf"), "HF_HUB_OFFLINE": "1"}
    env |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    if python != sys.executable:
        env.pop("PYTHONPATH", None)  # another package of the name swift
    done = subprocess.run([python, __file__, "--child", name, *words], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--tokenizers", nargs="+")
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--num_proc", type=int, default=1)
    parser.add_argument("--llamafactory")
    parser.add_argument("--ms_swift")
    parser.add_argument("--other_rows", type=int, default=20_000, help="rows for the others, which are slow")
    args = parser.parse_args()
    if args.tokenizers:
        return beside_tokenizers(args.tokenizers, args.rows)
    if not args.model:
        parser.error("--model or --tokenizers")
    with tempfile.TemporaryDirectory() as folder:
        file, cache = Path(folder) / "rows.jsonl", Path(folder) / "cache"
        make_rows(file, args.rows)
        words = (args.model, str(file))
        results = {"tokenizer alone": child(sys.executable, "raw", *words, cache=cache)}
        for name in ("swift, first start", "swift, second start"):
            results[name] = child(sys.executable, "swift", *words, str(args.num_proc), cache=cache)
        small = Path(folder) / "small" / "rows.jsonl"
        small.parent.mkdir()
        make_rows(small, args.other_rows)
        for name in ("llamafactory", "ms_swift"):
            if getattr(args, name):
                results[name] = child(getattr(args, name), name, args.model, str(small), cache=cache)
    for name, found in results.items():
        took = found.get("all") or found["encode"]
        rate = found["rows"] / took["cpu"]
        memory = f"{found['peak_mb']:.0f} MB" if "peak_mb" in found else ""
        tokens = found["tokens"] / found["rows"]
        figures = f"{took['cpu']:>8.2f} CPU-s {took['wall']:>8.2f} s {rate:>9.0f} rows/CPU-s {memory:>8}"
        print(f"{name:22} {found['rows']:>8} rows of {tokens:.0f} tokens {figures}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(globals()[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
