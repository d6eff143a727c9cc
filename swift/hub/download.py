"""Fetch a model or data set from its hub into that hub's cache; every failure says what to do instead."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from swift.catalog import suggest_datasets, suggest_models
from swift.errors import HubError
from swift.hub import huggingface, local, modelscope
from swift.hub.listing import data_files_of, model_files
from swift.hub.names import did_you_mean
from swift.hub.resources import check_disk
from swift.hub.transfer import Http, StatusError, Unreachable
from swift.runs import disk_error

HUBS = {True: "Hugging Face", False: "ModelScope"}
TOKENS = {True: "HF_TOKEN", False: "MODELSCOPE_API_TOKEN"}
FLAGS = {"models": "--model", "datasets": "--dataset"}


def is_complete(snapshot: Path, use_hf: bool) -> bool:
    """Is a cached data set known to be whole? Hugging Face's cache doesn't say: its client checks against the hub."""
    return not use_hf and modelscope.is_complete(snapshot)


def download(
    kind: str,
    hub_id: str,
    *,
    sub: str = "",
    revision: str | None,
    use_hf: bool,
    token: str | None,
    weights: bool = True,
    hint: str | None = None,
    http: Http | None = None,
) -> Path:
    """The snapshot directory of a hub repository, downloaded as far as it isn't cached. `kind` is models or datasets.

    `sub` takes only a sub-directory, or one GGUF file by a part of its name. `hint` is another way to get it, for the
    messages. HubError, or ResourceError when the disk is too small.
    """
    if local.offline():
        fix = _elsewhere(kind, hub_id, hint, "unset SWIFT_OFFLINE and HF_HUB_OFFLINE")
        raise HubError("not in the cache, and downloads are switched off", where=hub_id, fix=fix)
    http = http or Http(headers=modelscope.headers(token), say=lambda text: print(f"  {text}", file=sys.stderr))
    try:
        if use_hf:
            return _from_huggingface(kind, hub_id, revision, token, weights, sub)
        return _from_modelscope(kind, hub_id, revision, weights, sub, http)
    except StatusError as error:
        raise _refused(kind, hub_id, revision, use_hf, error.status, error.body, hint) from error
    except Unreachable as error:
        raise _unreachable(kind, hub_id, use_hf, str(error), hint) from error


def _choose(kind: str, hub_id: str, files: list, weights: bool, sub: str) -> list:
    return model_files(hub_id, files, weights=weights, sub=sub) if kind == "models" else data_files_of(files)


def _from_modelscope(kind: str, hub_id: str, revision: str | None, weights: bool, sub: str, http: Http) -> Path:
    files = _choose(kind, hub_id, modelscope.list_files(kind, hub_id, revision, http), weights, sub)
    snapshot = modelscope.snapshot_dir(kind, hub_id, revision)
    with _locked(local.modelscope_cache() / ".lock" / f"swift-{kind}--{hub_id.replace('/', '--')}.lock"):
        needed = sum(f.size or 0 for f in modelscope.missing(snapshot, files))
        check_disk(snapshot, needed, hub_id)
        return modelscope.download(kind, hub_id, revision, files, http)


def _from_huggingface(kind: str, hub_id: str, revision: str | None, token: str | None, weights: bool, sub: str) -> Path:
    from huggingface_hub import errors

    try:
        files = _choose(kind, hub_id, huggingface.list_files(kind, hub_id, revision, token), weights, sub)
        cached = next(local.cached_snapshots(kind, hub_id, use_hf=True, revision=revision), None)
        needed = sum(f.size or 0 for f in files if cached is None or not (cached / f.path).exists())
        check_disk(local.huggingface_cache(), needed, hub_id)
        return huggingface.download(kind, hub_id, revision, files, token)
    except errors.LocalEntryNotFoundError as error:  # what the client makes of a failed connection
        raise Unreachable(str(error.__cause__ or error)) from error
    except errors.GatedRepoError as error:
        raise StatusError(403, hub_id, str(error)) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise StatusError(404, hub_id, str(error)) from error
    except errors.HfHubHTTPError as error:
        raise StatusError(error.response.status_code, hub_id, str(error)) from error
    except errors.HTTPError as error:
        raise Unreachable(str(error) or type(error).__name__) from error
    except OSError as error:
        if error.errno is None:
            raise Unreachable(str(error)) from error
        raise disk_error(error, local.huggingface_cache()) from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One download of a repository at a time on this machine: other processes wait, then find it done."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path):
        yield


def _elsewhere(kind: str, hub_id: str, hint: str | None, first: str) -> str:
    flag = FLAGS[kind]
    return "; or ".join(
        x for x in (first, hint, f"download {hub_id} elsewhere and pass its directory: {flag} DIR") if x
    )


def _unreachable(kind: str, hub_id: str, use_hf: bool, reason: str, hint: str | None) -> HubError:
    address = huggingface.endpoint() if use_hf else modelscope.endpoint()
    other = "leave out --use_hf" if use_hf else "--use_hf true takes Hugging Face"
    fix = _elsewhere(kind, hub_id, hint, f"check the network and the proxy ({other})")
    return HubError(f"can't reach {HUBS[use_hf]} at {address}: {reason}", where=hub_id, fix=fix)


def _refused(
    kind: str, hub_id: str, revision: str | None, use_hf: bool, status: int, body: str, hint: str | None
) -> HubError:
    hub, noun = HUBS[use_hf], "model" if kind == "models" else "data set"
    if status == 404:
        what = f"{hub} has no {noun} of this name" + (f" with revision {revision!r}" if revision else "")
        near = [name for name in (suggest_models if kind == "models" else suggest_datasets)(hub_id) if name != hub_id]
        other = f"try the other hub ({'leave out --use_hf' if use_hf else '--use_hf true'})"
        fix = _elsewhere(kind, hub_id, hint, "; ".join(x for x in (did_you_mean(near), other) if x))
    elif status in (401, 403):
        what = f"{hub} denies access: the repository is gated or private, or the token isn't valid"
        fix = f"ask for access on its page, then pass --hub_token TOKEN or set {TOKENS[use_hf]}"
    else:
        what = f"{hub} answered with an error ({status}): {' '.join(body.split())[:200]}"
        fix = _elsewhere(kind, hub_id, hint, "try again later")
    return HubError(what, where=hub_id, fix=fix)
