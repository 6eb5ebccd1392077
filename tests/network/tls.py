"""vLLM behind HTTPS: which certificates are taken, HTTP/2, keys, and that proxies of the environment are not asked."""

import socket

import pytest
from servers import serve, tokenize, vllm  # noqa: F401, first: it makes the others be found
from support import environment, fails, score
from support_tls import Https
from test_vllm import PAIRS, Service, check


@pytest.fixture
def https(tmp_path):
    servers = []

    def start(fake, **settings):
        servers.append(Https(fake, tmp_path, **settings))
        return servers[-1]

    yield start
    for s in servers:
        s.close()


def test_http_2_is_agreed_on(vllm, https):  # noqa: F811
    server = https(vllm())
    check(score(PAIRS, "--vllm-url", server.url, "--vllm-ca", server.ca_file))
    assert len(server.versions) > 3 and set(server.versions) == {"2"}


def test_http_1_where_the_server_has_no_other(vllm, https):  # noqa: F811
    server = https(vllm(), alpn=["http/1.1"])
    check(score(PAIRS, "--vllm-url", server.url, "--vllm-ca", server.ca_file))
    assert set(server.versions) == {"1.1"}


def test_load_over_http_2(vllm, serve, https):  # noqa: F811
    servers = [https(vllm(delay=0.02)) for _ in range(2)]
    ca = servers[0].ca_file
    with open(ca, "a") as both, open(servers[1].ca_file) as other:
        both.write(other.read())
    service = Service(serve, *[o for s in servers for o in ("--vllm-url", s.url)], "--vllm-ca", ca)
    assert {x.status for x in service.load(16, 200)} == {200}
    assert all(s.fake.n_answered > 0 and set(s.versions) == {"2"} for s in servers)
    servers[0].fake.faults = ["500", "html", "nan", "drop"]
    assert {x.status for x in service.load(8, 100)} == {200}


def test_certificates_that_are_not_trusted(vllm, https, tmp_path):  # noqa: F811
    server = https(vllm())
    for options in ([], ["--vllm-ca", https(vllm()).ca_file]):  # the system's, another CA's
        said = fails(1, "score", "--vllm-url", server.url, *options)
        assert server.url in said and "certificate" in said
    elsewhere = https(vllm(), name="vllm.example")
    said = fails(1, "score", "--vllm-url", elsewhere.url, "--vllm-ca", elsewhere.ca_file)
    assert elsewhere.url in said and "127.0.0.1" in said and "certificate" in said
    for bad in (tmp_path / "absent.pem", tmp_path / "empty.pem"):
        (tmp_path / "empty.pem").write_text("")
        assert str(bad) in fails(1, "score", "--vllm-url", server.url, "--vllm-ca", bad)
    assert not elsewhere.versions  # nothing was said to a server that is not the right one


def test_plain_http_where_tls_is_spoken_and_the_reverse(vllm, https):  # noqa: F811
    server, plain = https(vllm()), vllm()
    assert "out:" in fails(1, "score", "--vllm-url", server.url.replace("https", "http"))
    said = fails(1, "score", "--vllm-url", plain.url.replace("http", "https"))
    assert "SSL" in said or "TLS" in said


def test_keys_over_tls(vllm, https):  # noqa: F811
    server = https(vllm(key="sesame"))
    options = ["--vllm-url", server.url, "--vllm-ca", server.ca_file]
    check(score(PAIRS[:5], *options, "--vllm-api-key", "sesame"))
    assert "status 401" in fails(1, "score", *options)


def test_proxies_of_the_environment_are_not_asked(vllm, https, monkeypatch):  # noqa: F811
    server = https(vllm())
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.2)
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:%d" % proxy.getsockname()[1])
        assert "http_proxy" in environment()
        check(score(PAIRS[:5], "--vllm-url", server.url, "--vllm-ca", server.ca_file))
        check(score(PAIRS[:5], "--vllm-url", server.fake.url))
        with pytest.raises(TimeoutError):
            proxy.accept()
