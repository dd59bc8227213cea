"""A hub of datasets, as far as Hugging Face's file system asks: the repositories are `FOLDER/owner/name`.

    python hub_server.py FOLDER PORT

Each request for a file's bytes is told on a line of its own: the file and the range that was asked for.
"""

import hashlib
import json
import sys
from pathlib import Path

from aiohttp import web

ROOT = web.AppKey("root", Path)
REVISION = "main"
"""The only one that a repository has."""


def repository(request: web.Request) -> Path:
    """The folder of the repository that is asked for."""
    place = request.app[ROOT] / request.match_info["owner"] / request.match_info["name"]
    if not place.is_dir():
        raise missing("RepoNotFound")
    if request.match_info.get("revision", REVISION) != REVISION:
        raise missing("RevisionNotFound")
    return place


def missing(what: str) -> web.HTTPNotFound:
    return web.HTTPNotFound(headers={"X-Error-Code": what})


async def about(request: web.Request) -> web.Response:
    place = repository(request)
    return web.json_response({"id": f"{place.parent.name}/{place.name}"})


async def tree(request: web.Request) -> web.Response:
    """What lies in a folder, or in all below it."""
    place = repository(request)
    folder = place / request.match_info.get("path", "")
    if not folder.is_dir():
        raise missing("EntryNotFound")
    pattern = "**/*" if json.loads(request.query["recursive"].lower()) else "*"
    return web.json_response([entry(place, path) for path in sorted(folder.glob(pattern))])


async def resolve(request: web.Request) -> web.FileResponse:
    """A file, or the range of it that is asked for."""
    name = request.match_info["path"]
    path = repository(request) / name
    if not path.is_file():
        raise missing("EntryNotFound")
    print(name, request.headers.get("Range", "whole"), flush=True)
    return web.FileResponse(path)


def entry(place: Path, path: Path) -> dict[str, object]:
    name = path.relative_to(place).as_posix()
    data = b"" if path.is_dir() else path.read_bytes()
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"type": "directory" if path.is_dir() else "file", "path": name, "oid": oid, "size": len(data)}


def main(folder: str, port: str) -> None:
    app = web.Application()
    app[ROOT] = Path(folder)
    api = "/api/datasets/{owner}/{name}"
    app.router.add_get(api, about)
    app.router.add_get(f"{api}/revision/{{revision}}", about)
    app.router.add_get(f"{api}/tree/{{revision}}", tree)
    app.router.add_get(f"{api}/tree/{{revision}}/{{path:.+}}", tree)
    app.router.add_get("/datasets/{owner}/{name}/resolve/{revision}/{path:.+}", resolve)
    web.run_app(app, host="127.0.0.1", port=int(port), print=None, shutdown_timeout=0.1)


main(*sys.argv[1:])
