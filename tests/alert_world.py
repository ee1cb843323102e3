"""Who receives alerts: a web server that a webhook is posted to, and a mail server that speaks SMTP, on loopback."""

import contextlib
import datetime
import ipaddress
import json
import socketserver
import ssl
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SECRET = b"a secret of the webhook's receiver"


def secret_file(folder, content=SECRET, mode=0o600):
    """A file with a secret."""
    path = folder / "secret"
    path.write_bytes(content + b"\n")
    path.chmod(mode)
    return path


def certificate(folder, name="localhost"):
    """(certificate, key) in PEM files, self-signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    paths = folder / f"{name}.pem", folder / f"{name}.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    return paths


@dataclass
class Receiver:
    """Answers each POST with `status` and keeps it."""

    status: int = 200
    location: str = ""
    posts: list = field(default_factory=list)
    port: int = 0
    came: threading.Event = field(default_factory=threading.Event)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/hook?to=us"

    @property
    def documents(self):
        return [json.loads(body) for _, _, body in self.posts]


@contextlib.contextmanager
def receiver():
    """A running one."""
    kept = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.posts.append((self.path, dict(self.headers), body))
            self.send_response(kept.status)
            if kept.location:
                self.send_header("location", kept.location)
            self.end_headers()
            kept.came.set()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        kept.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield kept
        finally:
            server.shutdown()
            thread.join()


@dataclass
class MailServer:
    """Takes every mail, or answers RCPT with `refuse`."""

    refuse: str = ""
    mails: list = field(default_factory=list)
    logins: list = field(default_factory=list)
    commands: list = field(default_factory=list)
    port: int = 0


@contextlib.contextmanager
def mail_server(tls=None):
    """A running one. tls: (certificate, key): offers STARTTLS, and takes nothing in the open."""
    kept = MailServer()
    context = None
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)

    class Handler(socketserver.StreamRequestHandler):
        def say(self, text):
            self.wfile.write(text.encode() + b"\r\n")
            self.wfile.flush()

        def handle(self):
            with contextlib.suppress(OSError, ValueError):
                self.talk()
            self.connection.close()

        def talk(self):
            self.say("220 ready")
            safe = context is None
            while command := self.rfile.readline().decode().strip():
                kept.commands.append(command)
                word = command.split(" ")[0].upper()
                if word == "EHLO":
                    self.say("250-here")
                    self.say("250 AUTH PLAIN" if safe else "250 STARTTLS")
                elif word == "STARTTLS" and context is not None:
                    self.say("220 go")
                    self.connection = context.wrap_socket(self.connection, server_side=True)
                    self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb")
                    safe = True
                elif not safe:
                    self.say("530 STARTTLS first")
                elif word == "AUTH":
                    kept.logins.append(command)
                    self.say("235 welcome")
                elif word == "RCPT" and kept.refuse:
                    self.say(kept.refuse)
                elif word == "DATA":
                    self.say("354 go on")
                    lines = iter(self.rfile.readline, b".\r\n")
                    kept.mails.append(b"".join(lines).decode())
                    self.say("250 taken")
                elif word == "QUIT":
                    self.say("221 bye")
                    return
                else:
                    self.say("250 well")

    socketserver.ThreadingTCPServer.allow_reuse_address = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        kept.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield kept
        finally:
            server.shutdown()
            thread.join()
