from __future__ import annotations

import pytest
from msgspec.structs import replace

from portbook.records import Owner
from portbook.testing.watching import listener
from portbook.watching import identity

NGINX = {"name": "nginx", "exe": "/usr/sbin/nginx"}


@pytest.mark.parametrize(
    ("socket", "text"),
    [
        (listener(80, **NGINX), "tcp/80 any /usr/sbin/nginx"),
        (listener(80, "::", **NGINX), "tcp/80 any /usr/sbin/nginx"),
        (listener(80, "::1", **NGINX), "tcp/80 loopback /usr/sbin/nginx"),
        (listener(80, "192.0.2.1", **NGINX), "tcp/80 address /usr/sbin/nginx"),
        (listener(80, state="BOUND", reach="none", **NGINX), "tcp/80 any /usr/sbin/nginx"),
        (listener(53, protocol="udp", **NGINX), "udp/53 any /usr/sbin/nginx"),
        (listener(80, service="nginx.service", **NGINX), "tcp/80 any /usr/sbin/nginx nginx.service"),
        (listener(80, container="docker:web", netns=7, **NGINX), "tcp/80 any /usr/sbin/nginx docker:web"),
        (listener(80, netns=7, **NGINX), "tcp/80 any /usr/sbin/nginx netns:7"),
        (listener(80, netns=7, netns_name="blue", **NGINX), "tcp/80 any /usr/sbin/nginx netns:blue"),
        (listener(80, netns=1, **NGINX), "tcp/80 any /usr/sbin/nginx"),
        (listener(80, name="nginx", exe=None), "tcp/80 any (nginx)"),
        (listener(80, name=None, exe=None), "tcp/80 any ?"),
        (listener(80, owners=(), kernel="vxlan vx0"), "tcp/80 any (vxlan\\ vx0)"),
    ],
)  # fmt: skip
def test_what_identifies_a_socket(socket, text):
    assert identity.of(socket, own_netns=1).text == text


@pytest.mark.parametrize(
    ("honest", "forged"),
    [
        (listener(80, **NGINX), listener(80, name="/usr/sbin/nginx", exe=None)),
        (listener(80, service="a.service", **NGINX), listener(80, exe="/usr/sbin/nginx a.service")),
        (listener(80, exe="/a\\ b"), listener(80, exe="/a b")),
        (listener(80, exe="/" + "a" * 4_000 + "b"), listener(80, exe="/" + "a" * 4_000 + "c")),
        (listener(80, **NGINX), replace(listener(80), owners=(Owner(1, "nginx"),))),
    ],
)
def test_no_process_can_choose_the_identity_of_another(honest, forged):
    assert identity.of(honest).text != identity.of(forged).text


def test_a_very_long_path_is_not_kept():
    assert len(identity.of(listener(80, exe="/" + "a " * 2_000, service="s" * 4_000)).text) < 1_500
