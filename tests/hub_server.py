"""A small hub on this machine: folders of files that are served as the Hugging Face hub serves repositories."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "c" * 40


@contextmanager
def serve(repositories, gated=(), commit=COMMIT):
  """Yields the address and the list of requests; `repositories` are folders by `models/ORG/NAME` or `datasets/...`."""
  asked = []

  class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
      pass

    def answer(self, status, body=b"", **headers):
      self.send_response(status)
      for name, value in headers.items():
        self.send_header(name.replace("_", "-"), value)
      self.send_header("Content-Length", str(len(body)))
      self.end_headers()
      if self.command == "GET":
        self.wfile.write(body)

    def missing(self):
      self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="not found")

    def do_GET(self):  # noqa: N802
      path = unquote(self.path.partition("?")[0]).strip("/")
      asked.append(f"{self.command} {path}")
      if path.startswith("api/"):
        return self.information(path.removeprefix("api/"))
      kind = "datasets" if path.startswith("datasets/") else "models"
      parts = path.removeprefix("datasets/").split("/")
      name, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
      folder = repositories.get(f"{kind}/{name}")
      if folder is None:
        return self.missing()
      if f"{kind}/{name}" in gated:
        return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="gated")
      if revision not in ("main", commit, COMMIT):
        return self.answer(404, X_Error_Code="RevisionNotFound")
      if not (folder / file).is_file():
        return self.answer(404, X_Error_Code="EntryNotFound")
      content = (folder / file).read_bytes()
      etag = hashlib.sha256(content).hexdigest()
      self.answer(
        200, content, ETag=f'"{etag}"', X_Repo_Commit=commit if revision == "main" else revision, Accept_Ranges="bytes"
      )

    do_HEAD = do_GET  # noqa: N815

    def information(self, path):
      kind, organization, name, *rest = [*path.split("/"), "", ""][: max(path.count("/") + 1, 3)]
      folder = repositories.get(f"{kind}/{organization}/{name}")
      if folder is None:
        return self.missing()
      revision = rest[1] if len(rest) > 1 else "main"
      if revision not in ("main", commit, COMMIT):
        return self.answer(404, X_Error_Code="RevisionNotFound")
      files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
      if rest[:1] == ["tree"]:
        sizes = [{"type": "file", "path": f, "size": (folder / f).stat().st_size, "oid": "0" * 40} for f in files]
        return self.answer(200, json.dumps(sizes).encode(), Content_Type="application/json")
      told = {
        "id": f"{organization}/{name}",
        "sha": commit if revision == "main" else revision,
        "siblings": [{"rfilename": file} for file in files],
      }
      self.answer(200, json.dumps(told).encode(), Content_Type="application/json")

  server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    yield f"http://127.0.0.1:{server.server_port}", asked
  finally:
    server.shutdown()
    server.server_close()
