"""A stand-in for the Hugging Face hub: what its client needs to resolve, list and download dataset repositories."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Repo:
    """Files by commit, and the commits that branches are at."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]


@dataclass
class HubServer:
    """Serves repositories; remembers what was asked for."""

    repos: dict[str, Repo]
    address: str = ""
    requests: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a GET."""
        for name, repo in self.repos.items():
            if path.startswith(f"/api/datasets/{name}/revision/"):
                commit = self._commit(repo, path.partition("/revision/")[2])
                if commit is not None:
                    return 200, {}, json.dumps({"id": name, "sha": commit, "siblings": []}).encode()
            elif path.startswith(f"/api/datasets/{name}/tree/"):
                files = repo.commits[path.partition("/tree/")[2]]
                entries = [
                    {"type": "file", "path": file, "size": len(content), "oid": _etag(content)}
                    for file, content in files.items()
                ]
                return 200, {}, json.dumps(entries).encode()
            elif path.startswith(f"/datasets/{name}/resolve/"):
                commit, _, file = path.partition("/resolve/")[2].partition("/")
                content = repo.commits[commit][file]
                return 200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit}, content
        return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"

    @staticmethod
    def _commit(repo: Repo, revision: str) -> str | None:
        return revision if revision in repo.commits else repo.branches.get(revision)


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@contextmanager
def hub_server(repos: dict[str, Repo]) -> Iterator[HubServer]:
    """Serve repositories at the server's ``address`` until the block ends."""
    hub = HubServer(repos)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            status, headers, body = hub.answer(path)
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        hub.address = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()
