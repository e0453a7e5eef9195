"""The first mail of a newcomer, as somebody who runs the suite reads it in the terminal."""

import re

from suite import state
from suite.addresses import free
from suite.demo.client import Gateway
from suite.stack import Stack
from tests.factories import an_address
from tests.running import PASSWORD
from tests.suite.terminal import finity, plain_environment, wait_for

LINK = re.compile(r"http://localhost:3000/verify-email#token=(\S{20,})")


def test_a_registration_is_read_with_mail_last(stores: dict[str, str]) -> None:
    """Registered over the gateway; the link that `finity mail last` prints verifies."""
    email = an_address()
    with state.scratch("finity mail ") as directory:
        environment = plain_environment(directory, **stores)
        with Stack(directory, environment=environment, addresses=free(), durable=False) as stack:
            gateway = Gateway(stack.gateway_url)
            # The administrator of the checkout reads no mail: nothing is asked of it.
            admin = stack.credentials
            login = {"email": admin.admin_email, "password": admin.admin_password}
            token = gateway.post("/v1/sessions", login)["tokens"]["access_token"]
            me = gateway.get("/v1/users/me", token)["user"]
            assert (me["role"], me["email_verified"]) == ("ROLE_ADMIN", True)
            body = {"email": email, "password": PASSWORD}
            assert not gateway.post("/v1/users", body)["user"].get("email_verified")
            wait_for(lambda: email in finity(directory, "mail", "last").stdout)
            printed = finity(directory, "mail", "last").stdout
            assert f"To: {email}\n" in printed
            link = LINK.search(printed)
            assert link, printed
            assert "EmailService.VerifyEmail (POST /v1/email:verify)" in printed
            assert admin.admin_email not in finity(directory, "mail").stdout
            gateway.post("/v1/email:verify", {"secret": link[1]})
            token = gateway.post("/v1/sessions", body)["tokens"]["access_token"]
            assert gateway.get("/v1/users/me", token)["user"]["email_verified"]
