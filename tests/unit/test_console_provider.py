"""Sign-in at an OpenID provider: a real one on loopback, small, which can be told to misbehave."""

import base64
import hashlib
import threading
import time
from urllib.parse import parse_qs, urlparse

import httpx
import pytest
from confide.errors import IdentityError
from confide.web.serving import listening, server
from confide_server.console.accounts.provider import OpenId
from confide_server.console.roles import Role
from confide_server.console.settings import Provider
from fastapi import FastAPI, Request
from joserfc import jwt
from joserfc.jwk import RSAKey
from starlette.responses import JSONResponse, RedirectResponse

from tests.console_world import browser, make_console, person


class LocalProvider:
    """Authorization code with PKCE. `said` overrides claims; `key` signs."""

    def __init__(self, port):
        self.issuer = f"http://127.0.0.1:{port}"
        self.key = self.published = RSAKey.generate_key(2048, parameters={"kid": "1"})
        self.said, self.codes, self.subject = {}, {}, "subject-1"

    def app(self):
        app = FastAPI()

        @app.get("/.well-known/openid-configuration")
        def discovery():
            return {
                "issuer": self.issuer,
                "authorization_endpoint": self.issuer + "/authorize",
                "token_endpoint": self.issuer + "/token",
                "jwks_uri": self.issuer + "/keys",
            }

        @app.get("/keys")
        def keys():
            return {"keys": [self.published.as_dict(private=False)]}

        @app.get("/authorize")
        def authorize(request: Request):
            asked = dict(request.query_params)
            assert asked["response_type"] == "code" and asked["code_challenge_method"] == "S256"
            code = f"code-{len(self.codes)}"
            self.codes[code] = asked
            return RedirectResponse(f"{asked['redirect_uri']}?code={code}&state={asked['state']}", 303)

        @app.post("/token")
        async def token(request: Request):
            form = await request.form()
            asked = self.codes.pop(form["code"])
            challenge = hashlib.sha256(form["code_verifier"].encode()).digest()
            assert base64.urlsafe_b64encode(challenge).rstrip(b"=").decode() == asked["code_challenge"]
            assert request.headers["authorization"] == "Basic " + base64.b64encode(b"console:secret").decode()
            now = int(time.time())
            claims = {"iss": self.issuer, "aud": "console", "sub": self.subject, "iat": now, "exp": now + 60}
            claims |= {"nonce": asked["nonce"]} | self.said
            signed = jwt.encode({"alg": "RS256", "kid": "1"}, claims, self.key)
            return JSONResponse({"access_token": "x", "token_type": "bearer", "id_token": signed})

        return app


@pytest.fixture(scope="module")
def provider():
    with listening("127.0.0.1", 0) as listener:
        made = LocalProvider(listener.getsockname()[1])
        web = server(made.app())
        thread = threading.Thread(target=lambda: web.run(sockets=[listener]), daemon=True)
        thread.start()
        while not web.started:
            time.sleep(0.01)
        yield made
        web.should_exit = True
        thread.join(60)


@pytest.fixture
def settings(provider, tmp_path):
    provider.said, provider.key = {}, provider.published
    secret = tmp_path / "client-secret"
    secret.write_text("secret\n")
    return Provider(issuer=provider.issuer, client_id="console", client_secret_file=str(secret), label="Example")


def come_back(client, answer):
    """Follow a browser to the provider and back."""
    answer = httpx.get(answer.headers["location"], follow_redirects=False, timeout=60)
    there = urlparse(answer.headers["location"])
    return client.get(there.path, params={name: values[0] for name, values in parse_qs(there.query).items()})


def test_a_bound_subject_signs_in_and_no_other(tmp_path, provider, settings):
    console = make_console(tmp_path, provider=settings)
    anna = person(console, Role.AUDITOR, name="anna")
    stranger = browser(console)
    stranger.follow_redirects = False
    assert "no account is bound" in come_back(stranger, stranger.get("/sign-in/provider")).text
    anna.follow_redirects = False
    assert "Go on" in come_back(anna, anna.submit("/account/provider")).text
    again = browser(console)
    again.follow_redirects = False
    assert 'url=/audit"' in come_back(again, again.get("/sign-in/provider?next=/audit")).text
    assert again.get("/audit").status_code == 200
    assert "Sign in at Example" in stranger.get("/sign-in").text
    console.close()


def test_an_answer_counts_once_and_for_the_browser_that_asked(provider, settings):
    openid = OpenId(settings, "http://127.0.0.1:9444/sign-in/provider/answer")

    def answer(address):
        there = urlparse(httpx.get(address, follow_redirects=False, timeout=60).headers["location"])
        return {name: values[0] for name, values in parse_qs(there.query).items()}

    address, kept = openid.begin("/")
    said = answer(address)
    with pytest.raises(IdentityError, match="another browser"):
        openid.finish(said["state"], "x", said["code"])
    with pytest.raises(IdentityError, match="not asked for"):
        openid.finish(said["state"], kept, said["code"])
    address, kept = openid.begin("/")
    said = answer(address)
    subject, _ = openid.finish(said["state"], kept, said["code"])
    assert subject == f"{provider.issuer} subject-1"


@pytest.mark.parametrize(
    "said",
    [
        {"iss": "https://evil.example"}, {"aud": "another"}, {"exp": 1}, {"nonce": "another"}, {"sub": None},
        {"aud": ["console", "another"]},
    ],
)  # fmt: skip
def test_a_token_that_does_not_hold_lets_nobody_in(provider, settings, said):
    openid = OpenId(settings, "http://127.0.0.1:9444/sign-in/provider/answer")
    provider.said = said
    address, kept = openid.begin("/")
    there = parse_qs(urlparse(httpx.get(address, follow_redirects=False, timeout=60).headers["location"]).query)
    with pytest.raises(IdentityError):
        openid.finish(there["state"][0], kept, there["code"][0])


def test_a_token_of_another_key_lets_nobody_in(provider, settings):
    openid = OpenId(settings, "http://127.0.0.1:9444/sign-in/provider/answer")
    provider.key = RSAKey.generate_key(2048, parameters={"kid": "1"})
    address, kept = openid.begin("/")
    there = parse_qs(urlparse(httpx.get(address, follow_redirects=False, timeout=60).headers["location"]).query)
    with pytest.raises(IdentityError, match="does not hold"):
        openid.finish(there["state"][0], kept, there["code"][0])


def test_a_provider_in_the_open_is_refused(settings):
    with pytest.raises(IdentityError, match="is not https"):
        OpenId(settings.model_copy(update={"issuer": "http://provider.example"}), "x")
