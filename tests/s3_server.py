"""An S3 endpoint (moto's) whose conditional puts are atomic, as those of S3 are.

    python s3_server.py PORT

moto serves each request on a thread of its own and looks for the object long before it stores it, so of two
puts that ask for `If-None-Match: *` at one time both may succeed. Here they follow one another.
"""

import sys
import threading
from collections.abc import Iterable
from wsgiref.types import StartResponse, WSGIEnvironment

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple


class Atomic:
    """moto's application, with one conditional put at a time."""

    def __init__(self) -> None:
        self.moto = DomainDispatcherApplication(create_backend_app)
        self.puts = threading.Lock()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if "HTTP_IF_NONE_MATCH" not in environ:
            return self.moto(environ, start_response)
        with self.puts:
            return self.moto(environ, start_response)


if __name__ == "__main__":
    run_simple("127.0.0.1", int(sys.argv[1]), Atomic(), threaded=True, request_handler=MotoRequestHandler)
