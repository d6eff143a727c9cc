"""`swift doctor`: what is wrong with this machine, a model or a data set, each with the one command that mends it.

Promises: changes nothing, survives broken libraries (they are imported in child processes only), and takes well under
a second where there is neither a GPU nor a library to try. Exit code 1 when something fails.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from swift.advise.checks import accelerator, packages, system
from swift.advise.finding import FAIL, WARN, Finding, as_json, as_text, of_error
from swift.config.advising import DoctorOptions
from swift.config.commands import DoctorConfig
from swift.config.record import explain
from swift.errors import not_allowed

Check = Callable[[], list[Finding]]


def main(config: DoctorConfig) -> int:
    if config.common.dry_run:
        print(explain(config))
        return 0
    findings = examine(config.doctor)
    print(as_json(findings) if config.doctor.json else f"{as_text(findings)}\n\n{summary(findings)}")
    return 1 if any(finding.status == FAIL for finding in findings) else 0


def checks(options: DoctorOptions) -> list[Check]:
    """The checks that the options ask for, in the order in which they are shown."""
    wanted: list[Check] = [
        packages.python,
        packages.core_versions,
        accelerator.torch_and_driver,
        accelerator.between_gpus,
        lambda: packages.optional_libraries(accelerator.has_gpu()),
        system.memory,
        lambda: system.disks(options.output_dir),
        system.shared_memory,
        system.limits,
    ]
    if options.network:
        wanted.append(system.hubs)
    return wanted + _of_subjects(options)


def _of_subjects(options: DoctorOptions) -> list[Check]:
    if not (options.model or options.adapters or options.dataset):
        return []
    from swift.advise.checks import subjects

    wanted: list[Check] = []
    if options.model:
        wanted.append(lambda: subjects.model(options.model, model_dir=options.model_dir, use_hf=options.use_hf))
    wanted += [lambda a=a: subjects.adapter(a) for a in options.adapters]
    wanted += [
        lambda d=d: subjects.dataset(d, dataset_dir=options.dataset_dir, use_hf=options.use_hf) for d in options.dataset
    ]
    return wanted


def examine(options: DoctorOptions) -> list[Finding]:
    """All findings; the checks run side by side, since most of their time is waiting for children."""
    wanted = checks(options)
    with ThreadPoolExecutor(max_workers=len(wanted)) as pool:
        return [finding for found in pool.map(_readable, wanted) for finding in found]


def _readable(check: Check) -> list[Finding]:
    """The check's findings, or the one that something it wanted to look at can't be read."""
    try:
        return check()
    except PermissionError as error:
        return [of_error("files", not_allowed(error))]


def summary(findings: list[Finding]) -> str:
    failures = sum(finding.status == FAIL for finding in findings)
    warnings = sum(finding.status == WARN for finding in findings)
    if not failures and not warnings:
        return "all is well"
    return f"{failures} failed, {warnings} to look at, {len(findings) - failures - warnings} fine"
