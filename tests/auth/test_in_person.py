"""What nobody may do in somebody else's name, over real channels."""

from finity.auth.v1 import admin_pb2, admin_pb2_grpc, auth_pb2
from finity.options.v1 import options_pb2
from grpc import StatusCode

from tests.contracts.descriptors import methods
from tests.contracts.test_access import outcome
from tests.contracts.test_shape import READS
from tests.running import House, bearer

# What an administrator may do as the user: look, and stop.
ALLOWED = {"Logout", "InspectDeviceLogin"}


def test_whatever_changes_an_account_is_done_in_person() -> None:
    """Each method of auth that admits users and changes something says so, but for two."""
    changing = {
        method.name
        for method in methods("auth")
        if options_pb2.USER in method.allow and not method.name.startswith(READS)
    }
    personal = {method.name for method in methods("auth") if method.in_person}
    assert changing - personal == ALLOWED
    # Reading, but everything at once.
    assert personal - changing == {"ExportMyData"}


async def test_an_impersonator_is_refused(house: House) -> None:
    """Every such method refuses the token of an administrator who acts as the user, and says so."""
    admin = await house.person(role=auth_pb2.ROLE_ADMIN)
    bob = await house.person()
    opened = await admin_pb2_grpc.AdminServiceStub(house.auth_channel).ImpersonateUser(
        admin_pb2.ImpersonateUserRequest(user_id=bob.user_id, reason="ticket 7"),
        metadata=admin.metadata,
    )
    acting = bearer(opened.tokens.access_token)
    await house.auth.GetUser(auth_pb2.GetUserRequest(), metadata=acting)
    token = auth_pb2.ValidateTokenRequest(token=opened.tokens.access_token)
    said = await house.auth.ValidateToken(token, metadata=house.service)
    assert (said.user_id, said.actor_user_id) == (bob.user_id, admin.user_id)
    token.token = bob.tokens.access_token
    assert (await house.auth.ValidateToken(token, metadata=house.service)).actor_user_id == ""
    found = {
        method.name: await outcome(house.auth_channel, method, method.request(), acting)
        for method in methods("auth")
        if method.in_person
    }
    denied = (StatusCode.PERMISSION_DENIED, "ACCESS_DENIED")
    assert found == dict.fromkeys(found, denied)
