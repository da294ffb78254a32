"""A Hugging Face hub on loopback: repositories in the form of the real one's API."""

import hashlib
import json
from collections.abc import Mapping

from data.fetch.hub import Repository
from tests.data.fetch.server import Server

LARGE = 2000  # bytes, from which a file is kept by Git LFS


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def publish(server: Server, repository: Repository, files: Mapping[str, bytes]) -> dict[str, str]:
    """Serve a repository. Returns the paths that the content of its files is sent from."""
    prefix = "datasets/" if repository.kind == "dataset" else ""
    tree, paths = [], {}
    for name, content in files.items():
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content)}
        entry["oid"] = etag = git_sha1(content)
        path = f"/{prefix}{repository.name}/resolve/{repository.revision}/{name}"
        paths[name] = path
        if len(content) >= LARGE:
            etag = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": etag, "size": len(content), "pointerSize": 134}
            paths[name] = f"/cdn/{etag}"
            server.moved[path] = server.elsewhere + paths[name]
        server.heads[path] = {
            "X-Repo-Commit": repository.revision,
            "X-Linked-Etag": f'"{etag}"',
            "X-Linked-Size": str(len(content)),
        }
        server.files[paths[name]] = content
        tree.append(entry)
    api = f"/api/{repository.kind}s/{repository.name}/tree/{repository.revision}"
    server.files[api] = json.dumps(tree).encode()
    return paths
